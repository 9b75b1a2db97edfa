"""What Prometheus is told, by way of Ray: every node's agent serves it as `ray_raml_...` on its metrics port.

Telling costs a look-up and an addition in this process; Ray collects it every ten seconds.
"""

import threading
import time
from functools import cache
from typing import NamedTuple

from ray.util.metrics import Counter, Gauge


class Meter(NamedTuple):
    """`Meter(Gauge, "policy version that engines hold", ())`."""

    kind: type[Counter] | type[Gauge]
    meaning: str
    tags: tuple[str, ...] = ()


METERS = {
    "raml_engine_responses": Meter(Counter, "responses that engines have finished, count"),
    "raml_engine_tokens": Meter(Counter, "tokens of these responses, count"),
    "raml_pool_engines": Meter(Gauge, "rollout engines by state, count", ("state",)),
    "raml_pool_version": Meter(Gauge, "policy version that rollout engines were given last"),
    "raml_learner": Meter(Gauge, "newest value of a training step's metric, in its own unit", ("step", "metric")),
    "raml_judge_verdicts": Meter(Counter, "verdicts that judges have given, count", ("verdict",)),
}

REPEATED_S = 5.0
"""Less than the ten seconds between two reports of a process to its node's agent."""

_shown: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
"""Gauge and its tags -> what this process said last."""
_lock = threading.Lock()


@cache
def _made(name: str) -> Counter | Gauge:
    """One of each in a process: Ray refuses a second."""
    meter = METERS[name]
    return meter.kind(name, description=meter.meaning, tag_keys=meter.tags)


def count(name: str, more: float, **tags: str) -> None:
    """Add to a counter; nothing where there is nothing to add."""
    if more:
        _made(name).inc(more, tags)


def show(name: str, value: float, **tags: str) -> None:
    """Set a gauge: it has this value until it is set again, or this process ends."""
    with _lock:
        _shown[name, frozenset(tags.items())] = value
        _made(name).set(value, tags)
        _repeating()


@cache
def _repeating() -> None:
    """Begins, once in a process, to set its gauges again and again."""
    threading.Thread(target=_repeat, name="meters", daemon=True).start()


def _repeat() -> None:
    # Ray reports a gauge once for each time it is set, and its agent forgets it 20 s later.
    while True:
        time.sleep(REPEATED_S)
        with _lock:
            for (name, tags), value in _shown.items():
                _made(name).set(value, dict(tags))
