"""`ray job submit … python jobs/<stage>.py` of every stage: what it sends is run on the cluster, one job after the other."""

from pathlib import Path

import pytest

from tests.test_jobs import Head, head, submit

__all__ = ["head"]

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1800)]
SOME = {"grpo": ["--step", "grpo_zero"], "evaluate": ["--step", "evaluate_sft"]}
"""Of stages with several steps; of the others all."""
STEPS = {"base", "generate", "teacher", "verify", "sft", "grpo_zero", "evaluate_sft", "analyze", "report"}


def test_a_job_of_every_stage_runs_its_steps(head: Head, tmp_path: Path) -> None:
    settings = [f"root={tmp_path}", "base.num_steps=3", "cluster.num_cpus=1"]
    settings += ["engine.cpus_per_engine=1", "train.cpus_per_worker=1"]
    for stage in ("base", "generate", "verify", "sft", "grpo", "evaluate", "analyze", "report"):
        done = submit(head, f"jobs/{stage}.py", "smoke", *SOME.get(stage, []), *settings)
        assert done.returncode == 0, f"{stage}: {(done.stdout + done.stderr)[-6000:]}"
    assert {path.parent.name for path in (tmp_path / "smoke").glob("*/summary.json")} == STEPS
