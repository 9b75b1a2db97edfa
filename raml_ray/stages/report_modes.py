"""The page's part on modes: what accuracy costs in tokens, with thinking, without it, and with thinking cut."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from raml_ray.stages.instruments.modes import BUDGET, ENDED, THINKING, UNTHOUGHT
from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_figures import Figure, finished
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_measures import interval_table

COLUMNS = {
    "questions": ("questions", 0),
    "tokens": ("response tokens", 1),
    "accuracy": ("accuracy", 3),
    "thinking_lead": ("thinking - this", 3),
}
GROUPED = {name: COLUMNS[name] for name in ("questions", "tokens", "accuracy")}
STYLES = {
    THINKING: ("thinking, as recorded", "#0072B2", "o", "none"),
    UNTHOUGHT: ("no thinking", "#D55E00", "s", "none"),
    ENDED: ("end of thought forced at a share", "#009E73", "^", "-"),
    BUDGET: ("budget forcing", "#CC79A7", "D", "--"),
}
"""Kind of mode -> its name, colour (Okabe-Ito), marker and line."""


def shown(run: Run) -> Shown:
    """The section of the steps that compared modes."""
    figures, tables = [], []
    for step in run.of_instrument("modes"):
        modes = step.figures["modes"]
        tables.append(interval_table(f"{step.name}: mode", COLUMNS, [(_named(mode), modes[mode]) for mode in modes]))
        tables.append(f'<p class="note">{_note(step)}</p>\n')
        tables.append(interval_table(f"{step.name}: trajectories that were, mode", GROUPED, _by_group(step)))
        tables.append(
            '<p class="note">By the verdict on what was recorded, which was chosen by its outcome: answers that are drawn anew'
            " can only lose to what was correct, and only gain on what was wrong.</p>\n"
        )
        figures.append(_figure(step, modes))
    return Shown("Thinking, not thinking, cut thinking", [], "".join(tables), figures)


def _by_group(step: StepResult) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (f"{group}, {_named(mode)}", found)
        for group, modes in step.figures["groups"].items()
        for mode, found in modes.items()
        if mode != THINKING
    ]


def _kind(mode: str) -> str:
    return next(kind for kind in STYLES if mode == kind or mode.startswith(f"{kind}_"))


def _named(mode: str) -> str:
    kind = _kind(mode)
    value = mode.removeprefix(kind).removeprefix("_")
    if kind == UNTHOUGHT:
        return f"no thinking: {value}"
    if kind == ENDED:
        return f"end of thought at {float(value):.0%}"
    return f"budget of {value} tokens" if kind == BUDGET else kind


def _note(step: StepResult) -> str:
    num, own, settings = step.figures["num"], step.figures["own"], step.settings
    others = (
        f" {num - own} of them were not sampled by this policy: what is cut there is another's thinking."
        if num > own
        else ""
    )
    return (
        f"The first {settings['modes.num_trajectories']} recorded trajectories of each question, {num} in all, whatever"
        f" their verdicts.{others} {settings['modes.num_samples']} answers sampled at temperature"
        f" {settings['answers.temperature']:g} behind each cut; a thought that ends within a budget is left as it is."
        " Tokens are the response's, forced ones included. Accuracy is a fraction, with 95 % bootstrap intervals over"
        " questions; differences are paired by question."
    )


def _figure(step: StepResult, modes: Mapping[str, Any]) -> Figure:
    canvas = Canvas(figsize=(7.5, 4.2))
    axis = canvas.subplots()
    drawn: list[dict[str, Any]] = []
    for kind in STYLES:
        drawn += _curve(
            axis, kind, {mode: one for mode, one in modes.items() if _kind(mode) == kind and one["accuracy"]}
        )
    axis.set(xscale="log", xlabel="response tokens, mean", ylabel="accuracy", ylim=(-0.03, 1.03))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.legend(fontsize=8)
    questions = max((one["questions"] for one in modes.values()), default=0)
    caption = (
        f"Accuracy against the mean length of responses, of the same {questions} questions in every mode ({step.figures['num']} recorded trajectories). Whiskers: 95 % bootstrap"
        " intervals over questions, of both."
    )
    return finished(f"modes_{step.name}", f"Accuracy against tokens ({step.name})", caption, canvas, drawn)


def _curve(axis: Axes, kind: str, modes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Draw the modes of a kind, a curve where they have an order; returns the points."""
    label, colour, marker, line = STYLES[kind]
    points: list[dict[str, Any]] = []
    for mode, found in modes.items():
        (x, *x_bounds), (y, *y_bounds) = found["tokens"].values(), found["accuracy"].values()
        errors = (
            [[max(x - x_bounds[0], 0)], [max(x_bounds[1] - x, 0)]],
            [[max(y - y_bounds[0], 0)], [max(y_bounds[1] - y, 0)]],
        )
        named = label if not points else None
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "markersize": 5,
            "capsize": 2.5,
            "ls": "none",
            "label": named,
        }
        axis.errorbar(x, y, xerr=errors[0], yerr=errors[1], **style)
        if kind == UNTHOUGHT:
            axis.annotate(f" {mode.removeprefix(f'{kind}_')}", (x, y), (4, 5), textcoords="offset points", fontsize=7)
        row = {"mode": mode, "x": x, "x_low": x_bounds[0], "x_high": x_bounds[1]}
        points.append(row | {"y": y, "low": y_bounds[0], "high": y_bounds[1]})
    if line != "none":
        axis.plot([point["x"] for point in points], [point["y"] for point in points], color=colour, ls=line, lw=1)
    return points
