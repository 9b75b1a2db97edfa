"""The claim that a summary of a trajectory keeps most of its accuracy, from what an engine answered behind both."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from raml_ray.config import Config
from raml_ray.stages.claims import answered
from raml_ray.stages.instruments.intervals import by_question
from raml_ray.stages.instruments.shorter import ANSWERED, AS_SUMMARY, RANDOM, SUMMARY, TRUNCATION, WHOLE
from raml_ray.stages.report_data import StepResult
from raml_ray.stages.report_outcomes import MIN_QUESTIONS, NEAR_ZERO, Claim, Measurement, Outcome, level_for, measured

CLAIM = "summaries-keep-accuracy"
HELD_AGAINST = {
    WHOLE: ("half of whole", 0.5),
    TRUNCATION: ("cut to as many tokens", 1.0),
    RANDOM: ("sentences left out at random to as many tokens", 1.0),
}
"""What a summary's accuracy is held against, and which share of it. The first decides, the others are its control."""

Pair = tuple[str, float, float]
"""Question, accuracy from a summary, and from what it is held against."""


def claim(step: StepResult, config: Config) -> Claim:
    """Over the summaries that do not hold the answer, each beside its own trajectory: the difference, paired by question."""
    rows = step.folder.read_table(ANSWERED).to_pylist()
    told = [row for row in _as_long(rows, SUMMARY) if not row["holds_answer"]]
    measurements: dict[str, Measurement] = {}
    for way, (name, share) in HELD_AGAINST.items():
        pairs = _pairs(told, rows, way)
        if pairs or way == WHOLE:
            found = measured(
                f"summary - {name}",
                step.name,
                "accuracy",
                by_question((question, mine - share * other) for question, mine, other in pairs),
                config,
                unit="points",
                level=level_for(1),
                decides=way == WHOLE,
            )
            is_empty = _is_empty(pairs)
            measurements[way] = replace(found, outcome=Outcome.UNDECIDED, is_empty=True) if is_empty else found
    return answered(CLAIM, list(measurements.values()), "; ".join(_remarks(measurements)))


def _as_long(rows: Sequence[Mapping[str, Any]], way: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["way"], row["budget"]) == (way, AS_SUMMARY)]


def _pairs(told: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], way: str) -> list[Pair]:
    """Of every summary whose answers, and those of its own trajectory shortened that way, could be judged."""
    if way == WHOLE:
        whole = {row["trajectory_id"]: row["accuracy"] for row in rows if row["way"] == WHOLE}
        others = [whole.get(row["trajectory_id"]) for row in told]
    else:
        by_draw = {(row["trajectory_id"], row["draw"]): row["accuracy"] for row in _as_long(rows, way)}
        others = [by_draw.get((row["trajectory_id"], row["draw"])) for row in told]
    return [
        (row["question_id"], row["accuracy"], other)
        for row, other in zip(told, others, strict=True)
        if row["accuracy"] is not None and other is not None
    ]


def _is_empty(pairs: Sequence[Pair]) -> bool:
    """Whether accuracy is at or near zero on both sides: then there is nothing to compare."""
    if not pairs:
        return False
    mine = by_question((question, value) for question, value, _ in pairs)
    others = by_question((question, value) for question, _, value in pairs)
    return max(fmean(mine.values()), fmean(others.values())) <= NEAR_ZERO


def _remarks(measurements: Mapping[str, Measurement]) -> list[str]:
    deciding, control = measurements[WHOLE], measurements.get(RANDOM)
    found = []
    if deciding.num_questions < MIN_QUESTIONS:
        found.append(
            f"questions with a summary that does not hold the answer: {deciding.num_questions}, fewer than"
            f" {MIN_QUESTIONS}: too few to decide"
        )
    if deciding.is_empty:
        found.append("accuracy is at or near zero on both sides, the comparison is empty")
    if control is None:
        found.append("without its control: shorter.ways does not name random")
    elif deciding.outcome is Outcome.HOLDS and control.outcome is not Outcome.HOLDS:
        found.append(
            "it does not speak for summaries: what is cut at random keeps as much, as far as the interval says"
        )
    return found
