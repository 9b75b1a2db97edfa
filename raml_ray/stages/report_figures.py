"""The report's figures with the rows they draw: axes carry units, whiskers are intervals, colours are Okabe-Ito's, then Tol's."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from raml_ray.stages.report_data import METRICS, Evaluation, Run
from raml_ray.workers.fixed_probe import ERROR

LINEAGE_COLOURS = {(): "#8c8c8c", ("sft",): "#0072B2", ("grpo",): "#E69F00", ("sft", "grpo"): "#009E73"}
OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#D55E00", "#44AA99", "#999933", "#882255", "#DDCC77", "#555555")
MARKERS = "os^Dv<>P"
"""As many as other colours, so that neither is needed to tell lines apart."""
# Replaced by currentColor in the page's SVG, so that text and axes follow the page's light or dark scheme.
INK = "#1c1e21"
MOST_NAMED = 10
"""Training runs that a panel names; a sweep's many are told apart by the rows behind the figure."""
LONG_LABEL = 30
"""Characters. Legends with one that is as long have one column."""
STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#8c8c8c",
    "grid.alpha": 0.25,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "raml",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing, and the rows behind it."""

    name: str
    title: str
    caption: str
    svg: str
    """For the page: takes its text colour from there, ids unique to the figure."""
    png: bytes
    rows: pa.Table


def figures(run: Run) -> list[Figure]:
    """Policies (a sweep has a figure of its own) and their training, as far as the run has data for them; to be drawn in
    `styled`."""
    found = [_evaluation(run.evaluations) if run.evaluations and not run.is_sweep else None, _training(run)]
    return [figure for figure in found if figure is not None]


def styled() -> AbstractContextManager[None]:
    """Within it, figures look like those of the page."""
    return mpl.rc_context(STYLE)


def colours(lineages: Sequence[tuple[str, ...]]) -> list[str]:
    """One colour per policy: its lineage's own, or the next free one for a second policy of that lineage."""
    free, taken, found = iter(OTHER_COLOURS * len(lineages)), set(), []
    for stages in lineages:
        own = LINEAGE_COLOURS.get(stages)
        colour = own if own is not None and own not in taken else next(free)
        taken.add(colour)
        found.append(colour)
    return found


def _evaluation(evaluations: Sequence[Evaluation]) -> Figure:
    sets = list(dict.fromkeys(name for one in evaluations for name in one.sets))
    names, palette = metric_names(evaluations), colours([one.lineage for one in evaluations])
    canvas = Canvas(figsize=(10.5, 3.6 if len(evaluations) <= 4 else 4.0))
    rows: list[dict[str, Any]] = []
    axes = canvas.subplots(1, len(METRICS), sharey=True, squeeze=False)[0]
    width = 0.8 / len(evaluations)
    for axis, metric in zip(axes, METRICS, strict=True):
        for index, (one, colour) in enumerate(zip(evaluations, palette, strict=True)):
            for place, name in enumerate(sets):
                if name in one.sets and metric in one.sets[name].intervals:
                    value = one.sets[name].intervals[metric]
                    x = place + (index - (len(evaluations) - 1) / 2) * width
                    axis.bar(x, value.mean, width * 0.92, color=colour, label=one.label if place == 0 else None)
                    error = [[max(value.mean - value.low, 0)], [max(value.high - value.mean, 0)]]
                    axis.errorbar(x, value.mean, error, color=INK, elinewidth=1, capsize=2.5, linestyle="none")
                    num = one.sets[name].num_questions
                    rows.append(
                        {"policy": one.label, "set": name, "metric": metric, "num_questions": num, **value._asdict()}
                    )
        axis.set_title(names[metric])
        axis.set_xticks(range(len(sets)), sets)
        axis.set_xlabel("question set")
        axis.set_ylim(0, 1.02)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(axis="x", visible=False)
    axes[0].set_ylabel("mean over questions, %")
    handles = [mpl.patches.Patch(color=c, label=o.label) for o, c in zip(evaluations, palette, strict=True)]
    canvas.legend(handles=handles, loc="outside upper left", ncols=min(len(evaluations), 5))
    asked = {name: {one.sets[name].num_questions for one in evaluations if name in one.sets} for name in sets}
    numbers = ", ".join(f"{name} {' or '.join(map(str, sorted(found)))}" for name, found in asked.items())
    caption = f"Mean over the questions of each set ({numbers}); the bars' whiskers are 95 % bootstrap intervals over questions."
    return finished("evaluation", "Policies on the question sets", caption, canvas, rows)


