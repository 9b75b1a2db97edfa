"""The paper's claims about policies, each put to the run's own evaluations: holds, does not hold, or undecided."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from raml_ray.config import Config
from raml_ray.stages.claims import answered
from raml_ray.stages.report_data import METRICS, Evaluation, Run
from raml_ray.stages.report_lineage import Origins, ancestors, recipe, setting_behind
from raml_ray.stages.report_outcomes import (
    MIN_QUESTIONS,
    NEAR_ZERO,
    PRIMARY,
    Claim,
    Measurement,
    Outcome,
    level_for,
    measured,
)

BASE, SFT, ZERO, COLD = (), ("sft",), ("grpo",), ("sft", "grpo")
# claim, better, worse
POLICY_CLAIMS = (
    ("sft-beats-base", SFT, BASE),
    ("grpo-beats-base", ZERO, BASE),
    ("sft-beats-grpo", SFT, ZERO),
    ("cold-beats-sft", COLD, SFT),
    ("cold-beats-grpo", COLD, ZERO),
)
STEADIER = "sft-steadier"


class Varied(NamedTuple):
    """A claim that the largest value of a setting beats the smallest."""

    id: str
    setting: str
    given: Mapping[str, Any]
    """What must hold in a step for the setting to have the meaning that the claim is about."""


SETTING_CLAIMS = (
    Varied("sft-more-trajectories", "sft.num_trajectories", {}),
    Varied("grpo-more-trajectories", "grpo.num_updated", {"grpo.compute_matched": False}),
    Varied("grpo-more-trajectories-matched", "grpo.num_updated", {"grpo.compute_matched": True}),
    Varied("longer-helps", "generate.oracle_length", {"generate.source": "oracle"}),
    Varied("longer-helps", "sft.length", {"sft.match_length": True}),
)
LENGTHS = {"short": 1.0, "medium": 2.0, "long": 3.0}

Pair = tuple[Evaluation, Evaluation]
"""(better, worse), as the paper has it."""


def claims(run: Run) -> list[Claim]:
    """Every claim about policies that the run has the steps for."""
    return [*_policy_claims(run), *_setting_claims(run)]


def is_near_zero(evaluations: Sequence[Evaluation]) -> bool:
    """Whether no policy answers anything: then there is nothing to compare."""
    means = [
        result.intervals["accuracy"].mean
        for one in evaluations
        for result in one.sets.values()
        if "accuracy" in result.intervals
    ]
    return bool(means) and max(means) <= NEAR_ZERO


def _policy_claims(run: Run) -> Iterator[Claim]:
    """About policies at the run's own settings, where a sweep has them; else about all that there are."""
    evaluations = [one for one in run.evaluations if one.step not in run.varied] or run.evaluations
    for name, better, worse in POLICY_CLAIMS:
        if pairs := list(_pairs(evaluations, better, worse, run.origins)):
            yield _comparison(name, pairs, run.config)
    if pairs := list(_pairs(evaluations, SFT, ZERO, run.origins)):
        yield _steadier(pairs, run.config)


def _pairs(
    evaluations: Sequence[Evaluation], better: tuple[str, ...], worse: tuple[str, ...], origins: Origins
) -> Iterator[Pair]:
    """Each policy of the one lineage with those of the other that it descends from, or with all if it does from none."""
    for one in evaluations:
        if one.lineage == better:
            others = [other for other in evaluations if other.lineage == worse]
            own = [other for other in others if other.policy in ancestors(one.policy, origins)]
            yield from ((one, other) for other in own or others)


def _setting_claims(run: Run) -> Iterator[Claim]:
    """The claims that the largest value of a setting beats the smallest, for policies that differ in nothing else."""
    origins = run.origins
    for varied in SETTING_CLAIMS:
        families: dict[tuple[tuple[str, ...], str], list[tuple[float, Evaluation]]] = defaultdict(list)
        for one in run.evaluations:
            value = _value(one.policy, origins, varied)
            if value is not None:
                families[one.lineage, recipe(one.policy, origins, varied.setting)].append((value, one))
        for lineage in sorted({lineage for lineage, _ in families}):
            pairs = [pair for key, family in families.items() if key[0] == lineage for pair in _ends_of(family)]
            if pairs:
                yield _comparison(varied.id, pairs, run.config, of=varied.setting)


def _value(policy: str, origins: Origins, varied: Varied) -> float | None:
    """The setting behind the policy as a number, a mean where several steps have it; None where none has."""
    values = setting_behind(policy, origins, varied.setting, varied.given)
    numbers = [LENGTHS.get(value) if isinstance(value, str) else float(value) for value in values]
    known = [number for number in numbers if number is not None]
    return fmean(known) if known else None


