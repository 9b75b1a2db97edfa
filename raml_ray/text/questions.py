"""Rows of any question set -> questions, rows set aside with a reason, or rows that a filter turned down."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from raml_ray import records
from raml_ray.records import Question, Rejected
from raml_ray.settings import DataConfig
from raml_ray.text import programs, question_filters

MAX_CHARS = 1_000_000
MAX_TEST_CHARS = 64_000_000
"""Of a program's tests, which may hold large inputs."""
MAX_REASON_CHARS = 200
BAD_GOLD = "bad_gold:"
"""Begins the reason of a row whose answer cannot be judged."""
LEVEL = re.compile(r"-?[0-9]{1,9}")
"""Whole numbers that every column type here can hold."""
OPTIONAL = frozenset({"domain", "level"})
"""What a question can do without: a value that cannot be read is left empty and costs no question."""
FILTER = "filter"
"""The stage of a row that was turned down on purpose and is no flaw of its source."""


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


def columns(data: DataConfig, *, with_texts: bool) -> dict[str, str]:
    """Setting -> the column that it names, of what a source has to have."""
    wanted = {f"data.columns.{name}": column for name, column in _columns(data).items()}
    if with_texts:
        wanted |= {f"data.texts.{name}": column for name, column in data.texts.items()}
        wanted |= {f"data.labels.{name}": column for name, column in data.labels.items()}
    return wanted


def _columns(data: DataConfig) -> dict[str, str]:
    return {"problem": "problem", "answer": "answer"} | data.columns


def has(row: Mapping[str, Any], column: str) -> bool:
    """Whether the row has a value at that path."""
    try:
        lookup(row, column)
    except KeyError:
        return False
    return True


def flaw_of(text: str) -> str:
    """`bad_encoding` for a text that no file could hold or show (a lone surrogate, NUL); empty if it can be kept."""
    try:
        text.encode("utf-8")
    except UnicodeError:
        return "bad_encoding"
    return "bad_encoding" if "\x00" in text else ""


def _value(row: Mapping[str, Any], column: str, most_chars: int) -> tuple[str, str]:
    """The text in the column, or none and the reason: `("12", "")`, `("", "bad_type")`."""
    try:
        value = lookup(row, column)
    except KeyError:
        return "", "missing_column"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return "", "bad_type"
    text = str(value).strip()
    flaw = flaw_of(text) or ("too_long" if len(text) > most_chars else "")
    return ("", flaw) if flaw else (text, "")


def _answer(text: str, pattern: str) -> str:
    if not pattern:
        return text
    matches = list(re.finditer(pattern, text))
    return matches[-1].group(1).strip() if matches else ""


def letter(text: str) -> str:
    """The letter A to J that stands alone in the text, as `b`, `(B)` or `B.` do; empty if none does."""
    found = re.fullmatch(r"\(?([A-Ja-j])[).:]{0,2}", text)
    return found.group(1).upper() if found else ""


def question_of(row: Mapping[str, Any], data: DataConfig) -> Question | str:
    """The row's question, or the reason why it has none."""
    values: dict[str, str] = {}
    for name, column in _columns(data).items():
        most = MAX_TEST_CHARS if (name, data.answers) == ("answer", "code") else MAX_CHARS
        value, flaw = _value(row, column, most)
        if flaw and name not in OPTIONAL:
            return f"{flaw}:{column}"
        values[name] = value
    problem, answer = values["problem"], _answer(values["answer"], data.answer_pattern)
    if not problem:
        return "empty_problem"
    if not answer:
        return "empty_answer"
    if data.answers == "choice" and not (answer := letter(answer)):
        return f"{BAD_GOLD}not_a_letter"
    if data.answers == "code":
        try:
            programs.parse_tests(answer)
        except ValueError as error:
            return f"{BAD_GOLD}{error}"[:MAX_REASON_CHARS]
    level = values.get("level", "")
    return Question(
        question_id=values.get("question_id") or records.question_id(problem, answer),
        problem=problem,
        answer=answer,
        source=data.path,
        domain=values.get("domain", ""),
        level=int(level) if LEVEL.fullmatch(level) else None,
    )


class Item(NamedTuple):
    """What became of one row: `Item("train.jsonl:17", Question(...))`. A Rejected of stage FILTER was turned down."""

    place: str
    found: Question | Rejected


def read(rows: Iterable[Row], data: DataConfig, *, stage: str) -> Iterator[Item]:
    """Every row in its order: as a question, first come first kept, or set aside or turned down with the reason.

    A row is set aside if it is no record, lacks a column, holds something else than text or a number, has an empty
    problem or answer, or an answer that is not what `data.answers` says, repeats an id, or gives a question that was
    there already another answer. Whether the answer can be judged is not asked here.
    """
    seen: set[str] = set()
    answers: dict[str, str] = {}
    for place, row in rows:
        found = "not_a_record" if row is None else question_of(row, data)
        if isinstance(found, Question):
            if found.question_id in seen:
                found = "duplicate_id"
            elif answers.setdefault(found.problem, found.answer) != found.answer:
                found = "conflicting_answer"
        if isinstance(found, str):
            yield Item(place, set_aside(place, found, row, data, stage=stage))
            continue
        seen.add(found.question_id)
        yield Item(place, filtered(place, found, data) or found)


def set_aside(place: str, reason: str, row: object, data: DataConfig, *, stage: str) -> Rejected:
    """The row as rejected; or as turned down where the filter is on that is there for such rows."""
    if question_filters.VERIFIABLE in data.filters and (reason == "empty_answer" or reason.startswith(BAD_GOLD)):
        reason, stage = f"{question_filters.VERIFIABLE}:{reason.removeprefix(BAD_GOLD)}", FILTER
    elif question_filters.COMPLETE in data.filters and reason == "empty_problem":
        reason, stage = f"{question_filters.COMPLETE}:{reason}", FILTER
    return records.rejected(place, stage, reason, row)


def filtered(place: str, question: Question, data: DataConfig) -> Rejected | None:
    """The question as turned down by one of data.filters or by data.levels; None if it may stay."""
    reason = question_filters.turned_down(question, data.filters)
    if not reason and data.levels and question.level not in data.levels:
        reason = f"level:{question.level}"
    return records.rejected(place, FILTER, reason, question) if reason else None
