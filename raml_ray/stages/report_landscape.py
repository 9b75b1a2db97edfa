"""The page's part on landscapes: L-hat around the policy, behind growing prefixes, and the trajectory's real path."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from raml_ray.stages.instruments.landscape import POINTS
from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_figures import INK, Figure, finished
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_lhat_figures import GROUP_COLOURS
from raml_ray.stages.report_measures import counted, interval_table

AROUND = {
    "middle": ("L-hat of the policy, nats", 2),
    "rise": ("mean rise, nats", 3),
    "lower": ("share that lies lower", 3),
}
IN_PLACE = {
    "without": ("without the trajectory", 2),
    "with": ("with it", 2),
    "update": ("its update in its place", 2),
    "gradient": ("a step down the gradient", 2),
    "noise": ("a random step", 2),
}
RESAMPLES = 500
LEVELS = 13
"""Contour lines."""
DIRECTIONS = {
    "random": ("along random direction 1", "along random direction 2"),
    "update": ("along -gradient of L-hat", "towards the update, across -gradient"),
}
LENGTHS = {"filter": "norms of the weights' filters", "tensor": "norms of the weights' tensors"}
"""Unit of a random plane's axes, by landscape.normalisation."""
Rows = Sequence[Mapping[str, Any]]


def shown(run: Run) -> Shown:
    """The section of the steps that looked at landscapes."""
    figures, tables = [], []
    for step in run.of_instrument("landscape"):
        groups = {name: found for name, found in step.figures["groups"].items() if found["num"]}
        around = [
            (f"{group}, {plane}, {part} the trajectory", found)
            for group, each in groups.items()
            for plane, parts in each["planes"].items()
            for part, found in parts.items()
        ]
        tables.append(interval_table(f"{step.name}: around", AROUND, around))
        measured = [(group, each["in_place"]) for group, each in groups.items() if each["in_place"]["update"]]
        if measured:
            tables.append(interval_table("L-hat, nats per answer token", IN_PLACE, measured))
            tables.append(
                '<p class="note">Changes of every W_v of one length, without the trajectory. Means over trajectories with'
                " 95 % bootstrap intervals.</p>\n"
            )
        rows = (step.folder / POINTS.name).read_tables("shard-", POINTS.schema).to_pylist()
        for plane in dict.fromkeys(row["plane"] for row in rows):
            mine = [row for row in rows if row["plane"] == plane]
            radii = sorted({row["radius"] for row in mine if row["kind"] == "grid"}, reverse=True)
            figures += [_figure(step, mine, plane, radius, group) for radius in radii for group in groups]
    return Shown("Landscapes of L-hat", [], "".join(tables), figures)


def _figure(step: StepResult, rows: Rows, plane: str, radius: float, group: str) -> Figure:
    """Mean surfaces of one group behind its prefixes, from above and from the side, and a cut through the middle."""
    grid = [row for row in rows if row["kind"] == "grid" and row["radius"] == radius]
    own = [row for row in grid if row["group"] == group]
    shares = _shares(own)
    surfaces = [_surface(own, share) for share in shares]
    levels = np.linspace(*_bounds(surfaces), LEVELS)
    labels = _labels(plane, step.settings["landscape.normalisation"])
    canvas, drawn = Canvas(figsize=(3.2 * (len(shares) + 1), 7.0)), list[dict[str, Any]]()
    places = canvas.add_gridspec(2, len(shares) + 1)
    above = []
    for index, (share, (x, y, values)) in enumerate(zip(shares, surfaces, strict=True)):
        above.append(canvas.add_subplot(places[0, index]))
        filled = above[-1].contourf(x, y, values.T, levels, cmap="viridis")
        above[-1].plot(0, 0, "+", color="white", markersize=9)
        if share == 0:
            for path in _paths(rows, group):
                above[-1].plot(*path, color="#E69F00", linewidth=1, marker=".", markersize=3)
        limits = {"xlim": (x[0], x[-1]), "ylim": (y[0], y[-1])}
        above[-1].set(aspect="equal", title=_name(share), xlabel=labels[0], ylabel="" if index else labels[1], **limits)
        _side(canvas.add_subplot(places[1, index], projection="3d"), x, y, values, levels, labels)
        drawn += _rows_of("surface", share, x, y, values)
    canvas.colorbar(filled, ax=above, label="L-hat, nats per answer token", location="top", format="%.3g", aspect=50)
    _cuts(canvas.add_subplot(places[0, -1]), grid, drawn, labels[0])
    off_plane = step.figures["groups"][group]["off_plane"]
    caption = (
        f"Mean over {counted(own)} of L-hat behind none, more and all of the trajectory"
        f" (columns), around the policy (+), from above and from the side. {_of_plane(plane, off_plane)} Right: a cut through the middle"
        " along the first axis, behind the whole trajectory, of both groups, with 95 % bootstrap intervals over trajectories."
    )
    name = f"landscape_{step.name}_{plane}_{radius:g}_{group}".replace(".", "_")
    title = f"L-hat around the policy: {plane} plane, radius {radius:g}, {group} trajectories"
    return finished(name, title, caption, canvas, drawn)


