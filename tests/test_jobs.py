"""`ray job submit --working-dir . -- python jobs/<stage>.py PRESET …` against a real head node with token authentication."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from raml_ray import presets
from raml_ray.config import dump, override
from raml_ray.formulas import cost
from raml_ray.metrics_file import read_metrics
from raml_ray.stages import plan
from raml_ray.storage import Folder

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))


CANARIES = {
    name: f"canary-{name.lower()}-4711"
    for name in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")
}
IN_AN_ADDRESS = "/".join(f"canary-{half}-4711" for half in ("left", "right"))
"""A password with a slash in it, as AWS makes them. Not written out: this file is sent to the cluster, too."""


class Head(NamedTuple):
    address: str
    environment: dict[str, str]
    folder: Path
    """Where Ray keeps its logs."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = tempfile.mkdtemp(prefix="raml")  # short: sockets live in it
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        **CANARIES,
        # The job's `python` is the one that runs these tests.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    port = free_port()
    words = [f"--port={free_port()}", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}"]
    words += [f"--temp-dir={folder}", "--num-cpus=3", "--object-store-memory=200000000", "--node-ip-address=127.0.0.1"]
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    found = Head(address, environment, Path(folder))
    try:
        deadline = time.monotonic() + 240
        while status(address, environment["RAY_AUTH_TOKEN"]) != 200:
            assert process.poll() is None and time.monotonic() < deadline, "the head node did not start"
            time.sleep(0.5)
        # It lists jobs before it can start one: its agent comes up later.
        while "No available agent" in submit(found, "-c", "pass").stderr:
            assert process.poll() is None and time.monotonic() < deadline, "the head node's agent did not start"
        yield found
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def status(address: str, token: str | None) -> int:
    """HTTP status of the job list; 0 if nobody answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{address}/api/jobs/", headers=headers), timeout=5
        ) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def submit(head: Head, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", "submit", "--address", head.address, "--working-dir", ".", "--", "python", *entrypoint],
        cwd=ROOT,
        env=head.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.faults
@pytest.mark.vllm
@pytest.mark.slow
def test_submitted_jobs_run_their_stages_on_the_cluster(
    head: Head, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = [f"root={tmp_path}", "base.num_steps=3", "cluster.num_cpus=1"]
    settings += ["engine.cpus_per_engine=1", "train.cpus_per_worker=1"]
    # An address with a secret comes in a file: on a command line Ray itself would print it.
    kept = tmp_path_factory.mktemp("settings") / "smoke.json"
    changes = {"evaluate.sets": {"theirs": f"s3://me:{IN_AN_ADDRESS}@host/x"}}
    kept.write_text(dump(override(presets.smoke(), changes)))
    said = ""
    for words in (["jobs/base.py", str(kept)], ["jobs/grpo.py", str(kept), "--step", "grpo_zero"]):
        done = submit(head, *words, *settings)
        said += done.stdout + done.stderr
        assert done.returncode == 0, said[-6000:]
    canaries = [head.environment["RAY_AUTH_TOKEN"], *CANARIES.values(), *IN_AN_ADDRESS.split("/")]
    assert_nothing_holds(canaries, said, [tmp_path, head.folder])
    assert "s3://***@host/x" in (tmp_path / "smoke" / "base" / "config.json").read_text()
    summary = json.loads((tmp_path / "smoke" / "grpo_zero" / "summary.json").read_text())
    assert summary["figures"]["grpo/versions"] == 2
    assert summary["figures"]["grpo/sync_max_error"] < 1e-4
    # What `raml plan` says of a learner's memory, against what it held.
    planned = {line.step: line for line in plan.plan(presets.smoke(), plan.Assumed(1, cost.device("H100")))}
    estimated = planned["grpo_zero"].memory
    held = max(row["learner/peak_memory_gib"] for row in read_metrics(Folder(str(tmp_path / "smoke" / "grpo_zero"))))
    assert estimated is not None and 0.5 < estimated / 2**30 / held < 2


def assert_nothing_holds(canaries: list[str], said: str, folders: list[Path]) -> None:
    """Neither what was said nor a file of the run, of MLflow or among Ray's logs."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"config.json", "mlflow.db", "raylet.out"} <= {path.name for path in files}
    for canary in canaries:
        assert canary not in said
        assert [path for path in files if canary.encode() in path.read_bytes()] == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_with_a_typo_fails_with_the_nearest_name(head: Head) -> None:
    done = submit(head, "jobs/grpo.py", "smoke", "grpo.num_update=3")
    assert done.returncode != 0
    assert "did you mean 'grpo.num_updated'" in done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_without_the_token_nobody_gets_in(head: Head) -> None:
    assert status(head.address, None) == 401
    assert status(head.address, "wrong") == 403
