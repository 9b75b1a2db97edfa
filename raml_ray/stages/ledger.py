"""Which engines died, over which shards and rows: what decides whether a row, a shard or the whole step is at fault.

Ray starts a dead engine again and gives it its shards anew, without end. The ledger is what puts an end to it. It is one
small actor beside the driver; engines tell it what they are about to do, so that it knows what they died of.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raml_ray import cluster
from raml_ray.stages.shards import question_of

ANSWERS_S = 60.0
"""A ledger that has not answered by then is gone, and the driver with it."""
WITHOUT_A_WORD = "killed, or out of memory"
MOST_FAILED_STARTS = 3
"""Engines that died while they started, in a row: more than that is no accident."""
CARELESS_DEATHS = 2
"""Engines that a shard may die with in company before it gets one to itself."""


BAD_ROWS = 2
"""Rows of one question that engines died of: it is their common prompt."""


class Care(Enum):
    """How a shard is sampled."""

    TOGETHER = "together"
    """With other shards: nothing speaks against it."""
    ALONE = "alone"
    """With no other shard in the engine, to know whether one of its rows is at fault."""
    ROW_BY_ROW = "row by row"
    """Every row with no other one in the engine, to know which."""


class Order(NamedTuple):
    """How to sample a shard, and what needs no sampling any more: row key -> one row, or why it is set aside."""

    care: Care
    kept: dict[str, pa.Table]
    set_aside: dict[str, str]
    questions: dict[str, str]
    """Questions of which no further row is to be tried, and why."""

    def against(self, question_id: str, row_key: str) -> str | None:
        """Why a row is set aside, or None if it is not."""
        if row_key in self.kept:
            return None
        return self.set_aside.get(row_key) or self.questions.get(question_id)


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
    deaths_alone: int = 0
    rows: dict[str, list[str]] = field(default_factory=dict)
    """Row -> the reasons of the engines that died with nothing else in them."""
    kept: dict[str, pa.Table] = field(default_factory=dict)


@dataclass(slots=True)
class _Engine:
    actor: str
    node: str
    since: float
    started: bool = False
    inside: dict[int, Care] = field(default_factory=dict)
    """Shards that have requests in it."""
    alone: tuple[int, str] | None = None
    """The one row that is in it."""


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
        self._nodes_lost = self._failed_starts = self._progress = 0
        self._stop = ""

    def starting(self, engine: str, actor: str, node: str) -> str:
        """An engine is about to start. Returns why it should not; empty if it should.

        What else lived in the same actor has died without a word.
        """
        for name, other in list(self._engines.items()):
            if other.actor == actor:
                self._died(name, WITHOUT_A_WORD, with_node=not self._node_is_alive(other.node))
        self._engines[engine] = _Engine(actor, node, time.monotonic())
        return self._stop

    def started(self, engine: str) -> None:
        if engine in self._engines:
            self._engines[engine].started = True
        self._progress += 1
        self._failed_starts = 0

    def works(self, engine: str) -> None:
        """The engine is alive; while it holds shards its own loop sees to it that its steps come to an end."""
        if engine in self._engines and self._engines[engine].inside:
            self._progress += 1

    def failed(self, engine: str, reason: str) -> None:
        """The engine is about to end for this reason."""
        if engine in self._engines:
            self._died(engine, reason, with_node=False)

    def stop(self, reason: str) -> None:
        """The step cannot go on: no engine is to start any more."""
        self._stop = self._stop or reason

    def order(self, shard: int) -> Order:
        """How to sample a shard now. Raises: RuntimeError if the step has to end."""
        if self._stop:
            raise RuntimeError(self._stop)
        known = self._shards.get(shard, _Shard())
        if known.deaths < CARELESS_DEATHS:
            care = Care.TOGETHER
        else:
            care = Care.ROW_BY_ROW if known.deaths_alone else Care.ALONE
        guilty = {key: reasons[-1] for key, reasons in known.rows.items() if len(reasons) >= self._limits.max_attempts}
        rows_of = Counter(question_of(key) for key in guilty)
        bad = {question_of(key): why for key, why in guilty.items() if rows_of[question_of(key)] >= BAD_ROWS}
        return Order(care, dict(known.kept), guilty, bad)

    def entered(self, engine: str, shard: int, care: Care) -> None:
        """The shard's requests are about to enter the engine."""
        if engine in self._engines:
            self._engines[engine].inside[shard] = care

    def alone(self, engine: str, shard: int, row_key: str) -> None:
        """The one row that is about to enter the engine, which holds no other."""
        if engine in self._engines:
            self._engines[engine].alone = (shard, row_key)

    def keep(self, engine: str, shard: int, row_key: str, row: pa.Table | None) -> None:
        """The row that was alone came out; what became of it need not be made again."""
        if engine in self._engines:
            self._engines[engine].alone = None
        if row is not None:
            self._shards.setdefault(shard, _Shard()).kept[row_key] = row

    def done(self, engine: str, shard: int) -> None:
        """The shard is committed."""
        if engine in self._engines:
            self._engines[engine].inside.pop(shard, None)
        self._shards.pop(shard, None)

    def report(self) -> Report:
        """How things stand; here it is noticed that an engine takes too long to start."""
        late = [e for e in self._engines.values() if not e.started and self._seconds(e) > self._limits.start_timeout_s]
        if late:
            self.stop(
                f"an engine has not started within engine.start_timeout_s={self._limits.start_timeout_s:g}:"
                " look at the engine's log, or raise the setting"
            )
        last = self._reasons[-1] if self._reasons else ""
        return Report(self._stop, self._progress, len(self._reasons), self._nodes_lost, last)

    def _seconds(self, engine: _Engine) -> float:
        return time.monotonic() - engine.since

    def _died(self, name: str, reason: str, *, with_node: bool) -> None:
        engine = self._engines.pop(name)
        self._progress += 1
        if with_node:
            self._nodes_lost += 1
            return
        self._reasons.append(reason)
        for shard, care in engine.inside.items():
            known = self._shards.setdefault(shard, _Shard())
            known.deaths += 1
            known.deaths_alone += care is not Care.TOGETHER
        if engine.alone:
            shard, row_key = engine.alone
            self._shards[shard].rows.setdefault(row_key, []).append(reason)
        self._failed_starts += not engine.started
        last = "; ".join(dict.fromkeys(self._reasons[-5:]))
        if self._failed_starts > MOST_FAILED_STARTS:
            self.stop(f"{self._failed_starts} engines in a row died while they started, the last of: {last}")
        if len(self._reasons) > self._limits.max_failures:
            self.stop(
                f"{len(self._reasons)} engines died, more than generate.max_engine_failures="
                f"{self._limits.max_failures} allows, the last of: {last}"
            )


def beside_driver(limits: Limits) -> ActorHandle:
    """A ledger on the node of the calling process, which ends with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Ledger).options(scheduling_strategy=here).remote(limits)
