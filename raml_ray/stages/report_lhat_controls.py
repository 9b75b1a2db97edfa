"""L-hat held against its controls: a figure of what happens before the answer is written, and a table of what it comes to."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from raml_ray.stages.report_curves import Curve
from raml_ray.stages.report_data import StepResult, interval
from raml_ray.stages.report_figures import Figure, finished
from raml_ray.stages.report_lhat_figures import GRID_POINTS, GROUP_COLOURS, band
from raml_ray.stages.report_tables import row, table

AROUND_LEAK = 20
"""Tokens on both sides of the leak, as the share of the drop near it counts them."""


class Line(NamedTuple):
    """How the curves of a probe are drawn."""

    label: str
    colour: str
    style: str


LINES = {
    "gold": Line("right answer, this trajectory", "#0072B2", "-"),
    "own": Line("the trajectory's own answer", "#D55E00", "-"),
    "shuffled": Line("right answer, lines shuffled", "#009E73", "--"),
    "foreign": Line("right answer, other question's trajectory", "#8c8c8c", ":"),
    "spliced": Line("right answer, spliced into another's trajectory", "#CC79A7", "-."),
}
BEFORE = ("gold", "own", "shuffled", "foreign")
"""Probes that are drawn before the leak; `spliced` is `foreign` there."""


def controlled(step: StepResult, curves: Sequence[Curve]) -> Figure:
    """Before the answer is written: L-hat of correct and of wrong trajectories beside the controls, the margin over foils;
    and the few tokens around the place where it is written."""
    canvas = Canvas(figsize=(10.5, 7.6))
    (correct, wrong), (margin, around) = canvas.subplots(2, 2)
    wrong.sharey(correct)
    rows: list[dict[str, Any]] = []
    for axis, group in ((correct, "correct"), (wrong, "wrong")):
        for probe in BEFORE:
            members = [c for c in curves if c.group == group and c.probe == probe and c.num_before_leak > 1]
            rows += _mean(axis, f"{group} trajectories", LINES[probe], [_before_leak(c, c.lhat) for c in members])
        axis.set_title(f"{group.capitalize()} trajectories, before the answer is written")
        axis.set_ylabel("L-hat, nats per answer token")
    for group, colour in GROUP_COLOURS.items():
        held = [c for c in curves if c.group == group and c.foil_margin is not None and c.num_before_leak > 1]
        line = Line(f"{group} trajectories", colour, "-" if group == "correct" else "--")
        rows += _mean(margin, "margin", line, [_before_leak(c, c.foil_margin or []) for c in held])
    margin.axhline(0, color="#8c8c8c", linewidth=0.8)
    margin.set_title("Wrong answers of equal length cost more by")
    margin.set_ylabel("margin of L-hat, nats per answer token")
    rows += _around(around, curves)
    for axis in (correct, wrong, margin):
        axis.set_xlabel("prefix, as a share of those without the answer")
        axis.set_xlim(0, 1)
    for axis in (correct, wrong, margin, around):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
        else:
            axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center")
    questions = len({curve.question_id for curve in curves})
    caption = (
        f"Means over trajectories (their number in brackets) of {questions} questions, each at its own share of the prefixes that do not hold the probed answer yet, with 95 %"
        " bootstrap intervals over trajectories (shaded). Descent toward the answer would lower the blue line and not the"
        " green and grey ones, and raise the margin. Bottom right: the tokens around the place where the answer is first"
        " written, in correct trajectories and where it is spliced into trajectories of other questions: what both lose"
        " there is copying."
    )
    title = f"L-hat before the answer is written, and its controls ({step.name})"
    return finished(f"lhat_controlled_{step.name}", title, caption, canvas, rows)


def _before_leak(curve: Curve, values: Sequence[float]) -> np.ndarray:
    """Values on a grid over the prefixes without the answer."""
    position = np.array(curve.position[: curve.num_before_leak], dtype=np.float64)
    share = (position - position[0]) / (position[-1] - position[0])
    return np.interp(np.linspace(0, 1, GRID_POINTS), share, values[: curve.num_before_leak])


def _mean(axis: Axes, panel: str, line: Line, on_grid: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    if not on_grid:
        return []
    return _drawn(axis, panel, line, np.linspace(0, 1, GRID_POINTS), on_grid)


def _drawn(axis: Axes, panel: str, line: Line, x: np.ndarray, values: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    mean, low, high = band(values)
    axis.fill_between(x, low, high, color=line.colour, alpha=0.2, linewidth=0)
    label = f"{line.label} ({len(values)})"
    axis.plot(x, mean, color=line.colour, linestyle=line.style, linewidth=2, label=label)
    return [
        {"panel": panel, "line": line.label, "num": len(values), "x": at, "mean": m, "low": a, "high": b}
        for at, m, a, b in zip(x.tolist(), mean.tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def _around(axis: Axes, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """L-hat by tokens from the leak; a trajectory that ends or begins nearer holds its outermost value."""
    x = np.arange(-AROUND_LEAK, AROUND_LEAK + 1)
    rows = []
    for probe in ("gold", "spliced"):
        members = [c for c in curves if c.group == "correct" and c.probe == probe and c.leak_position is not None]
        if members:
            values = [np.interp(x, np.array(c.position) - (c.leak_position or 0), c.lhat) for c in members]
            rows += _drawn(axis, "around the leak", LINES[probe], x, values)
    axis.axvline(0, color="#8c8c8c", linewidth=0.8)
    axis.set_title("Correct trajectories, around the answer")
    axis.set_xlabel("tokens from the first prefix that holds the answer")
    axis.set_ylabel("L-hat, nats per answer token")
    return rows


TABLE = {
    "Before the answer is written": (
        ("L-hat at the first prefix", "", "start", 1),
        ("L-hat at the last prefix before the answer is written", "", "before_leak", 1),
        ("fall until there", "", "drop_before_leak", 1),
        ("Kendall's tau until there (falling is below 0)", "", "tau_before_leak", 1),
        ("slope until there, per 100 tokens", "", "slope_before_leak", 100),
        ("margin of wrong answers at the first prefix", "", "margin_start", 1),
        ("margin of wrong answers just before the answer is written", "", "margin_before_leak", 1),
        ("lines shuffled: L-hat more than in order, just before", "shuffled", "excess_before_leak", 1),
        (
            "another question's trajectory: L-hat more than along its own, just before",
            "foreign",
            "excess_before_leak",
            1,
        ),
        ("its own wrong answer: L-hat more than of the right one, just before", "own", "excess_before_leak", 1),
    ),
    "From there on, where a fall may be copying": (
        ("fall in the token that completes the answer", "", "drop_at_leak", 1),
        ("the same where the bare answer is spliced into another question's trajectory", "spliced", "drop_at_leak", 1),
        ("fall from the last prefix before the answer to the last probed one", "", "drop_after_leak", 1),
        ("Kendall's tau of the prefixes that hold the answer", "", "tau_after_leak", 1),
        ("slope of the prefixes that hold the answer, per 100 tokens", "", "slope_after_leak", 100),
        ("share of the whole fall within 20 tokens of the answer", "", "share_at_leak", 1),
        ("of it, before the answer is written", "", "share_at_leak_before", 1),
        ("of it, from the token that completes the answer on", "", "share_at_leak_after", 1),
    ),
}
"""Part of the table -> what a row is called, the control it belongs to (or none), its name among the figures, and a factor."""


def figures_table(step: StepResult) -> str:
    """The step's figures as a table, what decides first."""
    groups: Mapping[str, Mapping[str, Any]] = step.figures["groups"]
    numbers = [f"{groups[group]['num']} trajectories" for group in GROUP_COLOURS]
    rows = [row([escape(step.name), *numbers])]
    for title, lines in TABLE.items():
        found = [
            row([escape(label), *cells])
            for label, control, name, factor in lines
            if (cells := _cells(groups, control, name, factor))
        ]
        if found:
            rows += [f'<tr class="group"><th colspan="{1 + len(numbers)}">{escape(title)}</th></tr>\n', *found]
    note = (
        '<p class="note">Nats per answer token, with 95 % bootstrap intervals over trajectories. Until the answer is written,'
        " nothing can be copied; from there on a falling L-hat may be copying.</p>\n"
    )
    return note + table(["", *(f"{group} trajectories" for group in GROUP_COLOURS)], rows)


def _cells(groups: Mapping[str, Mapping[str, Any]], control: str, name: str, factor: float) -> list[str]:
    """A figure of each group as HTML; none where no group has it."""
    values = [groups[group].get(control) or {} if control else groups[group] for group in GROUP_COLOURS]
    found = [interval(value.get(name)) for value in values]
    if not any(found):
        return []
    return [
        "-"
        if one is None
        else f"{factor * one.mean:.2f}<small>[{factor * one.low:.2f}, {factor * one.high:.2f}]</small>"
        for one in found
    ]
