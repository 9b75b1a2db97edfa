"""The paper's claims about L-hat. What decides is measured before the answer is written: writing it lowers L-hat anyway."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from raml_ray.config import Config
from raml_ray.formulas.lhat import kendall_tau, leak_split
from raml_ray.stages import report_curves
from raml_ray.stages.claims import answered
from raml_ray.stages.report_curves import Curve
from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_lhat_controls import controlled, figures_table
from raml_ray.stages.report_lhat_figures import as_drawn
from raml_ray.stages.report_outcomes import MIN_QUESTIONS, Claim, Measurement, Outcome, level_for, measured


def shown(run: Run) -> Shown:
    """The section of L-hat along the trajectory."""
    claims, tables, figures = [], [], []
    for step in run.of_instrument("lhat"):
        if curves := report_curves.curves(step):
            gold = [curve for curve in curves if curve.probe == "gold"]
            claims += [_falls(step, gold, run.config), _ends_differ(step, gold, run.config)]
            tables.append(figures_table(step))
            figures += [controlled(step, curves), as_drawn(step, gold, run.config.lhat.ema_alpha)]
    return Shown("L-hat along the trajectory", claims, "".join(tables), figures)


def _falls(step: StepResult, curves: Sequence[Curve], config: Config) -> Claim:
    """Kendall's tau with its sign turned: before the leak, and as the paper draws it (smoothed, the leak included)."""
    correct = [curve for curve in curves if curve.group == "correct"]
    before = [(one, leak_split(one.position, one.lhat, one.leak_or_end).tau_before) for one in correct]
    drawn = [(one, kendall_tau(one.as_paper(config.lhat.ema_alpha).smooth)) for one in correct]
    measurements = tuple(
        measured(
            "correct trajectories",
            step.name,
            metric,
            _falls_by_question(taus),
            config,
            unit="tau",
            level=level_for(1),
            decides=taus is before,
        )
        for metric, taus in (
            ("fall before the answer is written (-Kendall tau)", before),
            ("fall over the whole smoothed curve, as the paper draws it (-Kendall tau)", drawn),
        )
    )
    note = _too_few(measurements[0], "with a correct trajectory that is long enough before its answer")
    if measurements[1].outcome is Outcome.HOLDS and measurements[0].outcome is not Outcome.HOLDS:
        note = "; ".join(
            filter(None, [note, "the smoothed curve falls as the paper draws it: by the answer being written"])
        )
    return answered("lhat-falls", measurements, note)


def _ends_differ(step: StepResult, curves: Sequence[Curve], config: Config) -> Claim:
    before: list[tuple[Curve, float | None]] = [(one, _last_before_leak(one)) for one in curves]
    drawn: list[tuple[Curve, float | None]] = [(one, one.lhat[-1]) for one in curves]
    measurements = []
    for metric, values in (
        ("L-hat at the last prefix before the answer is written", before),
        ("L-hat at the last probed prefix, the answer written or not", drawn),
    ):
        wrong = _by_question((one, value) for one, value in values if one.group == "wrong")
        correct = _by_question((one, value) for one, value in values if one.group == "correct")
        apart = {question: wrong[question] - correct[question] for question in wrong.keys() & correct.keys()}
        decides, level = values is before, level_for(1)
        measurements.append(
            measured("wrong - correct", step.name, metric, apart, config, unit="nats", level=level, decides=decides)
        )
    note = _too_few(measurements[0], "with both a correct and a wrong trajectory")
    return answered("lhat-ends-higher-when-wrong", measurements, note)


def _last_before_leak(curve: Curve) -> float | None:
    """L-hat at the last prefix without the answer, nats per answer token; None if every prefix holds it."""
    return curve.lhat[curve.num_before_leak - 1] if curve.num_before_leak else None


def _falls_by_question(taus: Iterable[tuple[Curve, float | None]]) -> dict[str, float]:
    return {question: -tau for question, tau in _by_question(taus).items()}


def _by_question(values: Iterable[tuple[Curve, float | None]]) -> dict[str, float]:
    """Question -> mean of its trajectories' values, those that are None left out."""
    found: dict[str, list[float]] = {}
    for curve, value in values:
        if value is not None:
            found.setdefault(curve.question_id, []).append(value)
    return {question: fmean(each) for question, each in found.items()}


def _too_few(measurement: Measurement, what: str) -> str:
    if measurement.num_questions >= MIN_QUESTIONS:
        return ""
    return f"questions {what}: {measurement.num_questions}, fewer than {MIN_QUESTIONS}: too few to decide"
