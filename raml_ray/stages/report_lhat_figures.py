"""L-hat as the paper draws it: along the whole trajectory, raw and smoothed."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from raml_ray.formulas.lhat import ema
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
    """Raw curves of the gold answer with their mean, and beside them the paper's smoothing of the same curves."""
    canvas = Canvas(figsize=(10.5, 3.9))
    left, right = canvas.subplots(1, 2, sharex=True, sharey=True)
    rows: list[dict[str, Any]] = []
    rasterized = sum(len(curve.lhat) for curve in curves) > RASTER_POINTS
    for group, colour in GROUP_COLOURS.items():
        members = [curve for curve in curves if curve.group == group]
        if not members:
            continue
        for axis, kind in ((left, "raw"), (right, "ema")):
            _curve_group(axis, members, colour, group, alpha if kind == "ema" else None, rasterized)
            _leaks(axis, members, colour)
        rows += [row for curve in members for row in _curve_rows(curve, alpha)]
    left.set_title("As measured")
    right.set_title(f"The paper's smoothing (EMA, alpha = {alpha:g})")
    left.legend(fontsize=9, loc="upper left")
    left.set_ylim(bottom=0)
    for axis in (left, right):
        axis.set_ylabel("L-hat, nats per answer token")
        axis.set_xlabel("prefix, as a share of the last probed one")
        axis.tick_params(labelleft=True)
        axis.tick_params(axis="x", pad=9)
        axis.set_xlim(0, 1)
    caption = (
        f"Probed: {probed(step, curves)}. Faint: single trajectories. Bold: their mean over the normalised position,"
        f" with its 95 % bootstrap interval over trajectories (shaded). Ticks under the axis: where the answer is first"
        f" written. The smoothing lags behind: a step there looks like a slope here."
    )
    return finished(
        f"lhat_{step.name}",
        f"L-hat along the whole trajectory, as the paper draws it ({step.name})",
        caption,
        canvas,
        rows,
    )


def _leaks(axis: Axes, curves: Sequence[Curve], colour: str) -> None:
    """Ticks under the axis where trajectories first write the answer."""
    leaks = [curve.leak_position / max(curve.position[-1], 1) for curve in curves if curve.leak_position is not None]
    (rug,) = axis.plot(leaks, [-0.04] * len(leaks), "|", color=colour, markersize=8, clip_on=False)
    rug.set_transform(axis.get_xaxis_transform())
    rug.set_in_layout(False)


def _curve_group(
    axis: Axes, curves: Sequence[Curve], colour: str, group: str, alpha: float | None, rasterized: bool
) -> None:
    grid = np.linspace(0, 1, GRID_POINTS)
    on_grid = []
    for curve in curves:
        y = np.array(curve.lhat) if alpha is None else ema(curve.lhat, alpha)
        axis.plot(curve.share, y, color=colour, alpha=0.12, linewidth=0.7, rasterized=rasterized)
        on_grid.append(np.interp(grid, curve.share, y))
    mean, low, high = band(on_grid)
    axis.fill_between(grid, low, high, color=colour, alpha=0.25, linewidth=0)
    axis.plot(grid, mean, color=colour, linewidth=2.2, label=f"{group} ({len(curves)} trajectories)")


def band(rows: Sequence[Sequence[float] | np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over trajectories at every place, and the bounds of its 95 % bootstrap interval over them."""
    values = np.asarray(rows, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(values), size=(BAND_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    return values.mean(axis=0), low, high


def _curve_rows(curve: Curve, alpha: float) -> Iterator[dict[str, Any]]:
    smooth = ema(curve.lhat, alpha)
    for position, share, raw, smoothed in zip(curve.position, curve.share, curve.lhat, smooth, strict=True):
        yield {
            "trajectory_id": curve.trajectory_id,
            "group": curve.group,
            "position": position,
            "x": share,
            "lhat": raw,
            "ema": float(smoothed),
            "leak_position": curve.leak_position,
        }
