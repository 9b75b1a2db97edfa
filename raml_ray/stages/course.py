"""What a learner's loop reports to and saves through, from its last checkpoint on. Only ranks import this."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NoReturn

from raml_ray import stopping
from raml_ray.config import Config, ConfigError
from raml_ray.metrics_file import MetricsFile, read_metrics
from raml_ray.stages import meters
from raml_ray.stages.context import changes
from raml_ray.storage import Folder
from raml_ray.workers import checkpoints

if TYPE_CHECKING:
    from raml_ray.workers.sharding import Sharded

logger = logging.getLogger(__name__)

CHECKPOINTS, RESTARTS = "checkpoints", "restarts.json"
UPDATES = "updates"
"""What a checkpoint remembers beside the origin: how many optimizer steps were made and left out."""


class Leaving(Exception):
    """Every rank leaves its loop here: the step is saved, and SIGTERM asked for it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"left after step {step}")
        self.step = step


class Course:
    """A rank's way from the last checkpoint on. Every method is a collective: all ranks call it alike."""

    def __init__(self, learner: "Sharded", folder: Folder, origin: Mapping[str, Any], config: Config) -> None:
        """Fills the learner from the newest whole checkpoint, if there is one, and cuts the metrics back to it.

        Raises: ConfigError if that was saved for another `origin` (what decides the step's result), with what changed.
        """
        self._learner, self._folder, self._origin = learner, folder, json.loads(json.dumps(origin))
        self._keep = config.train.keep_checkpoints
        found = checkpoints.load(folder.file(CHECKPOINTS), learner.state())
        if found:
            learner.refresh()
        was = dict(found.extra) if found else {}
        learner.updates = replace(learner.updates, **was.pop(UPDATES, {}))
        if found and (changed := changes(was, self._origin)):
            raise ConfigError(
                f"{folder.file(CHECKPOINTS)} was made with something else:\n  " + "\n  ".join(changed) + "\n"
                f"start it anew with --redo {folder.name}"
            )
        self.start_step = found.step if found else 0
        """The steps that the checkpoint holds; 0 without one."""
        self.figures: dict[str, float] = {}
        """The newest metrics, and on rank 0 what this step has been through."""
        self._saved = self.start_step
        self._metrics: MetricsFile | None = None
        if learner.rank == 0:
            self._count_repeated()
            self._metrics = MetricsFile(folder)
            # Without a checkpoint all is made again, what is told of step 0 included.
            self._metrics.truncate_after(self.start_step if found else -1)

    def _count_repeated(self) -> None:
        """Notes from where this life of the learners goes on, and how many steps of the one before it has to repeat."""
        lives = self._folder.read_json(RESTARTS) if self._folder.exists(RESTARTS) else []
        steps = [int(row["step"]) for row in read_metrics(self._folder)]
        if steps or self.start_step:
            repeated = max(steps, default=0) - self.start_step
            lives.append({"from_step": self.start_step, "repeated_steps": max(repeated, 0)})
            self._folder.write_json(RESTARTS, lives)
            logger.info("learners go on after step %d, %d steps are made again", self.start_step, repeated)
        self.figures = {
            "learner/restarts": len(lives),
            "learner/repeated_steps": sum(life["repeated_steps"] for life in lives),
        }

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is made. Raises: Leaving, when it is saved, if the learners are to leave."""
        self.figures |= metrics
        if self._metrics:
            self._metrics.append(step, metrics)
            for name, value in metrics.items():
                meters.show("raml_learner", value, step=self._folder.name, metric=name)
        if self._learner.largest(self._learner.rank == 0 and stopping.is_requested(self._folder.path)):
            self._leave(step)

    def _leave(self, step: int) -> NoReturn:
        self.save(step)
        raise Leaving(step)

    def save(self, step: int) -> None:
        """Raises: checkpoints.CannotSave, on all ranks alike."""
        if step > self._saved:
            extra = {**self._origin, UPDATES: asdict(self._learner.updates)}
            checkpoints.save(self._folder.file(CHECKPOINTS), step, self._learner.state(), extra, keep=self._keep)
            self._saved = step
