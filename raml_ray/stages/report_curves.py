"""L-hat along trajectories, as an analyze step left it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from raml_ray import records
from raml_ray.formulas.lhat import ema
from raml_ray.stages.report_data import StepResult
from raml_ray.stages.report_figures import Figure, finished

GROUP_COLOURS = {"correct": "#0072B2", "wrong": "#D55E00"}
GRID_POINTS = 101
BAND_RESAMPLES = 500
"""Of the trajectories, behind the shaded interval of a mean curve."""
RASTER_POINTS = 20_000
"""From so many points on the faint lines are drawn as pixels, or the page would weigh megabytes."""


class Curve(NamedTuple):
    """L-hat along one trajectory."""

    trajectory_id: str
    question_id: str
    probe: str
    group: str
    """`correct` or `wrong`."""
    position: list[int]
    """Response tokens of each prefix."""
    lhat: list[float]
    """Nats per answer token."""
    leak_position: int | None
    """Prefix that first holds the answer; None if none of the probed ones does."""
    num_tokens: int

    @property
    def leak_or_end(self) -> int:
        """The leak's position, behind the last probed one where no probed prefix holds the answer."""
        return self.position[-1] + 1 if self.leak_position is None else self.leak_position

    @property
    def share(self) -> list[float]:
        """Each position as a share of the last probed one, in [0, 1]."""
        return [position / max(self.position[-1], 1) for position in self.position]


def curves(step: StepResult) -> list[Curve]:
    """The answer curves of an analyze step, those with a point at least."""
    rows = (step.folder / "curves").read_tables("shard-", records.ANSWER_CURVE).to_pylist()
    found = []
    for row in rows:
        if row["lhat"]:
            leak = row["leak_position"]
            has_leak = leak is not None and 0 <= leak <= row["position"][-1]
            found.append(
                Curve(
                    row["trajectory_id"],
                    row["question_id"],
                    row["probe"],
                    row["group"],
                    row["position"],
                    row["lhat"],
                    leak if has_leak else None,
                    max(row["num_tokens"], 1),
                )
            )
    return found


def probed(step: StepResult, curves: Sequence[Curve]) -> str:
    """Which positions the step probed, in words: what its setting says, and what the curves hold."""
    until = step.settings.get("analyze.until")
    asked = f"every token up to and including {until}" if until else "every token of the trajectory"
    num_cut = sum(curve.position[-1] < curve.num_tokens for curve in curves)
    shares = [curve.position[-1] / curve.num_tokens for curve in curves]
    return (
        f"{asked}; {num_cut} of {len(curves)} trajectories go on behind the last probed token, which lies at"
        f" {100 * sum(shares) / len(shares):.0f} % of their tokens on average"
    )


def drawn(step: StepResult, curves: Sequence[Curve], alpha: float) -> Figure:
    """Raw curves with their mean, and beside them the paper's smoothing of the same curves."""
    probes = list(dict.fromkeys(curve.probe for curve in curves))
    canvas = Canvas(figsize=(10.5, 3.9 * len(probes)))
    panels = canvas.subplots(len(probes), 2, sharex=True, sharey=True, squeeze=False)
    rows: list[dict[str, Any]] = []
    rasterized = sum(len(curve.lhat) for curve in curves) > RASTER_POINTS
    for probe, (left, right) in zip(probes, panels, strict=True):
        for group, colour in GROUP_COLOURS.items():
            members = [curve for curve in curves if curve.probe == probe and curve.group == group]
            if not members:
                continue
            for axis, kind in ((left, "raw"), (right, "ema")):
                _curve_group(axis, members, colour, group, alpha if kind == "ema" else None, rasterized)
                _leaks(axis, members, colour)
            rows += [row for curve in members for row in _curve_rows(curve, alpha)]
        name = f" [{probe}]" if len(probes) > 1 else ""
        left.set_title(f"As measured{name}")
        right.set_title(f"The paper's smoothing (EMA, alpha = {alpha:g}){name}")
        for axis in (left, right):
            axis.set_ylabel("L-hat, nats per answer token")
            axis.tick_params(labelleft=True)
        left.legend(fontsize=9, loc="upper left")
        left.set_ylim(bottom=0)
    for axis in panels[-1]:
        axis.set_xlabel("prefix, as a share of the last probed one")
        axis.tick_params(axis="x", pad=9)
        axis.set_xlim(0, 1)
    caption = (
        f"Probed: {probed(step, curves)}. Faint: single trajectories. Bold: their mean over the normalised position,"
        f" with its 95 % bootstrap interval over trajectories (shaded). Ticks under the axis: where the answer is first"
        f" written. The smoothing lags behind: a step there looks like a slope here."
    )
    return finished(f"lhat_{step.name}", f"L-hat along the trajectory ({step.name})", caption, canvas, rows)


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
    values = np.array(on_grid)
    drawn = np.random.default_rng(0).integers(len(values), size=(BAND_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    axis.fill_between(grid, low, high, color=colour, alpha=0.25, linewidth=0)
    label = f"{group} ({len(curves)} trajectories)"
    axis.plot(grid, values.mean(axis=0), color=colour, linewidth=2.2, label=label)


def _curve_rows(curve: Curve, alpha: float) -> Iterator[dict[str, Any]]:
    smooth = ema(curve.lhat, alpha)
    for position, share, raw, smoothed in zip(curve.position, curve.share, curve.lhat, smooth, strict=True):
        yield {
            "trajectory_id": curve.trajectory_id,
            "group": curve.group,
            "probe": curve.probe,
            "position": position,
            "x": share,
            "lhat": raw,
            "ema": float(smoothed),
            "leak_position": curve.leak_position,
        }
