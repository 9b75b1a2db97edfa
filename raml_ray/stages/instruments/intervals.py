"""Intervals over trajectories or questions, for the summaries of instruments."""

from collections.abc import Iterable, Mapping, Sequence
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


def over_questions(values: Mapping[str, Sequence[float]], seed: int, name: str) -> dict[str, Any] | None:
    """Mean of the questions' means and its 95 % bootstrap interval over questions, as plain values; None without any."""
    return over_trajectories([fmean(each) for each in values.values()], seed, name)
