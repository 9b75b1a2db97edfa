"""Where a pool's engines run, and what is known of them."""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from raml_ray.stages.engine_actor import Bucket
from raml_ray.workers.sync_check import Probe


class State(StrEnum):
    HEALTHY = "healthy"
    """Answers, and holds the newest weights: the only one that is asked for trajectories."""
    STALE = "stale"
    """Answers, but has not taken over the newest weights yet, or not been held to their probe."""
    DEAD = "dead"
    """Has been ended; another engine is on its way to its place."""
    RETIRED = "retired"
    """Failed more than grpo.max_engine_failures times in a row: its place stays empty."""


class EngineLost(RuntimeError):
    """An engine failed while it was asked. What became of its place is the group's business, the question is not."""


@dataclass(slots=True, eq=False)
class Published:
    """Weights that every engine is to hold."""

    version: int
    buckets: list[Bucket] | None
    """The learner's at first, then the pool's own copies. None where learners send them themselves, to the engines that
    are up when they do."""
    probe: Probe | None
    """What a replacement is held to; None if the engines have no weights that could disagree."""
    cuts: bool
    """Whether what is under way is ended when they come."""


@dataclass(slots=True)
class Place:
    """Where an engine runs, one after the other if need be."""

    index: int
    actor: ActorHandle | None = None
    state: State = State.DEAD
    held: Published | None = None
    """What its engine holds and was checked on."""
    is_replacement: bool = False
    """Its engine was started when others had been given weights already."""
    in_transfer: bool = False
    """Learners are sending it weights."""
    num_under_way: int = 0
    failures: int = 0
    """Of its engines in a row, none of which has answered a request."""
    why: str = ""
    """What the last one failed of."""
    updating: asyncio.Lock = field(default_factory=asyncio.Lock)


def told(error: RayError) -> str:
    """The line of Ray's trace that says what happened."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"
