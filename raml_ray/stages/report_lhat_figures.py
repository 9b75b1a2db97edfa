"""L-hat along all probed prefixes, as it was measured and as the paper draws it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from raml_ray.stages.report_curves import Curve, probed
from raml_ray.stages.report_data import StepResult
from raml_ray.stages.report_figures import Figure, finished

GROUP_COLOURS = {"correct": "#0072B2", "wrong": "#D55E00"}
GRID_POINTS = 101
BAND_RESAMPLES = 500
"""Of the trajectories, behind the shaded interval of a mean curve."""
RASTER_POINTS = 20_000
"""From so many points on the faint lines are drawn as pixels, or the page would weigh megabytes."""


def as_drawn(step: StepResult, curves: Sequence[Curve], alpha: float) -> Figure:
    """Raw curves of the gold answer with their mean, and beside them what the paper's notebook draws of the same curves."""
    canvas = Canvas(figsize=(10.5, 3.9))
    left, right = canvas.subplots(1, 2, sharey=True)
    rows: list[dict[str, Any]] = []
    rasterized = sum(len(curve.lhat) for curve in curves) > RASTER_POINTS
    for group, colour in GROUP_COLOURS.items():
        members = [curve for curve in curves if curve.group == group]
        if not members:
            continue
        for axis, lines in ((left, _measured(members)), (right, _papers(members, alpha))):
            _curve_group(axis, lines, colour, group, rasterized)
            _leaks(axis, [line.leak for line in lines if line.leak is not None], colour)
        rows += [row for curve in members for row in _curve_rows(curve, alpha)]
    left.set_title("As measured")
    left.set_xlabel("prefix, as a share of the last probed one")
    right.set_title(f"As the paper draws it (EMA, alpha = {alpha:g})")
    right.set_xlabel("normalised index of the prefixes drawn")
    left.legend(fontsize=9, loc="upper left")
    left.set_ylim(bottom=0)
    for axis in (left, right):
        axis.set_ylabel("L-hat, nats per answer token")
        axis.tick_params(labelleft=True)
        axis.tick_params(axis="x", pad=9)
        axis.set_xlim(0, 1)
    caption = (
        f"{len({curve.question_id for curve in curves})} questions. Probed: {probed(step, curves)}. Faint: single trajectories. Bold: their mean over the normalised position,"
        f" with its 95 % bootstrap interval over trajectories (shaded). Ticks under the axis: where the answer is first"
        f" written. {_paper_caption(step)}"
    )
    return finished(
        f"lhat_{step.name}",
        f"L-hat along the whole trajectory, as the paper draws it ({step.name})",
        caption,
        canvas,
        rows,
    )


class _Line(NamedTuple):
    """A trajectory's line: x in [0, 1], nats per answer token, and the x at which it first holds the answer."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    leak: float | None


def _measured(curves: Sequence[Curve]) -> list[_Line]:
    return [
        _Line(one.share, one.lhat, None if one.leak_position is None else one.leak_position / max(one.position[-1], 1))
        for one in curves
    ]


def _papers(curves: Sequence[Curve], alpha: float) -> list[_Line]:
    """Of the curves of which the notebook draws anything."""
    found = []
    for one in curves:
        drawn = one.as_paper(alpha)
        if len(drawn.point):
            place = np.searchsorted(drawn.point, one.num_before_leak)
            found.append(
                _Line(drawn.position, drawn.smooth, drawn.position[place] if place < len(drawn.point) else None)
            )
    return found


def _paper_caption(step: StepResult) -> str:
    """What the right panel shows, and where it is not what the notebook would have drawn."""
    until, stride = step.settings.get("analyze.until"), step.settings.get("analyze.stride", 1)
    said = (
        "Right, as the released notebook does: prefixes behind <think>, without the response's last ones, as many as suffix"
        " and answer have tokens; zeros left out; smoothed over what is left. The smoothing lags behind: a step on the left"
        " looks like a slope there."
    )
    if until:
        said += f" The notebook goes on to the end of the response; here analyze.until={until} ends the curve."
    if stride > 1:
        said += (
            f" It takes every token; here analyze.stride={stride}, so that the smoothing spans {stride} times as many."
        )
    return said


def _leaks(axis: Axes, leaks: Sequence[float], colour: str) -> None:
    """Ticks under the axis where trajectories first write the answer."""
    (rug,) = axis.plot(leaks, [-0.04] * len(leaks), "|", color=colour, markersize=8, clip_on=False)
    rug.set_transform(axis.get_xaxis_transform())
    rug.set_in_layout(False)


def _curve_group(axis: Axes, lines: Sequence[_Line], colour: str, group: str, rasterized: bool) -> None:
    if not lines:
        return
    grid = np.linspace(0, 1, GRID_POINTS)
    for line in lines:
        axis.plot(line.x, line.y, color=colour, alpha=0.12, linewidth=0.7, rasterized=rasterized)
    mean, low, high = band([np.interp(grid, line.x, line.y) for line in lines])
    axis.fill_between(grid, low, high, color=colour, alpha=0.25, linewidth=0)
    axis.plot(grid, mean, color=colour, linewidth=2.2, label=f"{group} ({len(lines)} trajectories)")


def band(rows: Sequence[Sequence[float] | np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over trajectories at every place, and the bounds of its 95 % bootstrap interval over them."""
    values = np.asarray(rows, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(values), size=(BAND_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    return values.mean(axis=0), low, high


def _curve_rows(curve: Curve, alpha: float) -> Iterator[dict[str, Any]]:
    """Every probed prefix; of those that the paper draws also its x and its smoothed value."""
    drawn = curve.as_paper(alpha)
    of_paper = {int(index): point for index, *point in zip(drawn.point, drawn.position, drawn.smooth, strict=True)}
    for index, (position, share, raw) in enumerate(zip(curve.position, curve.share, curve.lhat, strict=True)):
        paper_x, smooth = of_paper.get(index, (None, None))
        yield {
            "trajectory_id": curve.trajectory_id,
            "group": curve.group,
            "position": position,
            "x": share,
            "lhat": raw,
            "paper_x": paper_x,
            "paper_smooth": smooth,
            "leak_position": curve.leak_position,
        }
