"""The page's part on shorter trajectories: what is left of accuracy, by the way they were shortened, at the same tokens."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from raml_ray.stages import report_summaries
from raml_ray.stages.instruments.shorter import AS_SUMMARY, LHAT, NONE, RANDOM, SUMMARY, TRUNCATION, WHOLE
from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_figures import Figure, finished
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_measures import interval_table, point

COLUMNS = {
    "trajectories": ("trajectories", 0),
    "tokens": ("thinking tokens", 1),
    "accuracy": ("accuracy", 3),
    "lead_over_truncation": ("- truncation", 3),
    "accuracy_without_answer": ("accuracy where the answer is not left", 3),
    "leaked": ("answer is left, %", 0),
}
SET_COLUMNS = {
    "questions": ("questions", 0),
    "tokens": ("thinking tokens", 1),
    "accuracy": ("accuracy", 3),
    "solved": ("questions with a right answer", 3),
}
STYLES = {
    WHOLE: ("whole", "#555555", "*"),
    NONE: ("none", "#555555", "x"),
    TRUNCATION: ("truncated", "#0072B2", "o"),
    RANDOM: ("sentences deleted at random", "#E69F00", "s"),
    LHAT: ("sentences deleted by L-hat", "#009E73", "^"),
    SUMMARY: ("summary of a second policy", "#CC79A7", "D"),
}
"""Way -> its name, colour (Okabe-Ito) and marker."""


def shown(run: Run) -> Shown:
    """The section of the steps that shortened trajectories."""
    claims, figures, tables = [], [], []
    for step in run.of_instrument("shorter"):
        groups = {name: found for name, found in step.figures["groups"].items() if found["ways"]}
        for group, found in groups.items():
            tables.append(interval_table(f"{step.name}, {group} trajectories", COLUMNS, _listed(found["ways"])))
        for name, of_set in step.figures["sets"].items():
            listed = [(_named(way, AS_SUMMARY), of_set[way]) for way in STYLES if way in of_set]
            tables.append(interval_table(f"{step.name}, {name}: correct and wrong trajectories", SET_COLUMNS, listed))
        tables.append(f'<p class="note">{_note(step)}</p>\n')
        if step.figures["summaries"]:
            claims.append(report_summaries.claim(step, run.config))
        if groups:
            figures.append(_figure(step, groups))
    return Shown("Shorter trajectories", claims, "".join(tables), figures)


def _listed(ways: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """A row per budget and way, budgets together: ways are held against each other at the same tokens."""
    rows = [(budget, way, found) for way in STYLES for budget, found in ways.get(way, {}).items()]
    return [
        (_named(way, budget), found | {"leaked": _percent(found)})
        for budget, way, found in sorted(rows, key=lambda row: -_place(row[0]))
    ]


def _place(budget: str) -> float:
    """Behind all shares stands what is as long as its summary, whatever share that is."""
    return -1.0 if budget == AS_SUMMARY else float(budget)


def _named(way: str, budget: str) -> str:
    name = STYLES[way][0]
    if way in (WHOLE, NONE) or (way, budget) == (SUMMARY, AS_SUMMARY):
        return name
    return f"as long as the summary, {name}" if budget == AS_SUMMARY else f"{float(budget):.0%}, {name}"


def _percent(found: Mapping[str, Any]) -> int:
    return round(100 * float(found["holds_answer"]))


def _note(step: StepResult) -> str:
    settings = step.settings
    return (
        f"A budget is that share of a trajectory's thinking, filled with whole sentences or lines, so that ways differ by less"
        f" than a sentence; {settings['shorter.num_samples']} answers sampled behind each, at temperature"
        f" {settings['answers.temperature']:g}. Accuracy is a fraction, with 95 % bootstrap intervals over questions; -"
        " truncation is paired by question. Deletion by L-hat is told the right answer: on wrong trajectories it is no way to"
        f" shorten without knowing it. {_summaries(step)}"
    )


def _summaries(step: StepResult) -> str:
    found = step.figures["summaries"]
    if found is None:
        return "Summaries are left out: shorter.summary_policy names no second policy."
    return (
        f"Of {found['asked']} summaries by {step.settings['shorter.summary_policy'].rstrip('/').rpartition('/')[2]},"
        f" {found['with_answer']} said an answer and were left out, {found['empty']} were empty, {found['rejected']} set aside,"
        f" {found['used']} used; one that is shorter than its share stays as short as it is."
    )


def _figure(step: StepResult, groups: Mapping[str, Any]) -> Figure:
    canvas = Canvas(figsize=(10.5, 3.9))
    axes = canvas.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    drawn: list[dict[str, Any]] = []
    for axis, (group, found) in zip(axes, groups.items(), strict=True):
        for way, (label, colour, marker) in STYLES.items():
            curve = []
            for budget, one in found["ways"].get(way, {}).items():
                if one["accuracy"]:
                    y, low, high = one["accuracy"].values()
                    error = [[max(y - low, 0)], [max(high - y, 0)]]
                    axis.errorbar(one["tokens"]["mean"], y, error, color=colour, marker=marker, capsize=2.5, ls="none")
                    if budget != AS_SUMMARY:  # of fewer trajectories: those with a summary
                        curve.append((one["tokens"]["mean"], y))
                    drawn.append(point(group, way, one["tokens"]["mean"], [y, low, high]))
            axis.plot(
                *zip(*sorted(curve), strict=True), color=colour, marker=marker, lw=1, label=label
            ) if curve else None
        axis.set(
            title=f"{group.capitalize()} trajectories",
            xlabel="tokens of thinking that are left, mean",
            ylim=(-0.03, 1.03),
        )
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    axes[0].set_ylabel("accuracy of answers behind it")
    axes[0].legend(fontsize=8, loc="upper left")
    numbers = ", ".join(
        f"{max(one['trajectories'] for way in found['ways'].values() for one in way.values())} {group}"
        for group, found in groups.items()
    )
    caption = (
        f"{numbers} trajectories. Accuracy of answers sampled behind what is left of a trajectory's thinking. Whiskers: 95 % bootstrap intervals over"
        " questions. Points beside the lines are as long as a summary."
    )
    return finished(f"shorter_{step.name}", f"Shortened trajectories ({step.name})", caption, canvas, drawn)
