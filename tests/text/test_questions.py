"""Rows of a question set: what becomes a question, and what is set aside or turned down with which reason."""

import json

import pytest

from raml_ray import records
from raml_ray.records import Question
from raml_ray.settings import DataConfig
from raml_ray.text import questions
from raml_ray.text.questions import Row

DATA = DataConfig(path="set.jsonl", columns={"problem": "question", "answer": "answer"}, answer_pattern=r"####\s*(.+)")


def rows(*values: object) -> list[Row]:
    return [Row(f"set.jsonl:{number}", value) for number, value in enumerate(values, 1)]  # type: ignore[arg-type]


def read(*values: object, data: DataConfig = DATA) -> tuple[list[Question], list[str]]:
    items = list(questions.read(rows(*values), data, stage="generate"))
    assert [item.place for item in items] == [f"set.jsonl:{number}" for number in range(1, len(values) + 1)]
    others = [item.found for item in items if not isinstance(item.found, Question)]
    assert all(row.stage in ("generate", questions.FILTER) for row in others)
    lines = [f"{'- ' if row.stage == questions.FILTER else ''}{row.row_key} {row.reason}" for row in others]
    return [item.found for item in items if isinstance(item.found, Question)], lines


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


@pytest.mark.parametrize(
    ("level", "expected"),
    [("3", 3), (4, 4), ("-1", -1), ("\u00b2", None), ("--5", None), ("9" * 5000, None), ("99999999999", None)]
    + [(value, None) for value in (None, ["3"], True, "\ud800", "hard", "", 3.5)],
)
def test_a_level_that_is_no_whole_number_is_left_out_and_costs_no_question(level: object, expected: int | None) -> None:
    data = DATA.model_copy(update={"columns": {**DATA.columns, "level": "level", "domain": "field"}})
    found, rejected = read({"question": "a", "answer": "#### 1", "level": level, "field": None}, data=data)
    assert ([(q.level, q.domain) for q in found], rejected) == ([(expected, "")], [])
    records.table(found, records.QUESTION)
    found, rejected = read({"question": "a", "answer": "#### 1", "field": "algebra"}, data=data)
    assert ([(q.level, q.domain) for q in found], rejected) == ([(None, "algebra")], [])


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


def test_the_columns_that_a_source_has_to_have_are_named_by_their_settings() -> None:
    data = DATA.model_copy(update={"texts": {"small": "s.text"}, "labels": {"small": "s.ok"}})
    asked = {"data.columns.problem": "question", "data.columns.answer": "answer"}
    assert questions.columns(data, with_texts=False) == asked
    assert questions.columns(data, with_texts=True) == asked | {
        "data.texts.small": "s.text",
        "data.labels.small": "s.ok",
    }


def test_dots_descend_into_records() -> None:
    row = {"solutions": {"small": {"text": "t"}}, "a.b": 1}
    assert questions.lookup(row, "solutions.small.text") == "t"
    assert questions.lookup(row, "a.b") == 1
    with pytest.raises(KeyError):
        questions.lookup(row, "solutions.large")


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("b", "B"), ("(B)", "B"), ("b.", "B"), ("(j)", "J"), ("C)", "C"), ("A:", "A"), ("(D).", "D")]
    + [(text, "") for text in ("", "K", "BC", "B or C", "1", "the answer is B", "((B)", "()")],
)
def test_a_letter_stands_alone(text: str, letter: str) -> None:
    assert questions.letter(text) == letter


def test_a_multiple_choice_s_answer_is_a_letter_and_anything_else_is_set_aside() -> None:
    data = DATA.model_copy(update={"answers": "choice"})
    found, others = read({"question": "a", "answer": "#### (b)"}, {"question": "c", "answer": "#### 12"}, data=data)
    assert [question.answer for question in found] == ["B"]
    assert others == ["set.jsonl:2 bad_gold:not_a_letter"]


def test_a_filter_turns_down_what_it_is_there_for_and_the_rest_is_set_aside() -> None:
    data = DATA.model_copy(update={"answers": "choice", "filters": ("verifiable", "complete", "no_markup")})
    rows = (
        {"question": "Which?", "answer": "#### a"},
        {"question": "Which one?", "answer": "#### 12"},
        {"question": "Which other?", "answer": "none"},
        {"question": "", "answer": "#### a"},
        {"question": "Which of the", "answer": "#### a"},
        {"question": "See https://a.b?", "answer": "#### a"},
        {"question": ["Which?"], "answer": "#### a"},
    )
    found, others = read(*rows, data=data)
    assert [question.problem for question in found] == ["Which?"]
    assert others == [
        "- set.jsonl:2 verifiable:not_a_letter",
        "- set.jsonl:3 verifiable:empty_answer",
        "- set.jsonl:4 complete:empty_problem",
        "- set.jsonl:5 complete:cut_off",
        "- set.jsonl:6 no_markup:url",
        "set.jsonl:7 bad_type:question",
    ]
    unfiltered, set_aside = read(*rows, data=data.model_copy(update={"filters": ()}))
    assert [question.problem for question in unfiltered] == ["Which?", "Which of the", "See https://a.b?"]
    assert [line.split(" ")[1] for line in set_aside] == [
        "bad_gold:not_a_letter",
        "empty_answer",
        "empty_problem",
        "bad_type:question",
    ]


def test_tests_of_a_program_are_read_and_those_that_cannot_be_are_set_aside_with_the_cause() -> None:
    data = DataConfig(path="set.jsonl", answers="code")
    tests = json.dumps({"kind": "stdin", "tests": [{"input": "1\n", "output": "2\n"}]})
    found, others = read({"problem": "a", "answer": tests}, {"problem": "b", "answer": "2"}, data=data)
    assert [question.answer for question in found] == [tests]
    assert len(others) == 1
    assert others[0].startswith("set.jsonl:2 bad_gold:")
