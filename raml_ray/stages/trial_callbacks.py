"""What the driver of a sweep says and does when a trial begins and ends."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.util import get_placement_group, remove_placement_group

logger = logging.getLogger(__name__)


class TrialCallbacks(tune.Callback):
    """A line when a trial begins and one when it ends; and of one that was ended amid its steps, its engines' room is given
    back.

    A process of Tune's that is killed takes along what it started, but for its placement groups: Ray keeps those of an
    actor until the job ends, too, and the next trial would wait for their CPUs for ever. Ray Train sees to its own.
    """

    def __init__(self, reserved: Mapping[str, Sequence[str]]) -> None:
        """`reserved`: trial -> names of the placement groups that its steps make."""
        self._reserved = reserved
        self._began: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        name = trial.config["trial"]
        self._began[name] = time.monotonic()
        logger.info("trial %d of %d: %s", len(self._began), len(self._reserved), name)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended(trial, "ended after")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended(trial, "failed after")

    def _ended(self, trial: Trial, how: str) -> None:
        name = trial.config["trial"]
        began = self._began.get(name, time.monotonic())  # none where its process could not be started
        logger.info("trial %s %s %.1f s", name, how, time.monotonic() - began)
        for group in self._reserved[name]:
            with contextlib.suppress(ValueError):  # none of that name is left, as after every step that ran to its end
                remove_placement_group(get_placement_group(group))
