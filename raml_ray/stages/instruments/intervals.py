"""Intervals over trajectories, for the summaries of instruments."""

from collections.abc import Iterable
from typing import Any

from raml_ray import records
from raml_ray.formulas import metrics

NUM_RESAMPLES = 2000


def over_trajectories(values: Iterable[float], seed: int, name: str) -> dict[str, Any] | None:
    """Mean of one value per trajectory and its 95 % bootstrap interval, as plain values; None without any."""
    listed = list(values)
    if not listed:
        return None
    drawn = records.seed_of(seed, "analyze", name)
    return metrics.bootstrap_interval(listed, num_resamples=NUM_RESAMPLES, seed=drawn)._asdict()
