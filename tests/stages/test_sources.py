"""Question sets from files: what is read, what is refused before anything starts, and what is set aside."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raml_ray import records
from raml_ray.config import Config, ConfigError, override
from raml_ray.stages import sources
from raml_ray.text.questions import Row

GSM8K = Path(__file__).parents[1] / "data" / "gsm8k"


def config_of(path: Path | str, **changes: object) -> Config:
    settings = {"data.path": str(path)} | {name.replace("__", "."): value for name, value in changes.items()}
    return override(Config(), settings)


def questions(config: Config) -> tuple[list[records.Question], list[records.Rejected]]:
    return sources.questions(config, config.data, stage="generate")


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_jsonl_and_parquet_hold_the_same_questions(tmp_path: Path) -> None:
    rows = [{"problem": f"{i} + 1?", "answer": str(i + 1)} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    from_json, _ = questions(config_of(jsonl(tmp_path / "set.jsonl", *rows)))
    from_parquet, _ = questions(config_of(tmp_path / "set.parquet"))
    assert [(q.question_id, q.problem, q.answer) for q in from_json] == [
        (q.question_id, q.problem, q.answer) for q in from_parquet
    ]


def test_a_folder_is_read_file_after_file(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", {"problem": "b", "answer": "1"})
    jsonl(tmp_path / "a.jsonl", {"problem": "a", "answer": "1"})
    assert [q.problem for q in questions(config_of(tmp_path))[0]] == ["a", "b"]


def test_real_questions_come_through_whole() -> None:
    config = config_of(GSM8K / "test.jsonl", data__columns={"problem": "question"}, data__answer_pattern=r"####\s*(.+)")
    found, rejected = questions(config)
    lines = [json.loads(line) for line in (GSM8K / "test.jsonl").read_text().splitlines()]
    assert [q.problem for q in found] == [line["question"] for line in lines]
    assert [q.answer for q in found] == [line["answer"].split("####")[1].strip() for line in lines]
    assert rejected == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no row"),
        ("not json\n", "none of 1 rows is a question"),
        ('{"prompt": "a", "answer": "1"}\n', "data.columns.problem='problem'"),
        ('{"problem": "a", "answer": " "}\n', "none of 1 rows is a question with an answer (empty_answer)"),
        ('{"problem": "a", "answer": "\\\\frac{"}\n', "bad_gold"),
    ],
)
def test_a_file_without_a_usable_question_is_refused_with_the_reason(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "set.jsonl").write_text(content)
    with pytest.raises(ConfigError) as error:
        questions(config_of(tmp_path / "set.jsonl"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "data.path is empty"),
        ("nowhere.jsonl", "no such file or folder"),
        ("miniature:tran", "the miniature's sets are"),
    ],
)
def test_a_source_that_is_not_there_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        questions(config_of(path))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"neither .jsonl nor .parquet"):
        questions(config_of(tmp_path / "set.csv"))


def test_bad_rows_are_set_aside_and_counted_up_to_the_share_that_is_allowed(tmp_path: Path) -> None:
    good = [{"problem": f"{i}?", "answer": str(i)} for i in range(96)]
    bad = ["{broken", {"problem": "x?"}, {"problem": "y?", "answer": "\\sqrt{"}, {"problem": "0?", "answer": "7"}]
    path = jsonl(tmp_path / "set.jsonl", *good, *bad)
    found, rejected = questions(config_of(path, data__max_rejected_fraction=0.05))
    assert len(found) == 96
    assert sorted(row.reason.split(":")[0] for row in rejected) == [
        "bad_gold",
        "conflicting_answer",
        "missing_column",
        "not_a_record",
    ]
    with pytest.raises(ConfigError, match=r"4 of 100 rows cannot be used .*data.max_rejected_fraction=0.01"):
        questions(config_of(path))


def test_every_row_has_a_place(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "set.jsonl", {"problem": "a", "answer": "1"}, "", {"problem": "b", "answer": "1"})
    rows = list(sources.rows(config_of(path).data))
    assert rows == [
        Row("set.jsonl:1", {"problem": "a", "answer": "1"}),
        Row("set.jsonl:3", {"problem": "b", "answer": "1"}),
    ]


def test_a_bad_first_row_is_set_aside_like_any_other(tmp_path: Path) -> None:
    good = [{"problem": f"{i}?", "answer": str(i)} for i in range(3)]
    path = jsonl(tmp_path / "set.jsonl", {"prompt": "a"}, *good)
    found, rejected = questions(config_of(path, data__max_rejected_fraction=0.5))
    assert len(found) == 3
    assert [row.reason for row in rejected] == ["missing_column:problem"]
