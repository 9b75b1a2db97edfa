"""What the tracker's thread is told to do: `tracking.py` is who does it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raml_ray.storage import Folder

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, slots=True)
class Start:
    """Begin the run of a step, or of the whole run where `step` is empty."""

    step: str
    folder: Folder
    params: Mapping[str, object]
    tags: Mapping[str, str]
    config: str = ""
    """Kept beside the whole run as config.json: a tag holds no more than 8,000 characters."""
    parent: Folder | None = None
    """The folder whose run this one lies in; of a step it is the whole run."""


@dataclass(frozen=True, slots=True)
class TrialPlace:
    """A trial of a sweep: its run lies in the sweep's, and its steps in the trial's, wherever their folders are."""

    folder: Folder
    """The trial's own."""
    values: Mapping[str, object]
    """Dotted setting -> value: what makes it this trial."""


@dataclass(frozen=True, slots=True)
class Finish:
    step: str
    status: Status
    figures: Mapping[str, float]
    artifacts: Sequence[str]
    milliseconds: int = field(default_factory=lambda: int(time.time() * 1000))
    """When it ended, since the epoch: sent again, the same figure stays one."""
