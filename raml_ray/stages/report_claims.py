"""The paper's claims about policies, each put to the run's own evaluations: holds, does not hold, or undecided."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from raml_ray.config import Config
from raml_ray.stages.report_data import METRICS, Evaluation, Run
from raml_ray.stages.report_lineage import Origins, ancestors, lineage_name, recipe, setting_behind
from raml_ray.stages.report_outcomes import (
    MIN_QUESTIONS,
    NEAR_ZERO,
    PRIMARY,
    Claim,
    Measurement,
    Outcome,
    joined,
    level_for,
    measured,
)

BASE, SFT, ZERO, COLD = (), ("sft",), ("grpo",), ("sft", "grpo")
# better, worse, where the paper says so
POLICY_CLAIMS = (
    (SFT, BASE, "Fig. 7"),
    (ZERO, BASE, "Fig. 7"),
    (SFT, ZERO, "Table 2"),
    (COLD, SFT, "Tables 2 and 3"),
    (COLD, ZERO, "Table 3"),
)
# setting, what more of it is called, where the paper says so
SETTING_CLAIMS = (
    ("sft.num_trajectories", "SFT on more trajectories per question is better", "Fig. 8"),
    ("grpo.num_updated", "GRPO that updates on more trajectories per question is better", "Fig. 9"),
    ("generate.oracle_length", "SFT on longer trajectories is better", "Table 2"),
)
LENGTHS = {"short": 1.0, "long": 2.0}
GIVEN = {"generate.oracle_length": {"generate.source": "oracle"}}
"""Setting -> what must hold in a step for the setting to have an effect there."""

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
    origins = run.origins
    for better, worse, source in POLICY_CLAIMS:
        pairs = []
        for one in run.evaluations:
            if one.lineage == better:
                others = [other for other in run.evaluations if other.lineage == worse]
                own = [other for other in others if other.policy in ancestors(one.policy, origins)]
                pairs += [(one, other) for other in own or others]
        if pairs:
            yield _comparison(f"{lineage_name(better)} is better than {lineage_name(worse)}", source, pairs, run.config)


def _setting_claims(run: Run) -> Iterator[Claim]:
    """The claims that the largest value of a setting beats the smallest, for policies that differ in nothing else."""
    origins = run.origins
    for setting, text, source in SETTING_CLAIMS:
        families: dict[tuple[tuple[str, ...], str], list[tuple[float, Evaluation]]] = defaultdict(list)
        for one in run.evaluations:
            value = _value(one.policy, origins, setting)
            if value is not None:
                families[one.lineage, recipe(one.policy, origins, setting)].append((value, one))
        for lineage in sorted({lineage for lineage, _ in families}):
            pairs = [pair for key, family in families.items() if key[0] == lineage for pair in _ends_of(family)]
            if pairs:
                yield _comparison(f"{text} ({setting})", source, pairs, run.config)


def _value(policy: str, origins: Origins, setting: str) -> float | None:
    """The setting behind the policy as a number, a mean where several steps have it; None where none has."""
    values = setting_behind(policy, origins, setting, GIVEN.get(setting, {}))
    return fmean(LENGTHS.get(value) or float(value) for value in values) if values else None


def _ends_of(family: Sequence[tuple[float, Evaluation]]) -> Iterator[Pair]:
    low, high = min(family, key=lambda pair: pair[0]), max(family, key=lambda pair: pair[0])
    if low[0] < high[0]:
        yield high[1], low[1]


def _comparison(text: str, source: str, pairs: Sequence[Pair], config: Config) -> Claim:
    """The claim that the first of each pair is better, on every set that both were asked."""
    notes = [note for pair in pairs if (note := _unlike(*pair))]
    alike = [pair for pair in pairs if not _unlike(*pair)]
    shared = [(*pair, name) for pair in alike for name in pair[0].values if name in pair[1].values]
    level = level_for(len(shared))
    measurements = tuple(
        _difference(better, worse, name, metric, config, level) for better, worse, name in shared for metric in METRICS
    )
    deciding = [one for one in measurements if one.metric == PRIMARY]
    notes += [
        f"{one.where}: {one.num_questions} shared questions, fewer than {MIN_QUESTIONS}: too few to decide"
        for one in deciding
        if one.num_questions < MIN_QUESTIONS
    ]
    notes += [
        f"{name}: accuracy is at or near zero on both sides, the comparison is empty"
        for better, worse, name in shared
        if _is_empty(better, worse, name)
    ]
    if alike and not shared:
        notes.append("no question set was given to both")
    return Claim(text, source, joined([one.outcome for one in deciding]), measurements, "; ".join(dict.fromkeys(notes)))


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
    found = measured(f"{better.label} - {worse.label}", name, metric, values, config, unit="points", level=level)
    return replace(found, outcome=Outcome.UNDECIDED) if _is_empty(better, worse, name) else found
