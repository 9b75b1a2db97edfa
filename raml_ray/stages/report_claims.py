"""The paper's claims, each put to the run's own data: holds, does not hold, or undecided."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any

from raml_ray.config import Config, flatten
from raml_ray.formulas.lhat import ema, kendall_tau
from raml_ray.formulas.metrics import Interval, bootstrap_interval, paired_difference
from raml_ray.records import seed_of
from raml_ray.stages.report_data import (
    METRICS,
    Curve,
    Evaluation,
    Run,
    StepResult,
    ancestors,
    interval,
    lineage_name,
    parents_of,
)

PRIMARY = "mg_pass_at_k"
"""The metric that decides a claim about policies; the others stand beside it."""
NEAR_ZERO = 0.02
"""Where no policy's accuracy is above this, comparisons say nothing."""

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
    unit: str
    """`points` (percentage points; the difference itself is a fraction), `nats` or `tau`."""
    outcome: Outcome
    num_questions: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the paper with what this run has to say of it."""

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


def claims(run: Run, curves_by_step: Mapping[str, Sequence[Curve]]) -> list[Claim]:
    """Every claim that the run has the steps for; `curves_by_step` are those of its analyze steps."""
    found = [*_policy_claims(run), *_setting_claims(run), *_length_claims(run)]
    for step in run.of_stage("analyze"):
        rows = curves_by_step[step.name]
        found += [_falls_before_leak(step, rows, run.config), _ends_differ(step, rows, run.config)]
    return found


def is_near_zero(evaluations: Sequence[Evaluation]) -> bool:
    """Whether no policy answers anything: then there is nothing to compare."""
    means = [result.intervals["accuracy"].mean for one in evaluations for result in one.sets.values()]
    return bool(means) and max(means) <= NEAR_ZERO


def decided(difference: Interval | None) -> Outcome:
    """HOLDS if the whole interval is above zero, FAILS if it is below, else UNDECIDED."""
    if difference is None or not (difference.low > 0 or difference.high < 0):
        return Outcome.UNDECIDED
    return Outcome.HOLDS if difference.low > 0 else Outcome.FAILS


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """HOLDS if all do, FAILS if one does, else UNDECIDED."""
    if Outcome.FAILS in outcomes:
        return Outcome.FAILS
    return Outcome.HOLDS if outcomes and set(outcomes) == {Outcome.HOLDS} else Outcome.UNDECIDED


def _policy_claims(run: Run) -> Iterator[Claim]:
    parents = parents_of(run)
    for better, worse, source in POLICY_CLAIMS:
        pairs = []
        for one in run.evaluations:
            if one.lineage == better:
                others = [other for other in run.evaluations if other.lineage == worse]
                own = [other for other in others if other.policy in ancestors(one.policy, parents)]
                pairs += [(one, other) for other in own or others]
        if pairs:
            yield _comparison(f"{lineage_name(better)} is better than {lineage_name(worse)}", source, pairs, run.config)


def _setting_claims(run: Run) -> Iterator[Claim]:
    for setting, text, source in SETTING_CLAIMS:
        stage = setting.split(".")[0]
        valued = [(value, one) for one in run.evaluations if (value := _setting(run.config, one, stage, setting))]
        yield from _extremes(valued, f"{text} ({setting})", source, run.config)


def _length_claims(run: Run) -> Iterator[Claim]:
    lengths = {"short": 1, "long": 2}
    valued = []
    for one in run.evaluations:
        if one.lineage == SFT and (found := _oracle_lengths(run.config, one.policy)):
            valued.append((fmean(lengths[name] for name in found), one))
    yield from _extremes(valued, "SFT on longer trajectories is better (generate.oracle_length)", "Table 2", run.config)


def _extremes(valued: Sequence[tuple[float, Evaluation]], text: str, source: str, config: Config) -> Iterator[Claim]:
    """The claim that the largest value beats the smallest, for policies of one lineage."""
    for stages in sorted({one.lineage for _, one in valued}):
        family = [(value, one) for value, one in valued if one.lineage == stages]
        low, high = min(family, key=lambda pair: pair[0]), max(family, key=lambda pair: pair[0])
        if low[0] < high[0]:
            yield _comparison(text, source, [(high[1], low[1])], config)


def _setting(config: Config, evaluation: Evaluation, stage: str, setting: str) -> float:
    """The setting's value in the step that made the policy; 0 where no such step did."""
    names = [step.name for step in config.steps if step.name == evaluation.policy and step.stage == stage]
    return float(flatten(config.for_step(names[0]))[setting]) if names else 0


