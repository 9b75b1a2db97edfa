"""A learner's way from its last checkpoint on, on a rank alone, without Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raml_ray.config import Config, ConfigError, override
from raml_ray.metrics_file import read_metrics
from raml_ray.settings import SftConfig, TrainConfig
from raml_ray.stages import learners
from raml_ray.stages.context import deciding
from raml_ray.stages.course import Course, Leaving
from raml_ray.storage import Folder
from raml_ray.workers import sft_loop, sft_plan, sharding
from tests.workers import ranks, tiny


@pytest.fixture
def learner() -> Iterator[sharding.Sharded]:
    with ranks.alone():
        yield sharding.wrap(tiny.model(), TrainConfig())


def course(learner: sharding.Sharded, folder: Path, **changes: object) -> Course:
    config = override(Config(), {name.replace("__", "."): value for name, value in changes.items()})
    origin = {"settings": deciding(config, "sft"), "examples": "of 2026"}
    return Course(learner, Folder(str(folder)), origin, config)


def test_what_a_checkpoint_does_not_hold_is_made_again_and_counted(learner: sharding.Sharded, tmp_path: Path) -> None:
    first = course(learner, tmp_path)
    assert (first.start_step, first.figures) == (0, {"learner/restarts": 0, "learner/repeated_steps": 0})
    for step in (1, 2, 3, 4):
        first.report(step, {"sft/loss": 1.0 / step})
        if step == 2:
            first.save(step)
    second = course(learner, tmp_path)
    assert (second.start_step, second.figures) == (2, {"learner/restarts": 1, "learner/repeated_steps": 2})
    assert [row["step"] for row in read_metrics(Folder(str(tmp_path)))] == [1, 2]
    third = course(learner, tmp_path)
    assert third.figures == {"learner/restarts": 2, "learner/repeated_steps": 2}


def test_one_that_began_and_saved_nothing_begins_anew_and_says_so(learner: sharding.Sharded, tmp_path: Path) -> None:
    course(learner, tmp_path).report(1, {"sft/loss": 1.0})
    again = course(learner, tmp_path)
    assert (again.start_step, again.figures) == (0, {"learner/restarts": 1, "learner/repeated_steps": 1})
    assert read_metrics(Folder(str(tmp_path))) == []


def test_who_is_asked_to_leave_saves_the_step_first(learner: sharding.Sharded, tmp_path: Path) -> None:
    first = course(learner, tmp_path)
    first.report(1, {"sft/loss": 1.0})
    (tmp_path / "stop").touch()
    with pytest.raises(Leaving) as left:
        first.report(2, {"sft/loss": 0.5})
    assert left.value.step == 2
    (tmp_path / "stop").unlink()
    assert course(learner, tmp_path).start_step == 2


def test_what_was_left_out_is_counted_over_lives_also_where_one_left_right_behind_it(
    learner: sharding.Sharded, tmp_path: Path
) -> None:
    first = course(learner, tmp_path)
    for skipped in (True, False, True):
        learner.updates.note(skipped)
    first.save(3)
    learner.updates = sharding.Updates()
    again = course(learner, tmp_path)
    assert (again.start_step, learner.updates) == (3, sharding.Updates(asked=3, skipped=2, skipped_in_a_row=1))


def test_a_checkpoint_of_other_settings_is_refused_with_what_changed(learner: sharding.Sharded, tmp_path: Path) -> None:
    course(learner, tmp_path).save(1)
    with pytest.raises(ConfigError, match=r"sft\.batch_size: 64 -> 32\n.*--redo"):
        course(learner, tmp_path, sft__batch_size=32)
    # What decides no result may change.
    assert course(learner, tmp_path, train__checkpoint_every=7, train__max_failures=9).start_step == 1


def test_a_checkpoint_of_other_data_is_refused(learner: sharding.Sharded, tmp_path: Path) -> None:
    course(learner, tmp_path).save(1)
    with pytest.raises(ConfigError, match=r"examples: 'of 2026' -> 'others'"):
        Course(learner, Folder(str(tmp_path)), {"settings": deciding(Config(), "sft"), "examples": "others"}, Config())


def test_what_would_be_refused_again_is_returned_and_no_worker_dies_of_it(
    learner: sharding.Sharded, tmp_path: Path
) -> None:
    course(learner, tmp_path).save(1)
    with learners.leaving(TrainConfig()) as left:
        course(learner, tmp_path, sft__batch_size=32)
    assert "sft.batch_size: 64 -> 32" in left[learners.REFUSED]
    (tmp_path / "checkpoints" / "step-00000001" / "__0_0.distcp").write_bytes(b"")
    with learners.leaving(TrainConfig()) as left:
        course(learner, tmp_path)
    assert left[learners.REFUSED].startswith("every checkpoint is damaged")


def test_steps_left_out_in_a_row_are_no_workers_death(learner: sharding.Sharded, tmp_path: Path) -> None:
    settings, going = SftConfig(batch_size=2, num_epochs=4, learning_rate=0.5), course(learner, tmp_path)
    with torch.no_grad():
        next(iter(learner.state().values())).fill_(float("nan"))
    plan = sft_plan.plan([4], settings, 0)
    shares = tiny.shares(plan, tiny.examples(4), 0, 0, 1)
    with learners.leaving(TrainConfig()) as left:
        sft_loop.train(
            learner, plan, shares, settings, TrainConfig(), seed=0, start_step=0, report=going.report, save=going.save
        )
    assert left[learners.REFUSED].startswith(
        "sft.learning_rate=0.5: 3 updates in a row up to step 3 had no finite loss"
    )
