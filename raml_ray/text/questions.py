"""Rows of any question set -> questions, or rows set aside with a reason."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from raml_ray import records
from raml_ray.records import Question, Rejected
from raml_ray.settings import DataConfig

MAX_CHARS = 1_000_000


class Row(NamedTuple):
    """One row of a source and the place it came from: `Row("train.jsonl:17", {...})`. A line that is no row has value None."""

    place: str
    value: Mapping[str, Any] | None


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path. Raises: KeyError if a part of it is missing."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(path)
        value = value[part]
    return value


def check_columns(rows: Sequence[Mapping[str, Any]], data: DataConfig) -> None:
    """Refuse a mapping that names a column which none of these rows has; a single row without it is set aside later.

    Raises: ValueError that names the setting, the column and the columns there are.
    """
    wanted = {f"data.columns.{name}": column for name, column in data.columns.items()}
    for name in ("problem", "answer"):
        wanted.setdefault(f"data.columns.{name}", name)
    wanted |= {f"data.texts.{name}": column for name, column in data.texts.items()}
    wanted |= {f"data.labels.{name}": column for name, column in data.labels.items()}
    for setting, column in wanted.items():
        if rows and not any(_has(row, column) for row in rows):
            there = sorted({name for row in rows for name in row})
            raise ValueError(f"{setting}={column!r}: {data.path} has no such column; it has {there}")


def _has(row: Mapping[str, Any], column: str) -> bool:
    try:
        lookup(row, column)
    except KeyError:
        return False
    return True


def _text(value: Any) -> str:
    """Raises: TypeError for what is no text and no number, UnicodeError for what no file could hold."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(type(value).__name__)
    text = str(value).strip()
    text.encode("utf-8")
    if "\x00" in text:
        raise UnicodeError("NUL")
    return text


def _answer(text: str, pattern: str) -> str:
    if not pattern:
        return text
    matches = list(re.finditer(pattern, text))
    return matches[-1].group(1).strip() if matches else ""


def question_of(row: Mapping[str, Any], data: DataConfig) -> Question | str:
    """The row's question, or the reason why it has none."""
    names = {"problem": "problem", "answer": "answer"} | data.columns
    values: dict[str, str] = {}
    for name, column in names.items():
        try:
            values[name] = _text(lookup(row, column))
        except KeyError:
            return f"missing_column:{column}"
        except UnicodeError:
            return f"bad_encoding:{column}"
        except TypeError:
            return f"bad_type:{column}"
        if len(values[name]) > MAX_CHARS:
            return f"too_long:{column}"
    problem, answer = values["problem"], _answer(values["answer"], data.answer_pattern)
    if not problem:
        return "empty_problem"
    if not answer:
        return "empty_answer"
    level = values.get("level", "")
    return Question(
        question_id=values.get("question_id") or records.question_id(problem, answer),
        problem=problem,
        answer=answer,
        source=data.path,
        domain=values.get("domain", ""),
        level=int(level) if level.lstrip("-").isdigit() else None,
    )


def read(rows: Iterable[Row], data: DataConfig, *, stage: str) -> tuple[list[Question], list[Rejected]]:
    """The questions of a source, first come first kept, and the rows set aside.

    A row is set aside if it is no record, lacks a column, holds something else than text or a number, has an empty
    problem or answer, repeats an id, or gives a question that was there already another answer.
    """
    questions: dict[str, Question] = {}
    answers: dict[str, str] = {}
    rejected: list[Rejected] = []
    for place, row in rows:
        found = "not_a_record" if row is None else question_of(row, data)
        if isinstance(found, Question):
            if found.question_id in questions:
                found = "duplicate_id"
            elif answers.setdefault(found.problem, found.answer) != found.answer:
                found = "conflicting_answer"
        if isinstance(found, str):
            rejected.append(records.rejected(place, stage, found, row))
            continue
        questions[found.question_id] = found
        if data.limit and len(questions) == data.limit:
            break
    return list(questions.values()), rejected
