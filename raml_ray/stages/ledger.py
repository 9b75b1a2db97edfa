"""Which engines died, over which shards and rows: what decides whether a row, a shard or the whole step is at fault.

Ray starts a dead engine again and gives it its shards anew, without end. The ledger is what puts an end to it. It is one
small actor beside the driver; engines tell it what they are about to do, so that it knows what they died of.

A shard that engines keep dying with is sampled in batches, each with nothing else in the engine: first all of its rows;
a batch that an engine died of is halved until the row is known. Batches that came out are kept meanwhile.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from raml_ray import cluster
from raml_ray.records import Rejected
from raml_ray.stages.shards import question_of

ANSWERS_S = 60.0
"""A ledger that has not answered by then is gone, and the driver with it."""
WITHOUT_A_WORD = "killed, or out of memory"
MOST_FAILED_STARTS = 3
"""Engines that died while they started, in a row: more than that is no accident, unless another engine works."""
CARELESS_DEATHS = 2
"""Engines that a shard may die with in company before its rows are looked at."""
BAD_ROWS = 2
"""Rows of one question that engines died of: it is their common prompt."""
MOST_GUILTY = 4
"""Rows found guilty in a row, while nothing came out: more than that speak against the engines, not against rows."""

Batch = tuple[str, ...]
"""Keys of rows that are in an engine together, and nothing else with them."""


class Part(NamedTuple):
    """What came out of an engine: answered rows, and those that it refused."""

    rows: pa.Table
    rejected: list[Rejected]


class Order(NamedTuple):
    """How to sample a shard."""

    batches: list[Batch] | None
    """What is left to sample, one batch after the other; None: all rows, and other shards beside them."""
    kept: list[Part]
    """What came out before, and needs no sampling any more."""
    set_aside: dict[str, str]
    """Rows that are not to be tried any more, and why."""


class Report(NamedTuple):
    """What the driver asks for every other second."""

    stop: str
    """Why the step has to end; empty if it does not."""
    progress: int
    """Grows with every start and death of an engine, and while one that holds shards says that it works on them."""
    engine_failures: int
    nodes_lost: int
    """Engines that went with their node, which speaks against no row."""
    last_reason: str
    """What the last engine died of."""


@dataclass(slots=True)
class _Shard:
    deaths: int = 0
    batches: list[Batch] | None = None
    """None until the shard is sampled with care."""
    reasons: dict[str, list[str]] = field(default_factory=dict)
    """Row -> what engines died of that held nothing else."""
    set_aside: dict[str, str] = field(default_factory=dict)
    kept: list[Part] = field(default_factory=list)


@dataclass(slots=True)
class _Engine:
    actor: str
    node: str
    since: float
    started: bool = False
    inside: dict[int, Batch | None] = field(default_factory=dict)
    """Shards that have requests in it; of one that is sampled with care, the batch."""


class Limits(NamedTuple):
    """When to give up."""

    max_failures: int
    max_attempts: int
    start_timeout_s: float


class Ledger:
    """Every method returns at once. `engine` names one life of an engine, `actor` what Ray starts anew after a death.

    The last words of an engine whose death is known already change nothing about it.
    """

    def __init__(self, limits: Limits, node_is_alive: Callable[[str], bool] = cluster.node_is_alive) -> None:
        self._limits, self._node_is_alive = limits, node_is_alive
        self._engines: dict[str, _Engine] = {}
        self._shards: dict[int, _Shard] = {}
        self._reasons: list[str] = []
        self._nodes_lost = self._progress = 0
        self._in_vain = self._guilty = 0
        """Engines that died, and rows found guilty, since something came out of an engine."""
        self._failed_starts, self._any_started = 0, False
        self._stop = ""

    def starting(self, engine: str, actor: str, node: str) -> str:
        """An engine is about to start. Returns why it should not; empty if it should.

        What else lived in the same actor has died without a word.
        """
        for name, other in list(self._engines.items()):
            if other.actor == actor:
                self._died(name, self._lateness(other) or WITHOUT_A_WORD)
        self._engines[engine] = _Engine(actor, node, time.monotonic())
        return self._stop

    def started(self, engine: str) -> bool:
        """The engine is there. Returns whether it is still wanted: one that took too long is not."""
        if engine not in self._engines:
            return False
        self._engines[engine].started = self._any_started = True
        self._progress += 1
        self._failed_starts = 0
        return True

    def works(self, engine: str) -> None:
        """The engine is alive; while it holds shards its own loop sees to it that its steps come to an end."""
        if engine in self._engines and self._engines[engine].inside:
            self._progress += 1

    def failed(self, engine: str, reason: str) -> None:
        """The engine is about to end for this reason."""
        if engine in self._engines:
            self._died(engine, reason, on_its_own=True)

    def stop(self, reason: str) -> None:
        """The step cannot go on: no engine is to start any more."""
        self._stop = self._stop or reason

    def order(self, shard: int, rows: Sequence[str]) -> Order:
        """How to sample a shard that has these rows now. Raises: RuntimeError if the step has to end."""
        if self._stop:
            raise RuntimeError(self._stop)
        known = self._shards.get(shard)
        if known is None or known.deaths < CARELESS_DEATHS:
            return Order(None, [], {})
        if known.batches is None:
            known.batches = [tuple(rows)] if rows else []
        return Order(list(known.batches), list(known.kept), dict(known.set_aside))

    def entered(self, engine: str, shard: int, batch: Batch | None) -> None:
        """The shard's requests, or those of one batch of it, are about to enter the engine."""
        if engine in self._engines:
            self._engines[engine].inside[shard] = batch

    def left(self, engine: str, shard: int, part: Part | None) -> None:
        """All of them came out; `part` is what became of a batch, which need not be made again."""
        if engine not in self._engines:
            return
        batch = self._engines[engine].inside.pop(shard, None)
        self._in_vain = self._guilty = 0
        known = self._shards.get(shard)
        if part and known and known.batches and batch in known.batches:
            known.batches.remove(batch)
            known.kept.append(part)

    def done(self, shard: int) -> None:
        """The shard is committed."""
        self._shards.pop(shard, None)

    def report(self) -> Report:
        """How things stand; here it is noticed that an engine takes too long to start, or that its node is gone."""
        for name, engine in list(self._engines.items()):
            late = self._lateness(engine)
            if late or not self._node_is_alive(engine.node):
                self._died(name, late)
        last = self._reasons[-1] if self._reasons else ""
        return Report(self._stop, self._progress, len(self._reasons), self._nodes_lost, last)

    def _lateness(self, engine: _Engine) -> str:
        """What is to be said of an engine that should have started by now; empty of any other."""
        limit = self._limits.start_timeout_s
        if engine.started or time.monotonic() - engine.since <= limit:
            return ""
        return f"not started within engine.start_timeout_s={limit:g}: look at the engine's log, or raise the setting"

    def _died(self, name: str, reason: str, *, on_its_own: bool = False) -> None:
        engine = self._engines.pop(name)
        self._progress += 1
        if not on_its_own and not self._node_is_alive(engine.node):
            self._nodes_lost += 1
            return
        self._reasons.append(reason)
        self._in_vain += engine.started
        self._failed_starts += not engine.started
        for shard, batch in engine.inside.items():
            self._blame(shard, batch, reason)
        self._judge(late=bool(self._lateness(engine)))

    def _blame(self, shard: int, batch: Batch | None, reason: str) -> None:
        known = self._shards.setdefault(shard, _Shard())
        known.deaths += 1
        if batch is None or not known.batches or batch not in known.batches:
            return
        if len(batch) > 1:
            place, half = known.batches.index(batch), len(batch) // 2
            known.batches[place : place + 1] = [batch[:half], batch[half:]]
            return
        reasons = known.reasons.setdefault(batch[0], [])
        reasons.append(reason)
        if len(reasons) >= self._limits.max_attempts:
            self._set_aside(known, batch[0], reason)

    def _set_aside(self, known: _Shard, row: str, reason: str) -> None:
        """The row is guilty. With a second one of its question all that have not come out yet go with it."""
        known.set_aside[row] = reason
        assert known.batches is not None
        question, guilty = question_of(row), Counter(map(question_of, known.set_aside))
        if guilty[question] >= BAD_ROWS:
            waiting = (key for batch in known.batches for key in batch)
            known.set_aside |= {key: reason for key in waiting if question_of(key) == question and key != row}
        left = (tuple(key for key in batch if key not in known.set_aside) for batch in known.batches)
        known.batches = [batch for batch in left if batch]
        self._guilty += 1
        if self._guilty <= MOST_GUILTY:
            self._in_vain = 0

    def _judge(self, *, late: bool) -> None:
        """Ends the step if it is no row that is at fault."""
        last = "; ".join(dict.fromkeys(self._reasons[-5:]))
        if late and not self._any_started and not self._engines:
            self.stop(f"no engine has started: {last}")
        if self._failed_starts > MOST_FAILED_STARTS and not any(e.started for e in self._engines.values()):
            self.stop(f"{self._failed_starts} engines in a row died while they started, the last of: {last}")
        if self._in_vain > self._limits.max_failures:
            self.stop(
                f"{self._in_vain} engines died and nothing came out in between, more than engine.max_failures="
                f"{self._limits.max_failures} allows, the last of: {last}"
            )


def beside_driver(limits: Limits) -> ActorHandle:
    """A ledger on the node of the calling process, which ends with it."""
    return ray.remote(num_cpus=0)(Ledger).options(scheduling_strategy=cluster.beside_this()).remote(limits)
