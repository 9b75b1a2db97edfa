"""What Prometheus is told, by way of Ray: every node's agent serves it as `ray_raml_...` on its metrics port.

Telling costs a look-up and an addition in this process; Ray collects it every ten seconds.
"""

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
    """Set a gauge."""
    _made(name).set(value, tags)
