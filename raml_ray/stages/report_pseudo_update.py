"""The page's part on pseudo-updates: whether what a token writes points down the gradient of the answer's loss."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from raml_ray.config import Config
from raml_ray.stages import report_tables
from raml_ray.stages.claims import answered
from raml_ray.stages.instruments.intervals import by_question
from raml_ray.stages.instruments.pseudo_update import TOKEN, UPDATES
from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_figures import INK, Figure, finished
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_lhat_figures import GROUP_COLOURS
from raml_ray.stages.report_measures import cell, interval_table, point, whiskers
from raml_ray.stages.report_outcomes import MIN_QUESTIONS, Claim, level_for, measured

COLUMNS = {
    "num": ("trajectories", 0),
    "cosine": ("cosine with -gradient", 3),
    "cosine_shuffled": ("another token's", 3),
    "cosine_random": ("a random step's", 3),
    "cosine_excess": ("over another token's", 3),
    "mass": ("attention mass", 3),
    "transfer_error": ("transfer error", 2),
    "tau_norm_change": ("tau of |dW| and |change of L-hat|", 2),
}
SERIES = {
    "cosine": ("the token's update", "#0072B2", "o"),
    "cosine_shuffled": ("another token's", "#E69F00", "s"),
    "cosine_random": ("a random step", "#8c8c8c", "^"),
}
MOST_POINTS = 4000
"""Tokens drawn in the scatter plot."""

Rows = Sequence[Mapping[str, Any]]


def shown(run: Run) -> Shown:
    """The section of the steps that measured pseudo-updates."""
    steps = run.of_instrument("pseudo_update")
    claims, figures, tables = [], [], [_beside(steps)] if len(steps) > 1 else []
    for step in steps:
        rows = (step.folder / UPDATES.name).read_tables("shard-", TOKEN).to_pylist()
        groups = step.figures["groups"]
        listed = [
            (f"{group}, read by the {reader}", found)
            for group, readers in groups.items()
            for reader, found in readers.items()
            if found["num"]
        ]
        errors = [found["reconstruction_error_max"] for _, found in listed]
        tables.append(interval_table(f"{step.name}: tokens of", COLUMNS, listed))
        tables.append(
            '<p class="note">Means over tokens with 95 % bootstrap intervals over trajectories; cosines are over all'
            " layers and heads together, transfer errors medians. Patched weights give what the layers gave with the token"
            f" up to a relative error of {max(errors, default=0):.1e}{_served(rows)}.</p>\n"
        )
        if rows:
            claims.append(_descends(step, rows, run.config, of=_attention(run, step)))
            figures.append(_figure(step, rows))
    return Shown("Tokens as updates of weights", claims, "".join(tables), figures)


def _beside(steps: Sequence[StepResult]) -> str:
    """What the update that a token is for the answer's first query is to all other queries, policy by policy."""
    body = []
    for step in steps:
        found = step.figures["groups"]["correct"]["answer"]
        if found["num"]:
            shown = [cell(found[name], 3) for name in ("cosine", "cosine_excess")]
            left = f"{found['transfer_error']['mean']:.1e}"
            shown += [left, f"{found['reconstruction_error_max']:.1e}"]
            body.append(report_tables.row([escape(f"{step.name} (of {step.policy or 'policy.path'})"), *shown]))
    header = ("correct trajectories", COLUMNS["cosine"][0], COLUMNS["cosine_excess"][0])
    return report_tables.table(
        [*header, "left for other queries, share of the step", "largest reconstruction error"], body
    )


def _served(rows: Rows) -> str:
    """Whom the updates are exact for."""
    return " for every later query: they are the changes of a state" if rows and _is_of_states(rows) else ""


def _is_of_states(rows: Rows) -> bool:
    """Whether the policy's heads keep a state: then there is no other reader to tell apart."""
    return all(each["reader"] != "token" for each in rows)


def _attention(run: Run, step: StepResult) -> str:
    """The setting by which base policies differ, of a step on one of them."""
    made = next((each for each in run.of_stage("base") if each.name == step.policy), None)
    return f"base.attention={made.settings['base.attention']}" if made else ""


