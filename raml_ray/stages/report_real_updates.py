"""The page's part on real updates: whether a trajectory's pseudo-update is anything that training would do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from raml_ray.config import Config
from raml_ray.stages.claims import answered
from raml_ray.stages.instruments.intervals import by_question
from raml_ray.stages.instruments.real_updates import CHANGE, CHANGES, PAIRS, less
from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_figures import INK, Figure, finished
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_measures import counted, interval_table, point
from raml_ray.stages.report_outcomes import MIN_QUESTIONS, Claim, level_for, measured
from raml_ray.workers.real_updates import KINDS

NAMES = {"pseudo": "pseudo-update", "sgd": "SGD", "lora": "distilled adapter"}
COLOURS = {"pseudo": "#0072B2", "sgd": "#E69F00", "lora": "#009E73"}
COSINES = {
    "own": ("cosine", 3),
    "other": ("with another question's", 3),
    "excess": ("over that", 3),
    "noise": ("a random change's", 3),
}
EFFECTS = {
    "norm": ("length", 2),
    "lhat": ("L-hat with it, nats", 2),
    "fall": ("fall of L-hat", 2),
    "fall_noise": ("a random change's", 2),
    "lhat_at_length": ("L-hat at the pseudo-update's length", 2),
    "kl": ("KL from the reader, nats", 2),
    "fall_others": ("fall on other questions", 2),
}
TOKENS = {
    "fall_first": ("fall of its own token, nats", 2),
    "fall_rest": ("fall of the other tokens", 2),
    "fall_rest_noise": ("a random change's", 2),
}
Rows = Sequence[Mapping[str, Any]]


def shown(run: Run) -> Shown:
    """The section of the steps that held pseudo-updates against training."""
    claims, figures, tables = [], [], []
    for step in run.of_instrument("real_updates"):
        groups = {name: found for name, found in step.figures["groups"].items() if found["num"]}
        for group, found in groups.items():
            pairs = [(_pair(pair, ", "), found["cosines"]["_".join(pair)]) for pair in PAIRS]
            effects = [(NAMES[kind], found["effects"][kind]) for kind in KINDS]
            tokens = [(NAMES[kind], found["tokens"][kind]) for kind in KINDS]
            tables.append(
                interval_table(f"{step.name}, {found['num']} {group} trajectories: cosine of", COSINES, pairs)
            )
            tables.append(interval_table("without the trajectory, W_v changed by", EFFECTS, effects))
            if found["num_several_tokens"]:
                tables.append(interval_table("made for the answer's first token", TOKENS, tokens))
            tables.append(_note(found))
        if groups:
            rows = (step.folder / CHANGES.name).read_tables("shard-", CHANGE).to_pylist()
            claims.append(_is_training(step, rows, run.config))
            figures.append(_figure(step, groups, rows))
    return Shown("Pseudo-updates and real ones", claims, "".join(tables), figures)


def _note(found: Mapping[str, Any]) -> str:
    return (
        f'<p class="note">L-hat is {found["without"]["mean"]:.2f} nats without the trajectory and'
        f" {found['with']['mean']:.2f} with it. Means over trajectories of a question with 95 % bootstrap intervals over"
        f" questions; {found['num_several_tokens']} trajectories have an answer of several tokens.</p>\n"
    )


def _is_training(step: StepResult, rows: Rows, config: Config) -> Claim:
    mine = [row for row in rows if (row["group"], row["made_for"], row["change"]) == ("correct", "answer", "pseudo")]
    own = by_question((row["question_id"], row["cosine_sgd"]) for row in mine)
    excess = by_question((row["question_id"], less(row["cosine_sgd"], row["cosine_other_sgd"])) for row in mine)
    measurements = tuple(
        measured("correct trajectories", step.name, metric, values, config, unit="cosine", level=level_for(2))
        for metric, values in (
            ("cosine of a trajectory's pseudo-update with SGD on its answer", own),
            ("the same, over another question's SGD", excess),
        )
    )
    num = measurements[0].num_questions
    few = f"questions: {num}, fewer than {MIN_QUESTIONS}: too few to decide"
    return answered("pseudo-update-is-training", measurements, few if num < MIN_QUESTIONS else "")


def _figure(step: StepResult, groups: Mapping[str, Any], rows: Rows) -> Figure:
    """A row of panels for each group."""
    canvas, drawn = Canvas(figsize=(11, 3.5 * len(groups) + 0.4)), list[dict[str, Any]]()
    panels = canvas.subplots(len(groups), 3, sharex="col", sharey="col", squeeze=False)
    for (group, found), (cosines, effects, transfer) in zip(groups.items(), panels, strict=True):
        mine = [*_cosines(cosines, found), *_effects(effects, found), *_transfers(transfer, found)]
        drawn += [each | {"group": group} for each in mine]
        for axis, title in ((cosines, "direction"), (effects, "effect"), (transfer, "transfer")):
            axis.set_title(f"{group.capitalize()}: {title}")
        cosines.set_ylabel("cosine of the changes of W_v")
        effects.set_ylabel("L-hat without the trajectory,\nnats per answer token")
        transfer.set_ylabel("fall of the loss, nats per token")
    for axis in panels[-1]:
        axis.legend(fontsize=7)
    panels[-1][0].set_xticks(range(len(PAIRS)), [_pair(pair, ",\n") for pair in PAIRS], fontsize=7)
    for axis in panels[-1][1:]:
        axis.set_xticks(range(len(KINDS)), [NAMES[kind] for kind in KINDS], fontsize=8)
    caption = (
        f"Changes of W_v that stand in for a trajectory ({counted(rows)}): its pseudo-update, SGD on its"
        " question's answer, and an adapter distilled from the policy that has read it. Left: cosines of two of them, of one"
        " with another question's, and of a random change. Middle: L-hat with the change, with a random one of its length,"
        " and with it at the pseudo-update's length. Right: what a change made for the answer's first token does to that"
        " token and to the others, and what one made for the answer does to other questions. Whiskers: 95 % bootstrap"
        " intervals over questions."
    )
    return finished(f"real_updates_{step.name}", f"Pseudo-updates and real ones ({step.name})", caption, canvas, drawn)


def _pair(pair: tuple[str, str], between: str) -> str:
    return between.join(NAMES[kind] for kind in pair)


def _cosines(axis: Axes, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for place, pair in enumerate(PAIRS):
        values, panel = found["cosines"]["_".join(pair)], f"direction: {_pair(pair, ', ')}"
        for shift, (name, style) in enumerate(_NULLS.items()):
            yield from _point(axis, place + 0.2 * (shift - 1), values[name], style, place == 0, panel)
    axis.axhline(0, color=INK, linewidth=0.8)


def _effects(axis: Axes, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for place, kind in enumerate(KINDS):
        values, panel = found["effects"][kind], f"effect: {kind}"
        for shift, (name, style) in enumerate(_EFFECTS.items()):
            yield from _point(axis, place + 0.2 * (shift - 1), values[name], style, place == 0, panel)
    for name, line in (("without", ":"), ("with", "--")):
        axis.axhline(found[name]["mean"], color=INK, linewidth=0.9, linestyle=line, label=f"{name} the trajectory")


def _transfers(axis: Axes, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for place, kind in enumerate(KINDS):
        values = {"own token": found["tokens"][kind]["fall_first"], "other tokens": found["tokens"][kind]["fall_rest"]}
        values |= {"other questions": found["effects"][kind]["fall_others"]}
        for shift, (name, style) in enumerate(_TRANSFERS.items()):
            yield from _point(axis, place + 0.2 * (shift - 1), values[name], style, place == 0, f"transfer: {kind}")
    axis.axhline(0, color=INK, linewidth=0.8)


_NULLS = {
    "own": ("the same question's", COLOURS["pseudo"], "o"),
    "other": ("another question's", COLOURS["sgd"], "s"),
    "noise": ("a random change", "#8c8c8c", "^"),
}
_EFFECTS = {
    "lhat": ("the change", COLOURS["pseudo"], "o"),
    "lhat_at_length": ("at the pseudo-update's length", COLOURS["lora"], "D"),
    "lhat_noise": ("a random one of its length", "#8c8c8c", "^"),
}
_TRANSFERS = {
    "own token": ("its own token", COLOURS["pseudo"], "o"),
    "other tokens": ("the answer's other tokens", COLOURS["sgd"], "s"),
    "other questions": ("other questions", "#CC79A7", "v"),
}


def _point(
    axis: Axes, x: float, value: Mapping[str, float] | None, style: tuple[str, str, str], is_first: bool, panel: str
) -> list[dict[str, Any]]:
    if value is None:
        return []
    label, colour, marker = style
    mean, low, high = value.values()
    error = [[max(mean - low, 0)], [max(high - mean, 0)]]
    named = label if is_first else None
    axis.errorbar(x, mean, error, color=colour, label=named, marker=marker, markersize=5, capsize=2.5, ls="none")
    return [point(panel, label, x, [mean, low, high])]
