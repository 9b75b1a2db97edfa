"""The rule that decides the paper's claims, fixed before any result is there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from raml_ray.config import Config
from raml_ray.formulas.metrics import Interval, bootstrap_interval
from raml_ray.records import seed_of

PRIMARY = "mg_pass_at_k"
"""The metric that decides a claim about policies; the others stand beside it."""
MIN_QUESTIONS = 10
"""On fewer, a bootstrap interval is far too narrow: two questions that agree would decide anything."""
MIN_SEEDS = 3
"""Of fewer, seeds that agree by accident would decide anything, whatever their interval."""
NEAR_ZERO = 0.02
"""Where no policy's accuracy is above this, comparisons say nothing."""
ERROR = 0.05
"""Chance that a claim gets for a verdict where there is no difference, over all the comparisons that decide it."""
# The paper names no set in its claims, so each is a claim about every set; a deciding set could be chosen to please.
# One contradicting set refutes such a claim, so each further set is a further chance of refuting it by accident: the
# intervals share ERROR out among the comparisons (Bonferroni). HOLDS needs all of them and would need no correction; it
# keeps the same level, so that a difference has one interval on the page.
RULE = (
    "A claim about policies is a claim about every question set, decided by mG-Pass@k: it holds if the difference is"
    " above zero in all its S comparisons (one per set and pair of policies), does not hold if it is below zero in one,"
    " by intervals at level 1 - 0.05 / S (so that S comparisons are not S chances to err), and is undecided otherwise; a"
    f" set with accuracy at or near zero on both sides, of two seeds, or of one and fewer than {MIN_QUESTIONS} shared questions,"
    " decides nothing."
)


class Outcome(StrEnum):
    """What the data say of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number behind a claim, positive where the paper is right."""

    comparison: str
    where: str
    """Question set, or step of the analysis."""
    metric: str
    difference: Interval | None
    level: float
    """Of the interval, in (0, 1)."""
    unit: str
    """`points` (percentage points; the difference itself is a fraction), `nats`, `tau`, `cosine`, `log ratio` or `of like places`."""
    outcome: Outcome
    num_questions: int
    decides: bool = True
    """Whether the claim hangs on it; what does not stands beside."""
    is_empty: bool = False
    """Nothing was there to compare: accuracy at or near zero on both sides."""
    num_seeds: int = 1
    """Of several, the interval is over seeds (report_seeds.py), else over questions."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the paper with what this run has to say of it."""

    id: str
    """Of stages/claims.py, which says what decides it."""
    text: str
    source: str
    outcome: Outcome
    measurements: tuple[Measurement, ...]
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The claim as plain values, intervals as mean, low and high."""
        plain = asdict(self)
        for entry, measurement in zip(plain["measurements"], self.measurements, strict=True):
            entry["difference"] = measurement.difference and measurement.difference._asdict()
        return plain


def level_for(num_comparisons: int) -> float:
    """The level of each interval where so many of them decide a claim together."""
    return 1 - ERROR / max(num_comparisons, 1)


def mean_over(values: Mapping[str, float], config: Config, level: float) -> Interval | None:
    """Mean of the questions' values with its bootstrap interval at that level; None without a question.

    As many resamples lie beyond a bound at any level as evaluate.num_bootstrap leaves beyond one at 95 %.
    """
    if not values:
        return None
    return bootstrap_interval(
        [values[question] for question in sorted(values)],
        num_resamples=math.ceil(config.evaluate.num_bootstrap * ERROR / (1 - level)),
        seed=seed_of(config.seed, "report"),
        level=level,
    )


def measured(
    comparison: str,
    where: str,
    metric: str,
    values: Mapping[str, float],
    config: Config,
    *,
    unit: str,
    level: float,
    decides: bool = True,
) -> Measurement:
    """The mean of the questions' values, and what it alone says: UNDECIDED on fewer than MIN_QUESTIONS."""
    difference = mean_over(values, config, level)
    outcome = decided(difference, len(values))
    return Measurement(comparison, where, metric, difference, level, unit, outcome, len(values), decides)


def decided(difference: Interval | None, num_questions: int) -> Outcome:
    """HOLDS if the whole interval is above zero, FAILS if it is below, else UNDECIDED, as on too few questions."""
    if difference is None or num_questions < MIN_QUESTIONS or not (difference.low > 0 or difference.high < 0):
        return Outcome.UNDECIDED
    return Outcome.HOLDS if difference.low > 0 else Outcome.FAILS


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """What comparisons say together, each at `level_for` their number: HOLDS if all do, FAILS if one does."""
    if Outcome.FAILS in outcomes:
        return Outcome.FAILS
    return Outcome.HOLDS if outcomes and set(outcomes) == {Outcome.HOLDS} else Outcome.UNDECIDED
