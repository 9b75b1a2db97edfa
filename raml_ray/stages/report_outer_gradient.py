"""The claim that the outer gradient varies less with more updated trajectories, from what GRPO measured on the way."""

import math
from collections import defaultdict
from collections.abc import Iterator

from raml_ray.stages.claims import answered
from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_lineage import recipe
from raml_ray.stages.report_outcomes import Claim, level_for, measured

CLAIM, VARIANCE, SETTING = "gradient-variance-falls", "grpo/gradient_variance", "grpo.num_updated"

Ends = tuple[StepResult, StepResult]
"""The fewest and the most updated trajectories."""


def claims(run: Run) -> list[Claim]:
    """The claim, if GRPO steps that differ in the number of updated trajectories alone measured the variance."""
    ends = list(_ends(run))
    level = level_for(len(ends))
    measurements = []
    for fewest, most in ends:
        ratios = _log_ratios(fewest, most)
        by_arithmetic = _by_arithmetic(fewest, most)
        for metric, values, decides in (
            ("log ratio of gradient variances, fewest over most", ratios, True),
            ("the same, less that of drawing without putting back", _less(ratios, by_arithmetic), False),
        ):
            name = f"{fewest.name} / {most.name}"
            measurements.append(
                measured(name, "versions", metric, values, run.config, unit="", level=level, decides=decides)
            )
    return [answered(CLAIM, measurements, of=SETTING)] if measurements else []


def _ends(run: Run) -> Iterator[Ends]:
    origins = run.origins
    families: dict[str, list[StepResult]] = defaultdict(list)
    for step in run.of_stage("grpo"):
        if any(row.get(VARIANCE) for row in step.metrics):
            families[recipe(step.name, origins, SETTING)].append(step)
    for family in families.values():
        ordered = sorted(family, key=_num_updated)
        if _num_updated(ordered[0]) < _num_updated(ordered[-1]):
            yield ordered[0], ordered[-1]


def _num_updated(step: StepResult) -> int:
    return int(step.settings[SETTING])


def _log_ratios(fewest: StepResult, most: StepResult) -> dict[str, float]:
    """Policy version -> log of the one's variance over the other's, of versions at which both vary."""
    variances = [
        {f"{int(row['step'])}": row[VARIANCE] for row in step.metrics if row.get(VARIANCE)} for step in (fewest, most)
    ]
    few, many = variances
    return {version: math.log(few[version] / many[version]) for version in few.keys() & many.keys()}


def _by_arithmetic(fewest: StepResult, most: StepResult) -> float:
    """The log ratio for any fixed set of G gradients: the variance of n drawn without putting back is in proportion to
    1/n - 1/G (the finite population correction)."""
    group = int(fewest.settings["grpo.num_trajectories"])
    few, many = _num_updated(fewest), _num_updated(most)
    return math.log((1 / few - 1 / group) / (1 / many - 1 / group)) if many < group else math.inf


def _less(values: dict[str, float], expected: float) -> dict[str, float]:
    return {} if math.isinf(expected) else {version: value - expected for version, value in values.items()}
