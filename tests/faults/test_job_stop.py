"""`ray job stop` on a real head node: the learners' step is saved before the job ends."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raml_ray.metrics_file import read_metrics
from raml_ray.storage import Folder
from tests.test_jobs import RAY, ROOT, Head, head, submit

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

PROGRESS_S = 300.0

__all__ = ["head"]  # the fixture


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """Between SIGTERM and SIGKILL; read on the head node."""
    os.environ["RAY_JOB_STOP_WAIT_TIME_S"] = str(PROGRESS_S)
    yield
    del os.environ["RAY_JOB_STOP_WAIT_TIME_S"]


def ray_job(head: Head, *words: str) -> str:
    command = [RAY, "job", words[0], "--address", head.address, *words[1:]]
    done = subprocess.run(command, cwd=ROOT, env=head.environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_stopped_job_saves_the_step_that_it_is_at(head: Head, tmp_path: Path) -> None:
    settings = [f"root={tmp_path}", "base.num_steps=3", "tracking.enabled=false", "cluster.num_cpus=1"]
    settings += ["engine.kind=scripted", "grpo.num_steps=100000", "train.checkpoint_every=100000"]
    settings += [f"cluster.stop_timeout_s={PROGRESS_S - 60:g}"]
    done = submit(head, "jobs/base.py", "smoke", *settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    entrypoint = ["python", "jobs/grpo.py", "smoke", "--step", "grpo_zero", *settings]
    ray_job(head, "submit", "--submission-id=stopped", "--no-wait", "--working-dir", ".", "--", *entrypoint)
    folder, deadline = Folder(str(tmp_path / "smoke" / "grpo_zero")), time.monotonic() + PROGRESS_S
    while len(read_metrics(folder)) < 2:
        assert time.monotonic() < deadline, ray_job(head, "logs", "stopped")[-3000:]
        time.sleep(0.2)
    assert "STOPPED" in ray_job(head, "stop", "stopped").upper()
    saved = [path.parent.name for path in Path(folder.path, "checkpoints").glob("*/COMMIT")]
    assert saved == [f"step-{int(read_metrics(folder)[-1]['step']):08d}"]
    assert "the same command goes on from here" in ray_job(head, "logs", "stopped")
    assert not folder.exists("failure.txt") and not folder.exists("summary.json")
