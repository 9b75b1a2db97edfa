"""A sweep whose driver is killed twice on the way, once in each trial: its table is that of an undisturbed one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from raml_ray.config import Config, dump, override
from raml_ray.storage import Folder
from tests.faults.driving import ROOT
from tests.stages.test_ablate import small

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1200)]

PROGRESS_S = 300.0


def started(config: Config) -> subprocess.Popen[bytes]:
    file = Path(config.root, f"{config.name}.json")
    file.write_text(dump(config))
    with file.with_suffix(".log").open("ab") as said:
        command = [sys.executable, "-m", "raml_ray", "ablate", str(file)]
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=said, cwd=ROOT)


def killed_when(process: subprocess.Popen[bytes], is_time: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PROGRESS_S
    try:
        while not is_time():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()


def under_way(step: Folder) -> bool:
    return step.exists("manifest.json") and not step.exists("summary.json")


def test_a_sweep_killed_in_each_of_its_trials_gives_the_table_of_an_undisturbed_one(
    nodes: Cluster, tmp_path: Path
) -> None:
    trials = {"ablate.space": {"evaluate.k": [1, 2]}, "ablate.max_concurrent": 1, "cluster.address": nodes.address}
    clean = override(small(tmp_path), trials | {"name": "clean"})
    assert started(clean).wait(PROGRESS_S) == 0, (tmp_path / "clean.log").read_text()[-3000:]

    began = time.monotonic()
    config = override(clean, {"name": "drilled"})
    folder = Folder(str(tmp_path / "drilled"))
    first, second = folder / "evaluate_k_1", folder / "evaluate_k_2"
    killed_when(started(config), lambda: under_way(first))
    assert (folder / "generate").exists("summary.json") and not first.exists("summary.json")
    killed_when(started(config), lambda: under_way(second))
    finished = Path(first.file("summary.json")).stat().st_mtime_ns
    assert not second.exists("summary.json") and not folder.exists("report/summary.json")
    assert started(config).wait(PROGRESS_S) == 0, (tmp_path / "drilled.log").read_text()[-3000:]
    print(f"\ntwo trials, killed twice, in {time.monotonic() - began:.0f} s")

    assert Path(first.file("summary.json")).stat().st_mtime_ns == finished  # what was done stayed done
    tables = [Folder(str(tmp_path / name / "report" / "figures")) for name in ("clean", "drilled")]
    undisturbed, drilled = (table.read_table("sweep.parquet") for table in tables)
    assert drilled.num_rows > 0 and drilled.equals(undisturbed)
    for step in (first, second):
        twin = Folder(str(tmp_path / "clean" / step.name))
        assert step.read_table("per_question.parquet").equals(twin.read_table("per_question.parquet"))
    assert {(folder / "trials" / name).read_json("result.json")["status"] for name in ("k_1", "k_2")} == {"finished"}
