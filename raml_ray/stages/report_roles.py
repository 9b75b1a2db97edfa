"""The page's part on words: what each kind does to L-hat, held against like places, and the paper's own statistic beside."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from raml_ray.config import Config
from raml_ray.stages.claims import answered
from raml_ray.stages.instruments.intervals import by_question
from raml_ray.stages.instruments.roles import WORDS
from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_figures import INK, Figure, finished
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_lhat_figures import GROUP_COLOURS
from raml_ray.stages.report_measures import RESAMPLES, counted, interval_table, point
from raml_ray.stages.report_outcomes import MIN_QUESTIONS, Claim, level_for, measured

COLUMNS = {
    "num_words": ("words", 0),
    "num_before_leak": ("before the answer", 0),
    "log_ratio": ("log ratio of L-hat", 3),
    "matched": ("over like places", 3),
    "matched_size": ("size, over like places", 3),
    "size_rank": ("rank of its size there", 3),
}
REFLECTION = "reflection"
RANK = ("size_rank", 1, "of like places")
"""What decides, its sign and its unit."""


def shown(run: Run) -> Shown:
    """The section of the steps that looked at words."""
    claims, figures, tables = [], [], []
    for step in run.of_instrument("roles"):
        groups = {name: found for name, found in step.figures["groups"].items() if found["num"]}
        listed = [
            (f"{category}, {group}", found["categories"][category])
            for group, found in groups.items()
            for category in found["categories"]
        ]
        tables.append(interval_table(f"{step.name}: words of", COLUMNS, listed))
        tables.append(
            '<p class="note">Of words before the answer is written, with 95 % bootstrap intervals over trajectories. Log ratio:'
            " log of L-hat after the word over L-hat before it, negative where it falls, median over words. Like places: the"
            " nearest windows of the same length without such a word; the word's log ratio, and its size, less the mean of"
            " theirs, and the share of them whose size is smaller (ties count half) less 1/2, which is 0 of words like any"
            " other; means over each trajectory's words.</p>\n"
        )
        rows = (step.folder / WORDS.name).read_tables("shard-", WORDS.schema).to_pylist()
        if any(category == REFLECTION for found in groups.values() for category in found["categories"]):
            claims.append(_reflects(step, rows, run.config))
        if groups:
            figures.append(_figure(step, groups, rows))
    return Shown("Words by their role", claims, "".join(tables), figures)


def _reflects(step: StepResult, rows: Sequence[Mapping[str, Any]], config: Config) -> Claim:
    """Fig. 6: reflection words are larger steps; decided by their ranks among equal windows at like places, before the answer:
    of skewed sizes any distance from the middle would be above 0 without a cause."""

    def values(measure: str, sign: float) -> Iterator[tuple[str, float | None]]:
        for row in rows:
            for word in row["words"]:
                if (row["group"], word["category"]) == ("correct", REFLECTION) and word["before_leak"]:
                    yield row["question_id"], None if word[measure] is None else sign * word[measure]

    measurements = [
        measured(
            "correct trajectories",
            step.name,
            metric,
            by_question(values(measure, sign)),
            config,
            unit=unit,
            level=level_for(1),
            decides=measure == RANK[0],
        )
        for metric, measure, sign, unit in (
            ("like places over which L-hat moves less than over a reflection word, less 1/2", *RANK),
            (
                "size of L-hat's log ratio over a reflection word, less that at like places",
                "matched_size",
                1,
                "log ratio",
            ),
            ("fall of L-hat over a reflection word, less that at like places", "matched", -1, "log ratio"),
        )
    ]
    num = measurements[0].num_questions
    few = f"questions with such words: {num}, fewer than {MIN_QUESTIONS}: too few to decide"
    return answered("reflection-moves-lhat", measurements, few if num < MIN_QUESTIONS else "")


def _figure(step: StepResult, groups: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Figure:
    canvas = Canvas(figsize=(10.5, 4.2))
    plain, matched, paper = canvas.subplots(1, 3)
    drawn: list[dict[str, Any]] = []
    for axis, measure in ((plain, "log_ratio"), (matched, "matched")):
        for index, (group, found) in enumerate(groups.items()):
            for place, (category, entry) in enumerate(found["categories"].items()):
                if value := entry[measure]:
                    middle, low, high = value.values()
                    error = [[max(middle - low, 0)], [max(high - middle, 0)]]
                    label = group if group not in axis.get_legend_handles_labels()[1] else None
                    y = place + 0.2 * (index - (len(groups) - 1) / 2)
                    style = {"marker": "os"[index], "markersize": 5, "capsize": 2.5, "ls": "none", "label": label}
                    axis.errorbar(middle, y, xerr=error, color=GROUP_COLOURS[group], **style)
                    drawn.append(point(measure, f"{category}, {group}", place, [middle, low, high]))
        names = list(next(iter(groups.values()))["categories"])
        axis.set_yticks(range(len(names)), names if axis is plain else [])
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel("log(L-hat after / before)")
    plain.set_title("Over a word")
    plain.legend(fontsize=8)
    matched.set_title("Less that at like places")
    _paper(paper, groups, rows, drawn)
    caption = (
        f"{counted(rows)}. Left: medians over words before the answer is written; middle: means of what they do beyond like"
        " places; whiskers 95 % bootstrap intervals over trajectories; below zero L-hat falls. Right: the paper's statistic as"
        " its notebook has it: |change| / L-hat, over one token for the average and over one more than the word's for words,"
        " the answer's tokens included, but of the thinking's last tokens as many left out as the answer suffix has; bars are"
        " means of correct trajectories with the number of values and 95 % bootstrap intervals over trajectories, and heavy"
        " tails make them what they are."
    )
    return finished(f"roles_{step.name}", f"What words do to L-hat ({step.name})", caption, canvas, drawn)


def _paper(
    axis: Any, groups: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], drawn: list[dict[str, Any]]
) -> None:
    """Bars of the paper's means, on its log axis."""
    group = "correct" if "correct" in groups else next(iter(groups))
    mine = [row for row in rows if row["group"] == group]
    bars = {word: entry for word, entry in groups[group]["paper"].items() if entry["mean"]}
    for place, (word, entry) in enumerate(bars.items()):
        low, high = _pooled([_changes(row, word) for row in mine])
        error = [[max(entry["mean"] - low, 0)], [max(high - entry["mean"], 0)]]
        colour = "#8c8c8c" if word == "average" else "#0072B2"
        axis.barh(place, entry["mean"], xerr=error, color=colour, ecolor=INK, capsize=2.5, height=0.6)
        axis.annotate(f" {entry['mean']:.2g} (n={entry['num']})", (high, place), va="center", fontsize=8)
        drawn.append(point("paper", word, place, [entry["mean"], low, high]))
    axis.set_yticks(range(len(bars)), list(bars))
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set(title="The paper's statistic", xscale="log", xlabel="mean of |change| / L-hat before")
    axis.margins(x=0.35)


def _changes(row: Mapping[str, Any], word: str) -> list[float]:
    """Of one trajectory what the paper's mean of that word is over."""
    if word == "average":
        return list(row["paper_changes"])
    return [each["change"] for each in row["paper_words"] if each["word"] == word]


def _pooled(by_trajectory: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The 95 % bootstrap interval, over trajectories, of the mean of all their values."""
    sums, counts = (np.array([of(values) for values in by_trajectory if values], dtype=float) for of in (sum, len))
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)
