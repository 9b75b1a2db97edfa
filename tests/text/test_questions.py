"""Rows of a question set: what becomes a question, and what is set aside with which reason."""

import pytest

from raml_ray.records import Question
from raml_ray.settings import DataConfig
from raml_ray.text import questions
from raml_ray.text.questions import Row

DATA = DataConfig(path="set.jsonl", columns={"problem": "question", "answer": "answer"}, answer_pattern=r"####\s*(.+)")


def rows(*values: object) -> list[Row]:
    return [Row(f"set.jsonl:{number}", value) for number, value in enumerate(values, 1)]  # type: ignore[arg-type]


def read(*values: object, data: DataConfig = DATA) -> tuple[list[Question], list[str]]:
    found, rejected = questions.read(rows(*values), data, stage="generate")
    assert len(found) + len(rejected) == len(values)
    return found, [f"{row.row_key} {row.reason}" for row in rejected]


def test_the_answer_is_the_last_match_of_the_pattern() -> None:
    found, rejected = read({"question": " 1 + 1? ", "answer": "#### 3\nno:\n#### 2 "})
    assert (found[0].problem, found[0].answer, rejected) == ("1 + 1?", "2", [])


def test_a_question_without_an_id_is_named_by_what_it_asks() -> None:
    one, _ = read({"question": "a", "answer": "#### 1"})
    again, _ = read({"question": "a", "answer": "#### 1"})
    other, _ = read({"question": "b", "answer": "#### 1"})
    assert one[0].question_id == again[0].question_id != other[0].question_id


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "not_a_record"),
        ({"question": "a"}, "missing_column:answer"),
        ({"question": "", "answer": "#### 1"}, "empty_problem"),
        ({"question": "  ", "answer": "#### 1"}, "empty_problem"),
        ({"question": "a", "answer": "no mark"}, "empty_answer"),
        ({"question": "a", "answer": None}, "bad_type:answer"),
        ({"question": ["a"], "answer": "#### 1"}, "bad_type:question"),
        ({"question": "a\x00", "answer": "#### 1"}, "bad_encoding:question"),
        ({"question": "\ud800", "answer": "#### 1"}, "bad_encoding:question"),
        ({"question": "a" * (questions.MAX_CHARS + 1), "answer": "#### 1"}, "too_long:question"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason_and_spoils_no_other(row: object, reason: str) -> None:
    good = {"question": "good", "answer": "#### 1"}
    found, rejected = read(row, good)
    assert [question.problem for question in found] == ["good"]
    assert rejected == [f"set.jsonl:1 {reason}"]


def test_a_repeated_id_and_a_second_answer_to_the_same_question_are_set_aside() -> None:
    data = DATA.model_copy(update={"columns": {**DATA.columns, "question_id": "id"}})
    found, rejected = read(
        {"id": 1, "question": "a", "answer": "#### 1"},
        {"id": 1, "question": "b", "answer": "#### 1"},
        {"id": 2, "question": "a", "answer": "#### 2"},
        data=data,
    )
    assert [question.question_id for question in found] == ["1"]
    assert rejected == ["set.jsonl:2 duplicate_id", "set.jsonl:3 conflicting_answer"]


def test_a_mapped_column_that_the_source_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(
        ValueError, match=r"data.columns.problem='question'.*no such column; it has \['answer', 'prompt'\]"
    ):
        questions.check_columns([{"prompt": "a", "answer": "1"}, {"prompt": "b"}], DATA)


def test_one_row_with_the_mapped_columns_is_enough() -> None:
    questions.check_columns([{"prompt": "a"}, {"question": "a", "answer": "#### 1"}], DATA)
    questions.check_columns([], DATA)  # no row is a record: each is set aside


def test_dots_descend_into_records() -> None:
    row = {"solutions": {"small": {"text": "t"}}, "a.b": 1}
    assert questions.lookup(row, "solutions.small.text") == "t"
    assert questions.lookup(row, "a.b") == 1
    with pytest.raises(KeyError):
        questions.lookup(row, "solutions.large")


def test_a_limit_takes_the_first_questions() -> None:
    data = DATA.model_copy(update={"limit": 1})
    found, _ = questions.read(
        rows({"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "#### 1"}), data, stage="s"
    )
    assert [question.problem for question in found] == ["a"]