def metric_names(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """How the page calls each metric, with k where all evaluations share it."""
    ks = {one.k for one in evaluations}
    k = str(ks.pop()) if len(ks) == 1 else "k"
    return {
        "accuracy": "Accuracy",
        "pass_at_k": f"Pass@{k}",
        "g_pass_at_k_0.5": f"G-Pass@{k}, 0.5",
        "g_pass_at_k_1.0": f"G-Pass@{k}, 1.0",
        "mg_pass_at_k": f"mG-Pass@{k}",
    }


TRAINING_PANELS = (
    ("base/loss", "Base: loss", "nats per token", "optimizer step"),
    ("sft/loss", "SFT: loss", "nats per token", "optimizer step"),
    ("grpo/reward", "GRPO: reward", "mean reward", "policy version"),
    ("grpo/response_tokens", "GRPO: response length", "tokens", "policy version"),
    (
        "probe/lhat_before_leak",
        "Fixed trajectories: L-hat before the answer",
        "nats per answer token",
        "step or version",
    ),
)


def _training(run: Run) -> Figure | None:
    drawn = []
    for metric, title, unit, x_label in TRAINING_PANELS:
        lines = {step.name: points for step in run.steps if (points := _points(step.metrics, metric))}
        if lines:
            drawn.append((metric, title, unit, x_label, lines))
    if not drawn:
        return None
    canvas = Canvas(figsize=(10.5, 3.1 * ((len(drawn) + 1) // 2)))
    axes = canvas.subplots((len(drawn) + 1) // 2, min(len(drawn), 2), squeeze=False).ravel()
    rows: list[dict[str, Any]] = []
    trained = list(dict.fromkeys(step for *_, lines in drawn for step in lines))
    colour_of = dict(zip(trained, colours([run.lineage_of(step) for step in trained]), strict=True))
    for axis, (metric, title, unit, x_label, lines) in zip(axes, drawn, strict=False):
        for step, points in lines.items():
            _line(axis, points, run.label_of(step), colour_of[step])
            rows += [{"step": step, "metric": metric, **point._asdict()} for point in points]
        axis.set_title(title)
        axis.set_xlabel(x_label)
        axis.set_ylabel(unit)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if metric == "grpo/reward":
            axis.set_ylim(0, max(1.02, max(point.value for points in lines.values() for point in points)))
        if len(lines) <= MOST_NAMED:
            axis.legend(fontsize=9)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    caption = (
        "Faint: every step. Bold: mean over a centred window of a tenth of the steps, where there are over 30."
        " One training run each, so there is no interval over runs."
    )
    if any(row["low"] is not None for row in rows):
        caption += (
            " Whiskers: 1.96 standard errors over the fixed trajectories, so how far a mean over others might lie;"
            " all points of a line are of the same ones."
        )
    return finished("training", "Training curves", caption, canvas, rows)


class _Point(NamedTuple):
    x: float
    value: float
    low: float | None
    high: float | None


def _points(metrics: Sequence[Mapping[str, float]], name: str) -> list[_Point]:
    """A metric by step, with its 95 % interval where its standard error is beside it."""
    found = []
    for row in metrics:
        if name in row:
            error = row.get(name + ERROR)
            ends = (None, None) if error is None else (row[name] - 1.96 * error, row[name] + 1.96 * error)
            found.append(_Point(row["step"], row[name], *ends))
    return found


def _line(axis: Axes, points: Sequence[_Point], label: str, colour: str) -> None:
    x, y = np.array([point[:2] for point in points]).T
    for point in points:
        if point.low is not None and point.high is not None:
            axis.vlines(point.x, point.low, point.high, color=colour, alpha=0.4, linewidth=1)
    if len(x) <= 30:
        axis.plot(x, y, color=colour, label=label, marker="o", markersize=3)
        return
    window = len(x) // 10 | 1
    axis.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
    total = np.convolve(y, np.ones(window), mode="same") / np.convolve(np.ones(len(y)), np.ones(window), mode="same")
    axis.plot(x, total, color=colour, label=label, linewidth=1.8)


def finished(name: str, title: str, caption: str, canvas: Canvas, rows: list[dict[str, Any]]) -> Figure:
    """The drawing as the page and a paper take it, and the rows behind it."""
    _legends_below(canvas)
    vector, pixels = io.StringIO(), io.BytesIO()
    # `savefig` draws twice, at first for nothing but the layout.
    FigureCanvasSVG(canvas).print_svg(vector, metadata={"Date": None})
    canvas.set_layout_engine("none")  # it is laid out; a second time takes as long as drawing it
    canvas.set_dpi(160)
    canvas.set_facecolor("white")
    FigureCanvasAgg(canvas).print_png(pixels)
    return Figure(name, title, caption, vector.getvalue(), pixels.getvalue(), pa.Table.from_pylist(rows))


def _legends_below(canvas: Canvas) -> None:
    """Each panel's legend under its axis, where it hides no point, and room for it."""
    legends = {axis: legend for axis in canvas.axes if (legend := axis.get_legend())}
    for legend in legends.values():
        legend.set_visible(False)  # to be laid out once, where it goes
    canvas.draw_without_rendering()
    rows = [0]
    for axis, legend in legends.items():
        ticks = axis.xaxis.get_tightbbox()
        assert ticks is not None, "an axis with a legend is drawn"
        handles, labels = axis.get_legend_handles_labels()
        written = [text.get_text() for text in legend.get_texts()]
        if labels != written:  # a legend of its own making
            handles, labels = [handle for handle in legend.legend_handles if handle is not None], written
        columns = 2 if len(labels) > 2 and max(map(len, labels)) < LONG_LABEL else 1
        below = (axis.bbox.y0 - ticks.y0) / canvas.dpi + 0.08  # inches
        axis.legend(
            handles,
            labels,
            fontsize=legend.get_texts()[0].get_fontsize(),
            ncols=columns,
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            bbox_transform=axis.transAxes + ScaledTranslation(0, -below, canvas.dpi_scale_trans),
            borderaxespad=0,
        )
        rows.append(-(-len(labels) // columns))
    canvas.set_figheight(canvas.get_figheight() + 0.18 * max(rows))


def inline(figure: Figure) -> str:
    """The figure's SVG for use inside a page: its own ids, the page's text colour, as wide as its column."""
    svg = figure.svg[figure.svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{figure.name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{figure.name}-", svg)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{figure.title}"', svg, count=1).replace(
        ' height="', ' data-height="', 1
    )
