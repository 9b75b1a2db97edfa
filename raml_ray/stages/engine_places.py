"""Where a pool's engines run, and what is known of them."""

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from raml_ray.stages.engine_actor import Bucket
from raml_ray.workers.engine_loop import Together
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


class Begun(NamedTuple):
    """Where a group of requests is asked, and what it enters the engine with."""

    place: Place
    together: Together | None = None


def begun(places: Sequence[Place], num_groups: int, size: int, most: int, name: Hashable) -> list[Begun | None]:
    """Where so many groups of `size` requests begin, those of an engine together: engines in turns; nowhere unless all of
    them are healthy and idle, and hold what is theirs within `most` requests each. `name` is this wave's alone."""
    num = len(places)
    is_idle = bool(places) and all(place.state is State.HEALTHY and not place.num_under_way for place in places)
    if not is_idle or -(-num_groups // num) * size > most:
        return [None] * num_groups
    shares = [Together(name, len(range(index, num_groups, num)) * size) for index in range(num)]
    return [Begun(places[group % num], shares[group % num]) for group in range(num_groups)]


def told(error: RayError) -> str:
    """The line of Ray's trace that says what happened."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"
