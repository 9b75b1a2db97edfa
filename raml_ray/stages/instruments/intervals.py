"""Intervals over trajectories or questions, for the summaries of instruments."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
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


def by_question(values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Question -> mean of its values, those that are None or not finite left out."""
    found: dict[str, list[float]] = defaultdict(list)
    for question, value in values:
        if value is not None and math.isfinite(value):
            found[question].append(float(value))
    return {question: fmean(each) for question, each in found.items()}


def over_questions(values: Mapping[str, float], seed: int, name: str) -> dict[str, Any] | None:
    """As `over_trajectories`, of one value per question."""
    return over_trajectories(values.values(), seed, name)
