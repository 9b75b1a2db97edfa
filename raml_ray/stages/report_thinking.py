"""The claims about the end of thought: one policy with thinking open, and with it closed before it began."""

from collections.abc import Iterator, Mapping
from typing import Any

from raml_ray.stages import report_curves
from raml_ray.stages.claims import answered
from raml_ray.stages.instruments.intervals import by_question
from raml_ray.stages.report_claims import unless_empty
from raml_ray.stages.report_data import Evaluation, Run, StepResult
from raml_ray.stages.report_outcomes import Claim, level_for, measured
from raml_ray.text.thinking import CLOSE

FASTER, RISKIER = "end-of-thought-faster", "end-of-thought-riskier"
THINKING, PREFIX = "prompt.thinking", "prompt.response_prefix"
"""Either closes thinking before it begins: the template, or what a response is made to begin with."""


def claims(run: Run) -> list[Claim]:
    """The claims that the run has both modes of a policy for."""
    return [*_faster(run), *_riskier(run)]


def _faster(run: Run) -> Iterator[Claim]:
    steps = run.of_instrument("lhat")
    pairs = [
        (thinking, without)
        for thinking in steps
        for without in steps
        if thinking.policy == without.policy and _thinks(thinking.settings) and not _thinks(without.settings)
    ]
    measurements = []
    for thinking, without in pairs:
        for metric, margin in (("L-hat before the first response token", False), ("margin of wrong answers", True)):
            a, b = _first(thinking, margin), _first(without, margin)
            # A margin that grows is the gold answer's own gain.
            sign = -1 if margin else 1
            values = {question: sign * (a[question] - b[question]) for question in a.keys() & b.keys()}
            measurements.append(
                measured(
                    "thinking - without",
                    thinking.name,
                    metric,
                    values,
                    run.config,
                    unit="nats",
                    level=level_for(len(pairs)),
                    decides=not margin,
                )
            )
    if measurements:
        yield answered(FASTER, measurements)


def _first(step: StepResult, margin: bool) -> dict[str, float]:
    """Question -> L-hat of the gold answer (or the margin of wrong ones) at the first prefix, nats per answer token."""
    curves = [curve for curve in report_curves.curves(step) if curve.probe == "gold"]
    if margin:
        return by_question((one.question_id, one.foil_margin[0]) for one in curves if one.foil_margin)
    return by_question((one.question_id, one.lhat[0]) for one in curves)


def _riskier(run: Run) -> Iterator[Claim]:
    pairs = [
        (thinking, without)
        for thinking in run.evaluations
        for without in run.evaluations
        if thinking.policy == without.policy and _differ_in_thinking_alone(thinking, without)
    ]
    shared = [(*pair, name) for pair in pairs for name in pair[0].values if name in pair[1].values]
    measurements = []
    for thinking, without, name in shared:
        a, b = thinking.values[name]["accuracy"], without.values[name]["accuracy"]
        values = {question: a[question] - b[question] for question in a.keys() & b.keys()}
        level = level_for(len(shared))
        found = measured("thinking - without", name, "accuracy", values, run.config, unit="points", level=level)
        measurements.append(unless_empty(found, thinking, without))
    if measurements:
        yield answered(RISKIER, measurements)


def _differ_in_thinking_alone(thinking: Evaluation, without: Evaluation) -> bool:
    differing = {name for name, value in thinking.protocol.items() if without.protocol[name] != value}
    return differing <= {THINKING, PREFIX} and _thinks(thinking.protocol) and not _thinks(without.protocol)


def _thinks(settings: Mapping[str, Any]) -> bool:
    return bool(settings[THINKING]) and CLOSE not in settings[PREFIX]
