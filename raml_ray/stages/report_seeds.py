"""Claims over training seeds: each seed's comparisons by themselves, then their mean with its interval over seeds."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from scipy import stats

from raml_ray.formulas.metrics import Interval
from raml_ray.stages.claims import answered
from raml_ray.stages.report_data import Run, StepResult, labelled
from raml_ray.stages.report_outcomes import MIN_SEEDS, Claim, Measurement, Outcome

COMPARED = ("evaluate", "analyze", "grpo")
"""Stages whose results are held against each other."""
SEED_IN_NAME = re.compile(r"_seed_\d+")


def seeds_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean over seeds with its interval by Student's t at that level; one seed has no interval (NaN).

    Source: the usual small-sample interval; the seeds' values are taken for normal.
    """
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def seeds(run: Run) -> list[int]:
    """The seeds that the run's results are of."""
    return sorted({int(step.settings["seed"]) for step in run.steps if step.stage in COMPARED and _has_seed(step)})


def over_seeds(run: Run, found_in: Callable[[Run], Sequence[Claim]]) -> list[Claim]:
    """The claims that `found_in` has of the run; where it has several seeds, of each seed alone and then pooled."""
    numbers = seeds(run)
    if len(numbers) < 2:
        return list(found_in(run))
    by_claim: dict[tuple[str, str], list[Claim]] = {}
    for seed in numbers:
        for claim in found_in(_of_seed(run, seed)):
            by_claim.setdefault((claim.id, claim.text), []).append(claim)
    return [_pooled(claims) for claims in by_claim.values()]


def _has_seed(step: StepResult) -> bool:
    return step.settings.get("seed") is not None


def _of_seed(run: Run, seed: int) -> Run:
    """The run without the results of other seeds, and with labels that name none."""
    steps = tuple(
        step for step in run.steps if step.stage not in COMPARED or not _has_seed(step) or step.settings["seed"] == seed
    )
    names = {step.name for step in steps}
    evaluations = labelled([one for one in run.evaluations if one.step in names])
    return replace(run, steps=steps, evaluations=tuple(evaluations))


def _pooled(claims: Sequence[Claim]) -> Claim:
    """One claim of several seeds'."""
    by_comparison: dict[tuple[str, str, str], list[Measurement]] = {}
    for claim in claims:
        for one in claim.measurements:
            key = (_seedless(one.comparison), _seedless(one.where), one.metric)
            by_comparison.setdefault(key, []).append(one)
    measurements = [_mean(comparison, where, found) for (comparison, where, _), found in by_comparison.items()]
    fewest = min((one.num_seeds for one in measurements if one.decides), default=MIN_SEEDS)
    notes = dict.fromkeys(_seedless(claim.note) for claim in claims if claim.note and not claim.measurements)
    if fewest < MIN_SEEDS:
        notes[f"{fewest} seeds, fewer than {MIN_SEEDS}: too few to decide"] = None
    if any(one.is_empty for one in measurements if one.decides):
        notes["accuracy is at or near zero on both sides of a comparison, which is empty"] = None
    first = claims[0]
    return replace(answered(first.id, measurements, "; ".join(notes)), text=first.text)


def _mean(comparison: str, where: str, found: Sequence[Measurement]) -> Measurement:
    """The seeds' differences as one, at the strictest of their levels."""
    values = [one.difference.mean for one in found if one.difference is not None]
    level = max(one.level for one in found)
    difference = seeds_interval(values, level) if values else None
    is_empty = any(one.is_empty for one in found)
    outcome = Outcome.UNDECIDED
    if difference is not None and len(values) >= MIN_SEEDS and not is_empty:
        outcome = Outcome.HOLDS if difference.low > 0 else Outcome.FAILS if difference.high < 0 else outcome
    return replace(
        found[0],
        comparison=comparison,
        where=where,
        difference=difference,
        level=level,
        outcome=outcome,
        num_questions=sum(one.num_questions for one in found),
        is_empty=is_empty,
        num_seeds=len(values),
    )


def _seedless(text: str) -> str:
    return SEED_IN_NAME.sub("", text)