def _descends(step: StepResult, rows: Rows, config: Config, *, of: str) -> Claim:
    """Eq. 4: above zero, and above what another token of the same trajectory would give."""
    correct = [row for row in rows if (row["group"], row["reader"]) == ("correct", "answer")]
    cosine = by_question((row["question_id"], row["cosine_whole"]) for row in correct)
    excess = by_question((row["question_id"], row["cosine_whole"] - row["cosine_shuffled_whole"]) for row in correct)
    measurements = tuple(
        measured("correct trajectories", step.name, metric, values, config, unit="cosine", level=level_for(2))
        for metric, values in (
            ("cosine of a token's pseudo-update with -gradient", cosine),
            ("the same, over another token's of the trajectory", excess),
        )
    )
    num = measurements[0].num_questions
    few = f"questions: {num}, fewer than {MIN_QUESTIONS}: too few to decide"
    return answered("pseudo-update-descends", measurements, few if num < MIN_QUESTIONS else "", of=of)


def _figure(step: StepResult, rows: Rows) -> Figure:
    canvas = Canvas(figsize=(10.5, 3.7))
    cosines, sizes, transfers = canvas.subplots(1, 3)
    answer = [row for row in rows if row["reader"] == "answer"]
    drawn: list[dict[str, Any]] = []
    for index, (measure, (label, colour, marker)) in enumerate(SERIES.items()):
        for layer, values in enumerate(_by_layer([row for row in answer if row["group"] == "correct"], measure)):
            if values:
                x = layer + 0.15 * (index - 1)
                found = whiskers(cosines, x, values, colour, label if layer == 0 else None, marker)
                drawn.append(point("direction", measure, layer, found))
    cosines.axhline(0, color=INK, linewidth=0.8)
    cosines.set(title="Direction", xlabel="layer", ylabel="cosine with -gradient of W_v")
    cosines.legend(fontsize=8)
    for group, colour in GROUP_COLOURS.items():
        tokens = [row for row in answer if row["group"] == group][:MOST_POINTS]
        norms = [row["patch_norm_whole"] for row in tokens]
        changes = [abs(row["lhat_after"] - row["lhat_before"]) for row in tokens]
        sizes.plot(
            norms, changes, ".", color=colour, alpha=0.5, markersize=4, label=group, rasterized=len(norms) > 1000
        )
        drawn += [point("size", group, norm, [change]) for norm, change in zip(norms, changes, strict=True)]
    sizes.set(title="Size", xscale="log", yscale="log")
    sizes.set(xlabel="norm of the pseudo-update", ylabel="|change of L-hat|, nats per answer token")
    sizes.legend(fontsize=8)
    for index, reader in enumerate(("answer", "token")):
        mine = [row for row in rows if row["reader"] == reader and row["group"] == "correct"]
        for layer, values in enumerate(_by_layer(mine, "transfer_error", median=True)):
            if values:
                made_for = "every query" if _is_of_states(rows) else f"the {reader}"
                label, colour = f"made for {made_for}", ("#0072B2", "#CC79A7")[index]
                x_at = layer + 0.12 * (2 * index - 1)
                found = whiskers(transfers, x_at, values, colour, label if layer == 0 else None, "os"[index])
                drawn.append(point("transfer", reader, layer, found))
    transfers.axhline(1, color=INK, linewidth=0.8, linestyle="--")
    transfers.set(title="Transfer", xlabel="layer", ylabel="error left, share of the step (1: no update)")
    transfers.set_ylim(bottom=0)
    transfers.legend(fontsize=8)
    for axis in (cosines, transfers):
        axis.set_xticks(range(max((row["num_layers"] for row in rows), default=1)))
    caption = (
        "Left: cosine of a token's pseudo-update, as the answer reads it, with minus the gradient of L-hat before the"
        " token (correct trajectories); beside it the update of another token of the same trajectory, and a step of random"
        " direction. Middle: each token's update (all layers and heads) and what L-hat did. Right: what is left of another"
        " query's step when it is served by the weights made for one. Whiskers: 95 % bootstrap intervals over trajectories."
    )
    return finished(f"pseudo_update_{step.name}", f"Tokens as updates of W_v ({step.name})", caption, canvas, drawn)


def _by_layer(rows: Rows, measure: str, *, median: bool = False) -> Iterator[list[float]]:
    """Of each layer a value per trajectory: the mean (or median) over its tokens and heads."""
    by_trajectory: dict[str, list[Any]] = {}
    for row in rows:
        layers = np.array(row[measure], dtype=np.float64).reshape(row["num_layers"], -1)
        by_trajectory.setdefault(row["trajectory_id"], []).append(layers)
    middle = np.nanmedian if median else np.nanmean
    for layer in range(max((row["num_layers"] for row in rows), default=0)):
        values = [np.stack(tokens)[:, layer] for tokens in by_trajectory.values()]
        yield [float(middle(each)) for each in values if np.isfinite(each).any()]