def _labels(plane: str, normalisation: str) -> tuple[str, str]:
    """What the two axes are, and their unit."""
    unit = "lengths of the update" if plane == "update" else LENGTHS[normalisation]
    first, second = (f"{direction},\n{unit}" for direction in DIRECTIONS[plane])
    return first, second


def _side(
    axis: Any, x: np.ndarray, y: np.ndarray, values: np.ndarray, levels: np.ndarray, labels: Sequence[str]
) -> None:
    """The surface from the side, with room for what its axes are."""
    axis.plot_surface(*np.meshgrid(x, y, indexing="ij"), values, cmap="viridis", vmin=levels[0], vmax=levels[-1])
    axis.view_init(elev=35, azim=-60)
    axis.set_box_aspect(None, zoom=0.78)
    axis.set_zlim(levels[0], levels[-1])
    first, second = (label.replace(", ", ",\n") for label in labels)
    axis.set_xlabel(first, fontsize=7, labelpad=3)
    axis.set_ylabel(second, fontsize=7, labelpad=7)
    axis.set_zlabel("L-hat, nats", fontsize=7, labelpad=1)
    axis.tick_params(labelsize=7, pad=0)


def _bounds(surfaces: Sequence[tuple[Any, Any, np.ndarray]]) -> tuple[float, float]:
    low, high = (float(bound([values for *_, values in surfaces])) for bound in (np.nanmin, np.nanmax))
    return low, max(high, low + 1e-6)


def _of_plane(plane: str, off_plane: float | None) -> str:
    if plane == "random":
        return "The directions are the same for all trajectories; a step of one unit is as long as the weights that it moves."
    off = "" if off_plane is None else f" ({off_plane:.0%} of their lengths, on average, lie off the plane)"
    return (
        "Axes are in units of the trajectory's update of W_v, which lies on the unit circle; orange lines are the real paths:"
        f" the updates of growing prefixes, projected{off}. Along -gradient a step of one unit is as long as the update."
    )


def _shares(rows: Rows) -> list[float]:
    """The prefixes as shares of the trajectory: of trajectories of different lengths the nearest of a few."""
    by_trajectory = defaultdict(set)
    for row in rows:
        by_trajectory[row["trajectory_id"]].add(row["share"])
    longest = max(by_trajectory.values(), key=len)
    return sorted(longest)


def _surface(rows: Rows, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and the mean over trajectories behind the prefix whose share is nearest."""
    nearest: dict[str, float] = {}
    for row in rows:
        best = nearest.setdefault(row["trajectory_id"], row["share"])
        if abs(row["share"] - share) < abs(best - share):
            nearest[row["trajectory_id"]] = row["share"]
    at: dict[tuple[float, float], list[float]] = defaultdict(list)
    for row in rows:
        if row["share"] == nearest[row["trajectory_id"]]:
            at[row["x"], row["y"]].append(row["lhat"])
    x, y = (np.array(sorted({place[axis] for place in at})) for axis in (0, 1))
    values = np.full((len(x), len(y)), np.nan)
    for (one, other), found in at.items():
        values[np.searchsorted(x, one), np.searchsorted(y, other)] = np.mean(found)
    return x, y, values


def _paths(rows: Rows, group: str) -> list[tuple[list[float], list[float]]]:
    paths: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "path" and row["group"] == group:
            paths[row["trajectory_id"]].append(row)
    ordered = [sorted(path, key=lambda row: int(row["prefix"])) for path in paths.values()]
    return [([row["x"] for row in path], [row["y"] for row in path]) for path in ordered]


def _cuts(axis: Any, rows: Rows, drawn: list[dict[str, Any]], label: str) -> None:
    """L-hat along the first axis behind the whole trajectory, by group."""
    for group, colour in GROUP_COLOURS.items():
        cut: dict[str, dict[float, float]] = defaultdict(dict)
        for row in rows:
            if row["group"] == group and row["y"] == 0 and row["share"] == 1:
                cut[row["trajectory_id"]][row["x"]] = row["lhat"]
        if not cut:
            continue
        x = sorted({place for line in cut.values() for place in line})
        values = np.array([[line[place] for place in x] for line in cut.values() if len(line) == len(x)])
        resamples = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
        low, high = np.quantile(values[resamples].mean(axis=1), [0.025, 0.975], axis=0)
        axis.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
        axis.plot(x, values.mean(axis=0), color=colour, label=f"{group} ({len(values)})")
        for index, place in enumerate(x):
            mean = float(values[:, index].mean())
            bounds = {"lhat": mean, "low": float(low[index]), "high": float(high[index])}
            drawn.append({"panel": f"cut, {group}", "share": 1.0, "x": place, "y": 0.0} | bounds)
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set(xlabel=label, ylabel="L-hat, nats per answer token", title="Cut")
    axis.legend(fontsize=8)


def _rows_of(panel: str, share: float, x: np.ndarray, y: np.ndarray, values: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "panel": panel,
            "share": share,
            "x": float(one),
            "y": float(other),
            "lhat": float(values[i, j]),
            "low": None,
            "high": None,
        }
        for i, one in enumerate(x)
        for j, other in enumerate(y)
    ]


def _name(share: float) -> str:
    if share in (0, 1):
        return "without the trajectory" if share == 0 else "behind all of it"
    return f"behind {100 * share:.0f} % of it"
