"""Faults on purpose: what a run has to come through is made to happen, at a planned moment, inside the very process.

A plan is words `ROLE:RANK:STEP:HOW`, for example `learner:1:3:kill9 pool:0:5:exit`; RANK may be `*`, which is the first
to come by. Every fault befalls once, however often the run starts again: a marker in its folder says that it has, when,
and whom. Without a plan `reach` and `factor` cost a look at an empty tuple.

| role | rank | step | befalls |
|---|---|---|---|
| learner | the learner's rank | the step (of GRPO: the version) that is made | before its gradients |
| checkpoint | the learner's rank | the step that is saved | before its files are written |
| commit | the learner's rank | the step that is saved | files are written, the checkpoint does not count yet |
| pool | 0 | the version that is made | its trajectories are sampled and not yet judged |
| engine | 0 | the shard (of GRPO: the version) that is made | as its requests enter |
"""

import json
import logging
import math
import os
import platform
import resource
import signal
import time
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

ROLES = ("learner", "checkpoint", "commit", "pool", "engine")
HOWS = ("kill9", "exit", "exc", "hang", "nan", "enospc")
HANG_S = 3600.0
LEFT_BYTES = 4096
"""What a file may grow to once a process has no more space: real writes fail then (EFBIG), and no root is needed."""


class Injected(RuntimeError):
    """What `exc` raises."""


class Fault(NamedTuple):
    """One word of a plan: `Fault("learner", 1, 3, "kill9")`."""

    role: str
    rank: int | None
    """None: whoever comes by first."""
    step: int
    how: str

    @property
    def name(self) -> str:
        return f"{self.role}-{'any' if self.rank is None else self.rank}-{self.step}-{self.how}"


_plan: tuple[Fault, ...] = ()
_folder = Path()
_spoilt = False


def parse(plan: str) -> tuple[Fault, ...]:
    """The faults of a plan. Raises: ValueError that names the word and what may stand there."""
    faults = []
    for word in plan.split():
        role, *others = word.split(":")
        try:
            rank, step, how = others
            fault = Fault(role, None if rank == "*" else int(rank), int(step), how)
        except ValueError:
            raise ValueError(
                f"{word!r} is no ROLE:RANK:STEP:HOW with numbers (RANK may be *), for example learner:1:3:kill9"
            ) from None
        if role not in ROLES or how not in HOWS:
            raise ValueError(f"{word!r}: the role is one of {', '.join(ROLES)}, what befalls it of {', '.join(HOWS)}")
        if how == "nan" and role != "learner":
            raise ValueError(f"{word!r}: only a learner's gradients can be spoilt, as in learner:{rank}:{step}:nan")
        faults.append(fault)
    return tuple(faults)


def arm(plan: str, folder: str) -> None:
    """From here on this process comes by these faults; their markers are in that folder. An empty plan disarms it.

    Raises: ValueError as `parse`.
    """
    global _plan, _folder
    _plan, _folder = parse(plan), Path(folder)


def reach(role: str, rank: int, step: int) -> None:
    """Says where this process has come to. Does not return if it dies of that; Raises: Injected."""
    for fault in _plan:
        if (fault.role, fault.step) == (role, step) and fault.rank in (None, rank) and _is_first(fault, rank):
            logger.warning("drill: %s befalls process %d", fault.name, os.getpid())
            _befall(fault)


def factor() -> float:
    """What the next loss is to be multiplied with: 1, or nan once if it is to be spoilt."""
    global _spoilt
    if not _spoilt:
        return 1.0
    _spoilt = False
    return math.nan


def _is_first(fault: Fault, rank: int) -> bool:
    """Whether it has not befallen anyone yet; from now on it has."""
    _folder.mkdir(parents=True, exist_ok=True)
    who = {"rank": rank, "pid": os.getpid(), "host": platform.node(), "time": round(time.time(), 3)}
    try:
        descriptor = os.open(_folder / f"{fault.name}.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        json.dump(who, file)
        file.flush()
        os.fsync(file.fileno())
    return True


def _befall(fault: Fault) -> None:
    global _spoilt
    match fault.how:
        case "kill9":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(1)
        case "exc":
            raise Injected(f"drill: {fault.name}")
        case "hang":
            time.sleep(HANG_S)
        case "nan":
            _spoilt = True
        case "enospc":
            resource.setrlimit(resource.RLIMIT_FSIZE, (LEFT_BYTES, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
