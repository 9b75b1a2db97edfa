"""A learner's way from its last checkpoint on, on a rank alone, without Ray."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from raml_ray.config import Config, ConfigError, override
from raml_ray.metrics_file import read_metrics
from raml_ray.settings import TrainConfig
from raml_ray.stages.context import deciding
from raml_ray.stages.course import Course, Leaving
from raml_ray.storage import Folder
from raml_ray.workers import sharding
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
