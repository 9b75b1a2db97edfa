"""No space is left, in the middle of a step: it ends and says so, and what was committed is gone on from."""

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from raml_ray.config import Step
from raml_ray.metrics_file import read_metrics
from raml_ray.stages import generate, sft
from raml_ray.stages.pipeline import context_of
from tests.faults.driving import num_shards, rows
from tests.stages import contexts
from tests.stages.test_sft import NUM_STEPS, losses, prepared, undisturbed

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400)]


def test_shards_that_are_there_stay_and_the_same_command_makes_the_rest(cluster: None, tmp_path: Path) -> None:
    context = contexts.context(
        tmp_path / "run",
        Step(name="generate", stage="generate"),
        data__path="miniature:train",
        data__limit=12,
        generate__shard_questions=2,
        generate__num_samples=32,
        engine__max_num_seqs=8,  # two shards at once: when the fourth enters, one is there at least
        drill__faults="engine:*:3:enospc",
    )
    with pytest.raises(RayTaskError, match="File too large"):
        generate.run(context)
    assert 0 < num_shards(context) < 6
    assert not list(Path(context.folder.path).rglob("*.tmp"))
    again = context_of(context.whole, context.step, context.run)
    assert generate.run(again).counts.rows_out == rows(again).num_rows == 12 * 32


def test_a_checkpoint_that_finds_no_room_ends_the_step_and_the_one_before_it_is_gone_on_from(
    cluster: None, tmp_path: Path
) -> None:
    examples, folder, base, config = prepared(
        tmp_path, drill__faults="checkpoint:0:20:enospc", drill__folder=str(tmp_path / "drill")
    )
    with pytest.raises(RuntimeError, match=r"step-00000020 cannot be written \(\d+ MiB are free there\)"):
        sft.train_policy(examples, folder, base, config)
    assert sorted(path.name for path in Path(folder.file("checkpoints")).iterdir()) == [
        "step-00000010",
        "step-00000015",
    ]
    figures = sft.train_policy(examples, folder, base, config)
    assert figures["sft/resumed_from_step"] == 15
    assert (figures["learner/restarts"], figures["learner/repeated_steps"]) == (1, 5)
    assert len(read_metrics(folder)) == NUM_STEPS
    assert [loss for _, loss in losses(folder)] == pytest.approx(undisturbed(config), abs=1e-6)