def _oracle_lengths(config: Config, policy: str) -> set[str]:
    """generate.oracle_length of the oracle steps that an SFT step's data come from."""
    steps = {step.name: step for step in config.steps}
    found, waiting = set(), [policy]
    while waiting:
        step = steps.get(waiting.pop())
        if step is None:
            continue
        waiting += step.data
        settings = config.for_step(step.name).generate
        if step.stage == "generate" and settings.source == "oracle":
            found.add(str(settings.oracle_length))
    return found


def _comparison(text: str, source: str, pairs: Sequence[tuple[Evaluation, Evaluation]], config: Config) -> Claim:
    measurements: list[Measurement] = []
    notes = []
    for better, worse in pairs:
        if better.protocol != worse.protocol:
            notes.append(f"{better.label} and {worse.label} were evaluated differently (k, samples or temperature)")
            continue
        for name in better.sets:
            if name in worse.sets:
                measurements += _differences(better, worse, name, config)
    if not measurements and not notes:
        notes.append("no question set was given to both")
    if is_near_zero([one for pair in pairs for one in pair]):
        notes.append("accuracy is at or near zero on both sides: the comparison is empty")
    outcome = joined([one.outcome for one in measurements if one.metric == PRIMARY])
    return Claim(text, source, outcome, tuple(measurements), "; ".join(notes))


def _differences(better: Evaluation, worse: Evaluation, name: str, config: Config) -> Iterator[Measurement]:
    """better - worse on the questions of the set that both were asked, for each metric."""
    if name not in better.values or name not in worse.values:
        return
    for metric in METRICS:
        a, b = better.values[name][metric], worse.values[name][metric]
        difference, num_questions = _paired(a, b, config)
        yield Measurement(
            f"{better.label} - {worse.label}", name, metric, difference, "points", decided(difference), num_questions
        )


def _paired(a: Mapping[str, float], b: Mapping[str, float], config: Config) -> tuple[Interval | None, int]:
    """a - b over the questions that both have, and how many those are; None for fewer than two."""
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2:
        return None, len(shared)
    difference = paired_difference(
        [a[question] for question in shared],
        [b[question] for question in shared],
        num_resamples=config.evaluate.num_bootstrap,
        seed=seed_of(config.seed, "report"),
    )
    return difference, len(shared)


def _falls_before_leak(step: StepResult, rows: Sequence[Curve], config: Config) -> Claim:
    """Kendall's tau with its sign turned: before the leak, and as the paper draws it (smoothed, the leak included)."""
    group = step.figures["groups"].get("correct") or {}
    before = interval(group.get("tau_before_leak"))
    before = None if before is None else Interval(-before.mean, -before.high, -before.low)
    smoothed = [kendall_tau(ema(row.lhat, config.analyze.ema_alpha)) for row in rows if row.group == "correct"]
    falls = [-tau for tau in smoothed if tau is not None]
    seed, num_resamples = seed_of(config.seed, "report"), config.evaluate.num_bootstrap
    drawn = bootstrap_interval(falls, num_resamples=num_resamples, seed=seed) if falls else None
    measurements = tuple(
        Measurement("correct trajectories", step.name, metric, fall, "tau", decided(fall))
        for metric, fall in (
            ("fall before the answer is written (-Kendall tau)", before),
            ("fall over the whole smoothed curve, as the paper draws it (-Kendall tau)", drawn),
        )
    )
    note = "" if before else "no correct trajectory has enough prefixes before its answer"
    if drawn and decided(drawn) is Outcome.HOLDS and decided(before) is not Outcome.HOLDS:
        note = "the smoothed curve falls over the whole trajectory, as the paper shows it: by the answer being written"
    text = "L-hat falls along a correct trajectory, before its answer is written"
    return Claim(text, "Fig. 3", measurements[0].outcome, measurements, note)


def _ends_differ(step: StepResult, rows: Sequence[Curve], config: Config) -> Claim:
    means = {group: _mean_end(rows, group) for group in ("correct", "wrong")}
    difference, num_questions = _paired(means["wrong"], means["correct"], config)
    note = ""
    if difference is None:
        note = f"questions with both a correct and a wrong trajectory: {num_questions}, too few to compare"
    measurement = Measurement(
        "wrong - correct", step.name, "L-hat at the end", difference, "nats", decided(difference), num_questions
    )
    text = "L-hat ends higher on wrong trajectories than on correct ones"
    return Claim(text, "Fig. 16", measurement.outcome, (measurement,), note)


def _mean_end(rows: Sequence[Curve], group: str) -> dict[str, float]:
    """Question -> mean of L-hat at the last prefix over its trajectories of the group, nats per answer token."""
    ends: dict[str, list[float]] = {}
    for row in rows:
        if row.group == group and row.probe == rows[0].probe:
            ends.setdefault(row.question_id, []).append(row.lhat[-1])
    return {question: fmean(values) for question, values in ends.items()}
