"""The smoke preset with its root in a real S3 server on this machine, which is killed and started again in the run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raml_ray.config import STAGES
from raml_ray.presets import smoke
from raml_ray.storage import Folder
from tests import object_store
from tests.faults.hosts import waited_for

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
SMALLER = ["base.num_steps=3", 'evaluate.sets={"in_domain":"miniature:in_domain"}', "tracking.enabled=false"]
AWAY_S = 5.0
PATIENCE_S = 900.0


def test_the_smoke_preset_passes_on_s3_that_is_restarted_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, said = tmp_path / "cache", tmp_path / "said.log"
    with object_store.running(tmp_path, key="canary-key-4711", secret="canary-secret-4711") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        environment = os.environ | {"RAML_CACHE": str(cache), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"}
        command = [sys.executable, "-m", "raml_ray", "run", "smoke", f"root=s3://{object_store.BUCKET}/x", *SMALLER]
        began = time.monotonic()
        with said.open("w") as file:
            run = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=file, stderr=file)
        try:
            for step in ("generate", "sft", "grpo_zero"):

                def has_begun(line: str = f" {step}: {step.partition('_')[0]}") -> bool:
                    assert run.poll() is None, said.read_text()[-5000:]
                    return line in said.read_text()

                waited_for(f"step {step}", has_begun, PATIENCE_S)
                time.sleep(2)
                store.kill()
                time.sleep(AWAY_S)
                store.start()
            assert run.wait(PATIENCE_S) == 0, said.read_text()[-5000:]
        finally:
            run.kill()
        print(f"\nthe run took {time.monotonic() - began:.0f} s, without its store for 3 times {AWAY_S:g} s")
        folder = Folder(f"s3://{object_store.BUCKET}/x/smoke")
        steps = {step.name for step in smoke().steps}
        summaries = {name: folder / name for name in folder.names() if (folder / name).exists("summary.json")}
        assert set(summaries) == steps
        assert {json.loads(one.read_text("summary.json"))["stage"] for one in summaries.values()} == set(STAGES)
        assert (folder / "grpo_cold" / "checkpoints").names("step-")[-1] == "step-00000002"
        # base, sft and two of grpo: each was copied once, whoever asked for it.
        assert len([path for path in cache.iterdir() if path.is_dir()]) == 4
        for canary in (b"canary-secret-4711", b"canary-key-4711"):
            assert canary.decode() not in said.read_text()
            fs = folder._fs()
            assert [name for name in fs.find(folder.path) if canary in fs.cat_file(name)] == []
