"""Published trajectories: every text of a source's rows, with its published verdict, or why it cannot be used."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from raml_ray import records
from raml_ray.config import ConfigError
from raml_ray.records import Question, Rejected, Trajectory
from raml_ray.settings import DataConfig
from raml_ray.stages import known_rows, sources
from raml_ray.stages.sources import Found
from raml_ray.text import questions as reading

Made = tuple[Trajectory, bool | None] | Rejected
"""A trajectory with its published verdict, where there is one; or why a row that went in has become none (of stage
`filter`: because its question was turned down)."""


def texts(data: DataConfig, found: Found) -> Iterator[Made]:
    """The texts of the rows that `found` was made of, of each policy in data.texts.

    Raises: ConfigError if data.texts names none, or data.labels a policy without one.
    """
    data = known_rows.resolved(data)
    if not data.texts:
        raise ConfigError("generate.source=import needs data.texts: policy name -> the column of its trajectory")
    if unknown := sorted(data.labels.keys() - data.texts.keys()):
        raise ConfigError(
            f"data.labels names {unknown}, of which data.texts has no text: it names {sorted(data.texts)}"
        )
    accepted = {question.question_id: question for question in found.questions}
    turned_down = {row.row_key: row.reason for row in found.filtered}
    for place, row in islice(sources.rows(data), found.num_rows):
        if place in turned_down:
            for policy in data.texts:
                for index in range(max(len(_listed(row or {}, data.texts[policy])), 1)):
                    yield records.rejected(_key(place, policy, index), reading.FILTER, turned_down[place], "")
            continue
        asked = reading.question_of(row, data) if row is not None else "not_a_record"
        question = accepted.pop(asked.question_id, None) if isinstance(asked, Question) else None
        for policy in data.texts:
            yield from _of_policy(place, row or {}, question, policy, data)


def _key(place: str, policy: str, index: int) -> str:
    return f"{place}:{policy}#{index}"


def _of_policy(
    place: str, row: Mapping[str, Any], question: Question | None, policy: str, data: DataConfig
) -> Iterator[Made]:
    """Of one policy in one row every text, or why it cannot be used."""
    found = _listed(row, data.texts[policy])
    labels = _listed(row, data.labels[policy]) if policy in data.labels else None
    for index in range(max(len(found), 1)):
        reason = _flaw(found, labels, index)
        if question is None or reason:
            key = _key(place, policy, index)
            yield records.rejected(key, "generate", reason if question else "question_set_aside", row)
            continue
        how = records.digest("text", found[index])
        yield trajectory(question, policy, index, found[index], how), bool(labels[index]) if labels else None


def _flaw(found: list[Any], labels: list[Any] | None, index: int) -> str:
    """Why this text cannot be used; empty if it can."""
    if not found:
        return "missing_text"
    if not isinstance(found[index], str) or not found[index].strip():
        return "empty_text"
    if flaw := reading.flaw_of(found[index]):
        return flaw
    if labels is not None and len(labels) != len(found):
        return f"bad_label:{len(labels)} of {len(found)} texts"
    if labels is not None and not (isinstance(labels[index], bool | int | float) and labels[index] in (0, 1)):
        return f"bad_label:{labels[index]!r}"[:200]
    return ""


def _listed(row: Mapping[str, Any], column: str) -> list[Any]:
    """What stands in the column, one or a list of several; nothing if the row has no such column."""
    try:
        value = reading.lookup(row, column)
    except KeyError:
        return []
    return value if isinstance(value, list) else [value]


def trajectory(question: Question, policy: str, index: int, text: str, how: str) -> Trajectory:
    """A text that no engine made, as a trajectory; `how` tells it from other texts of that policy and index."""
    return Trajectory(
        trajectory_id=records.trajectory_id(question.question_id, policy, how, index),
        question_id=question.question_id,
        sample_index=index,
        text=text,
        finish_reason="imported",
        policy_id=policy,
        sampling="",
        seed=0,
    )
