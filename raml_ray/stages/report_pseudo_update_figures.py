"""The figures of tokens as updates: their direction, size and transfer layer by layer, and the two parts of the step, attention
mass and direction, head by head."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from raml_ray.stages.report_data import StepResult
from raml_ray.stages.report_figures import INK, Figure, finished
from raml_ray.stages.report_lhat_figures import GROUP_COLOURS, band
from raml_ray.stages.report_measures import counted, point, whiskers
from raml_ray.workers.pseudo_update import READERS

SERIES = {
    "cosine": ("the token's update", "#0072B2", "o"),
    "cosine_shuffled": ("another token's", "#E69F00", "s"),
    "cosine_random": ("a random step", "#8c8c8c", "^"),
}
MADE_FOR = {"answer": ("#0072B2", "o"), "token": ("#CC79A7", "s")}
MOST_POINTS = 2000
"""Tokens of a group in the scatter plot, evenly over those that were measured."""
MOST_NAMED = 16
"""Heads of a heat map that their numbers are written into."""

Rows = Sequence[Mapping[str, Any]]


def is_of_states(rows: Rows) -> bool:
    """Whether the policy's heads keep a state: then there is no other reader to tell apart."""
    return all(each["reader"] != "token" for each in rows)


def by_layer(step: StepResult, rows: Rows) -> Figure:
    """Direction, size and transfer, a row of panels for each group."""
    groups = _groups(rows)
    canvas, drawn = Canvas(figsize=(10.5, 3.4 * len(groups) + 0.3)), list[dict[str, Any]]()
    panels = canvas.subplots(len(groups), 3, sharex="col", sharey="col", squeeze=False)
    for group, (cosines, sizes, transfers) in zip(groups, panels, strict=True):
        mine = [row for row in rows if row["group"] == group]
        answer = [row for row in mine if row["reader"] == "answer"]
        found = [*_direction(cosines, answer), *_size(sizes, answer, group), *_transfer(transfers, mine)]
        drawn += [each | {"group": group} for each in found]
        for axis, title in ((cosines, "direction"), (sizes, "size"), (transfers, "transfer")):
            axis.set_title(f"{group.capitalize()}: {title}")
    for axis, label in zip(panels[-1], ("layer", "norm of the pseudo-update (Frobenius)", "layer"), strict=True):
        axis.set_xlabel(label)
    for axis in (panels[-1][0], panels[-1][2]):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize=8)
    caption = (
        f"{counted(rows)}. Left: cosine of a token's pseudo-update, as the answer reads it, with minus the gradient of L-hat"
        " before the token; beside it the update of another token of the same trajectory, and a step of random direction."
        f" Middle: each token's update (all layers and heads) and what L-hat did; {_relation(step, groups)}. Right: what is"
        " left of another query's step when it is served by the weights made for one. Whiskers: 95 % bootstrap intervals over"
        " trajectories."
    )
    return finished(f"pseudo_update_{step.name}", f"Tokens as updates of W_v ({step.name})", caption, canvas, drawn)


def _groups(rows: Rows) -> list[str]:
    there = {row["group"] for row in rows}
    return [group for group in GROUP_COLOURS if group in there]


def _direction(axis: Axes, rows: Rows) -> Iterator[dict[str, Any]]:
    for index, (measure, (label, colour, marker)) in enumerate(SERIES.items()):
        for layer, values in enumerate(_by_layer(rows, measure)):
            if values:
                x = layer + 0.15 * (index - 1)
                found = whiskers(axis, x, values, colour, label if layer == 0 else None, marker)
                yield point("direction", measure, layer, found)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_ylabel("cosine with -gradient of W_v")


