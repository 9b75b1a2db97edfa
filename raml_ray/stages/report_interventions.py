"""The page's part on interventions: two words at two places, and what remains that neither explains alone."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_figures import INK, Figure, finished
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_lhat_figures import GROUP_COLOURS
from raml_ray.stages.report_measures import interval_table, point
from raml_ray.stages.report_tables import row, table

NAMES = {
    "own": "the word, its place",
    "other_here": "another word, its place",
    "newline": "a newline, its place",
    "moved": "the word, the other's place",
    "other_own": "the other word, its own place",
    "word": "word: first less other",
    "place": "place: first less other",
    "interaction": "interaction",
}
COLUMNS = {name: (NAMES[name], 3) for name in ("own", "other_here", "newline", "moved", "other_own", "interaction")}
AFTER, ACCURACY = "after_", "accuracy"
CONTINUED = {name: (heading, 3) for name, (heading, _) in COLUMNS.items()} | {"without": ("accuracy without a word", 3)}


def shown(run: Run) -> Shown:
    """The section of the steps that put words in other places."""
    figures, tables = [], []
    for step in run.of_instrument("interventions"):
        groups = {name: found for name, found in step.figures["groups"].items() if found["num_words"]}
        listed = [
            (f"{group}, {_behind(name)}", found[name]) for group, found in groups.items() for name in _horizons(found)
        ]
        tables.append(interval_table(f"{step.name}: change of L-hat, nats", COLUMNS, listed))
        counts = _counts(groups)
        tables.append(
            f'<p class="note">Against the same place without a word, so that deleting the word is "{NAMES["own"]}" with'
            f" its sign turned; {counts or 'no word had a partner'} trajectories. Means"
            " over each trajectory's words with 95 % bootstrap intervals over trajectories.</p>\n"
        )
        tables += [_pairs(step), _continued(step, groups)]
        if groups:
            figures.append(_figure(step, groups))
    return Shown("Words put in other places", [], "".join(tables), figures)


def _pairs(step: StepResult) -> str:
    """How near in frequency words and partners are, which the design takes for equal."""
    body = []
    for group, found in step.figures["groups"].items():
        apart = found["log_frequency_ratio"]
        cells = [f"{apart[name]:.2f}<small>x {math.exp(apart[name]):.3g}</small>" for name in apart] if apart else "--"
        body.append(row([group, str(found["num_words"]), str(found["num_apart"]), *cells]))
    heads = [
        f"{step.name}: words of",
        "with a partner",
        "left out as too far apart",
        "log frequency ratio, median",
        "worst",
    ]
    return table(heads, body)


def _counts(groups: Mapping[str, Any]) -> str:
    return ", ".join(f"{found['num_words']} words of {found['num']} {group}" for group, found in groups.items())


def _continued(step: StepResult, groups: Mapping[str, Any]) -> str:
    """What the words do to the accuracy of what the policy goes on to write, where that was sampled."""
    listed = [(group, found[ACCURACY]) for group, found in groups.items() if ACCURACY in found]
    if not listed:
        return '<p class="note">No continuations were sampled (interventions.num_samples=0).</p>\n'
    counts = ", ".join(f"{found['num_words']} words of {group}" for group, found in listed)
    note = (
        f"Against the same place without a word; {counts} trajectories, {step.settings['interventions.num_samples']}"
        " continuations sampled from each place; fractions in [0, 1], 95 % bootstrap intervals over trajectories."
    )
    return interval_table(f"{step.name}: change of accuracy", CONTINUED, listed) + f'<p class="note">{note}</p>\n'


def _horizons(found: Mapping[str, Any]) -> list[str]:
    return [name for name in found if name.startswith(AFTER)]


def _behind(name: str) -> str:
    horizon = name.removeprefix(AFTER)
    return "at once" if horizon == "0" else f"{horizon} tokens on"


def _figure(step: StepResult, groups: Mapping[str, Any]) -> Figure:
    first = next(iter(groups.values()))
    panels = [
        (name, _behind(name).capitalize(), f"change of L-hat {_behind(name)}", "change of L-hat, nats per answer token")
        for name in _horizons(first)
    ]
    if ACCURACY in first:
        panels.append((ACCURACY, "Continued", "change of accuracy", "change of accuracy, fraction"))
    canvas = Canvas(figsize=(10.5, 3.9))
    axes = canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    drawn: list[dict[str, Any]] = []
    for axis, (name, title, panel, label) in zip(axes, panels, strict=True):
        for index, (group, found) in enumerate(groups.items()):
            shift = 0.2 * (index - (len(groups) - 1) / 2)
            drawn += _points(axis, group, "os"[index], found[name], shift, panel)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.axhline(4.5, color=INK, linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel=label)
        axis.set_yticks(range(len(NAMES)), list(NAMES.values()))
    axes[0].set_ylim(len(NAMES) - 0.5, -0.5)
    axes[0].legend(fontsize=8)
    caption = (
        f"{_counts(groups)} trajectories. Above the dotted line: what a word does to L-hat, and to the accuracy of continuations that are sampled behind it,"
        " against the same place without it; below: effects of word and"
        " place, and their interaction, which is 0 where the two add up. Whiskers: 95 % bootstrap intervals over trajectories."
    )
    return finished(f"interventions_{step.name}", f"Words put in other places ({step.name})", caption, canvas, drawn)


def _points(
    axis: Axes, group: str, marker: str, found: Mapping[str, Any], shift: float, panel: str
) -> list[dict[str, Any]]:
    drawn = []
    for place, name in enumerate(NAMES):
        if found[name] is not None:
            mean, low, high = found[name].values()
            error = [[max(mean - low, 0)], [max(high - mean, 0)]]
            style: dict[str, Any] = {
                "marker": marker,
                "markersize": 5,
                "capsize": 2.5,
                "ls": "none",
                "color": GROUP_COLOURS[group],
            }
            axis.errorbar(mean, place + shift, xerr=error, label=group if place == 0 else None, **style)
            drawn.append(point(panel, f"{name}, {group}", place, [mean, low, high]))
    return drawn