def _ends_of(family: Sequence[tuple[float, Evaluation]]) -> Iterator[Pair]:
    low, high = min(family, key=lambda pair: pair[0]), max(family, key=lambda pair: pair[0])
    if low[0] < high[0]:
        yield high[1], low[1]


def _comparison(name: str, pairs: Sequence[Pair], config: Config, *, of: str = "") -> Claim:
    """The claim that the first of each pair is better, on every set that both were asked."""
    shared, notes = _shared(pairs)
    level = level_for(len(shared))
    measurements = [
        _difference(better, worse, name, metric, config, level) for better, worse, name in shared for metric in METRICS
    ]
    notes += [
        f"{one.where}: {one.num_questions} shared questions, fewer than {MIN_QUESTIONS}: too few to decide"
        for one in measurements
        if one.decides and one.num_questions < MIN_QUESTIONS
    ]
    notes += [
        f"{one.where}: accuracy is at or near zero on both sides, the comparison is empty"
        for one in measurements
        if one.decides and one.is_empty
    ]
    return answered(name, measurements, "; ".join(dict.fromkeys(notes)), of=of)


def _shared(pairs: Sequence[Pair]) -> tuple[list[tuple[Evaluation, Evaluation, str]], list[str]]:
    """Each pair with each set that both were asked in the same way; and why others are missing."""
    notes = [note for pair in pairs if (note := _unlike(*pair))]
    alike = [pair for pair in pairs if not _unlike(*pair)]
    shared = [(*pair, name) for pair in alike for name in pair[0].values if name in pair[1].values]
    if alike and not shared:
        notes.append("no question set was given to both")
    return shared, notes


def _steadier(pairs: Sequence[Pair], config: Config) -> Claim:
    """That of what the first of each pair can answer at all, it answers more nearly always."""
    shared, notes = _shared(pairs)
    measurements = []
    for better, worse, name in shared:
        a, b = _steadiness(better, name), _steadiness(worse, name)
        values = {question: a[question] - b[question] for question in a.keys() & b.keys()}
        found = measured(
            f"{better.label} - {worse.label}",
            name,
            "mG-Pass@k / Pass@k",
            values,
            config,
            unit="of Pass@k",
            level=level_for(len(shared)),
        )
        measurements.append(unless_empty(found, better, worse))
    return answered(STEADIER, measurements, "; ".join(dict.fromkeys(notes)))


def _steadiness(evaluation: Evaluation, name: str) -> dict[str, float]:
    """Question -> a value whose mean is mean mG-Pass@k / mean Pass@k and whose spread is that ratio's (delta method)."""
    nearly_always, ever = (evaluation.values[name][metric] for metric in (PRIMARY, "pass_at_k"))
    mean = fmean(ever.values()) if ever else 0.0
    if not mean:
        return {}
    ratio = fmean(nearly_always.values()) / mean
    return {question: ratio + (nearly_always[question] - ratio * ever[question]) / mean for question in ever}


def _unlike(better: Evaluation, worse: Evaluation) -> str:
    """The settings in which the two evaluations differ, in words; empty if they can be compared."""
    differing = [name for name, value in better.protocol.items() if worse.protocol[name] != value]
    return f"{better.label} and {worse.label} were evaluated differently: {', '.join(differing)}" if differing else ""


def _is_empty(better: Evaluation, worse: Evaluation, name: str) -> bool:
    only = [replace(one, sets={name: one.sets[name]}) for one in (better, worse) if name in one.sets]
    return is_near_zero(only)


def _difference(
    better: Evaluation, worse: Evaluation, name: str, metric: str, config: Config, level: float
) -> Measurement:
    """better - worse on the questions of the set that both were asked."""
    a, b = better.values[name][metric], worse.values[name][metric]
    values = {question: a[question] - b[question] for question in a.keys() & b.keys()}
    found = measured(
        f"{better.label} - {worse.label}",
        name,
        metric,
        values,
        config,
        unit="points",
        level=level,
        decides=metric == PRIMARY,
    )
    return unless_empty(found, better, worse)


def unless_empty(measurement: Measurement, better: Evaluation, worse: Evaluation) -> Measurement:
    """The measurement, which says nothing where neither policy answers anything."""
    if not _is_empty(better, worse, measurement.where):
        return measurement
    return replace(measurement, outcome=Outcome.UNDECIDED, is_empty=True)