def _size(axis: Axes, rows: Rows, group: str) -> Iterator[dict[str, Any]]:
    tokens = rows[:: -(-len(rows) // MOST_POINTS) or 1]
    norms = [row["patch_norm_whole"] for row in tokens]
    changes = [abs(row["lhat_after"] - row["lhat_before"]) for row in tokens]
    axis.plot(norms, changes, ".", color=GROUP_COLOURS[group], alpha=0.5, markersize=4, rasterized=len(norms) > 1000)
    axis.set(xscale="log", yscale="log", ylabel="|change of L-hat|, nats per answer token")
    return (point("size", "tokens", norm, [change]) for norm, change in zip(norms, changes, strict=True))


def _relation(step: StepResult, groups: Sequence[str]) -> str:
    """What the norm of an update says of the change of L-hat, as it was measured."""
    told = []
    for group in groups:
        tau = step.figures["groups"][group]["answer"]["tau_norm_change"]
        if tau is None:
            told.append(f"{group}: too few tokens to tell")
            continue
        larger = (
            "more" if tau["low"] > 0 else "less" if tau["high"] < 0 else "neither more nor less, as far as this says"
        )
        told.append(
            f"{group}: {tau['mean']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}], larger updates move L-hat {larger}"
        )
    return f"Kendall's tau of the two within a trajectory, with its 95 % interval: {'; '.join(told)}"


def _transfer(axis: Axes, rows: Rows) -> Iterator[dict[str, Any]]:
    for index, (reader, (colour, marker)) in enumerate(MADE_FOR.items()):
        made_for = "every query" if is_of_states(rows) else f"the {reader}"
        mine = [row for row in rows if row["reader"] == reader]
        for layer, values in enumerate(_by_layer(mine, "transfer_error", median=True)):
            if values:
                label, x = f"made for {made_for}" if layer == 0 else None, layer + 0.12 * (2 * index - 1)
                yield point("transfer", reader, layer, whiskers(axis, x, values, colour, label, marker))
    axis.axhline(1, color=INK, linewidth=0.8, linestyle="--")
    axis.set_ylabel("error left, share of the step (1: no update)")
    axis.set_ylim(bottom=0)


def _by_layer(rows: Rows, measure: str, *, median: bool = False) -> Iterator[list[float]]:
    """Of each layer a value per trajectory: the mean (or median) over its tokens and heads."""
    middle = np.nanmedian if median else np.nanmean
    by_trajectory = [np.stack(tokens) for tokens in _by_trajectory(rows, measure).values()]
    for layer in range(max((row["num_layers"] for row in rows), default=0)):
        values = [tokens_NLH[:, layer] for tokens_NLH in by_trajectory]
        yield [float(middle(each)) for each in values if np.isfinite(each).any()]


def _by_trajectory(rows: Rows, measure: str) -> dict[str, list[np.ndarray]]:
    """Each trajectory's tokens, (L, H)."""
    found: dict[str, list[np.ndarray]] = {}
    for row in rows:
        tokens = found.setdefault(row["trajectory_id"], [])
        tokens.append(np.array(row[measure], dtype=np.float64).reshape(row["num_layers"], -1))
    return found


def by_head(step: StepResult, rows: Rows) -> Figure:
    """Heat maps of the step's size p_t and its direction's length |v_t - o_l|, layer by head, a row for each group."""
    length = "|u|, length of what is written" if is_of_states(rows) else "|v_t - o_l|, length of the direction"
    asked = [
        (measure, label, reader)
        for measure, label in (("mass", "p_t, attention mass"), ("direction_norm", length))
        for reader in READERS
        if any(row["reader"] == reader and np.isfinite(row[measure]).any() for row in rows)
    ]
    groups = _groups(rows)
    canvas, drawn = Canvas(figsize=(2.7 * max(len(asked), 2), 2.9 * len(groups) + 0.5)), list[dict[str, Any]]()
    panels = canvas.subplots(len(groups), len(asked), squeeze=False)
    for (measure, label, reader), column in zip(asked, panels.T, strict=True):
        maps = [
            _medians([row for row in rows if (row["group"], row["reader"]) == (group, reader)], measure)
            for group in groups
        ]
        limits = [float(bound([found[0] for found in maps])) for bound in (np.nanmin, np.nanmax)]
        for group, axis, found in zip(groups, column, maps, strict=True):
            image = axis.imshow(found[0], cmap="cividis", vmin=limits[0], vmax=limits[1], aspect="auto")
            axis.set(title=f"{group.capitalize()}: read by the {reader}", xlabel="head", ylabel="layer")
            axis.title.set_fontsize(9)
            _named(axis, found, sum(limits) / 2)
            drawn += _cells({"panel": measure, "reader": reader, "group": group}, found)
        canvas.colorbar(image, ax=list(column), location="top", label=label, aspect=25)
    caption = (
        f"{counted(rows)}. A token's step in a head is p_t (v_t - o_l): its attention mass, a share, times its value less the"
        " old output, in the units of the values (Proposition 2.1). Medians over a trajectory's tokens, mean over trajectories;"
        " in brackets (and in the data, where there are many heads) 95 % bootstrap intervals over trajectories."
    )
    title = f"How large a token's step is, head by head ({step.name})"
    return finished(f"pseudo_update_heads_{step.name}", title, caption, canvas, drawn)


def _medians(rows: Rows, measure: str) -> list[np.ndarray]:
    """Mean over trajectories of the median over their tokens, and its interval's bounds, each (L, H)."""
    medians = [np.nanmedian(np.stack(tokens), axis=0) for tokens in _by_trajectory(rows, measure).values()]
    return list(band(medians))


def _named(axis: Axes, found: Sequence[np.ndarray], middle: float) -> None:
    """The numbers in a small map's cells; whole numbers alone along the axes."""
    axis.grid(visible=False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    means, lows, highs = found
    if means.size > MOST_NAMED:
        return
    for (layer, head), mean in np.ndenumerate(means):
        text = f"{mean:.2g}\n[{lows[layer, head]:.2g}, {highs[layer, head]:.2g}]"
        colour = "black" if mean > middle else "white"
        axis.text(head, layer, text, ha="center", va="center", fontsize=6, color=colour)


def _cells(head_of: Mapping[str, str], found: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
    means, lows, highs = found
    for (layer, head), mean in np.ndenumerate(means):
        bounds = {"low": float(lows[layer, head]), "high": float(highs[layer, head])}
        yield {**head_of, "layer": layer, "head": head, "median": float(mean), **bounds}
