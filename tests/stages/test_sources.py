"""Question sets from files: what is read, what is refused before anything starts, and what is set aside."""

import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raml_ray import records
from raml_ray.config import Config, ConfigError, Step, override
from raml_ray.stages import evaluate, inputs, sources
from raml_ray.stages.sources import Found
from raml_ray.text.questions import Row
from tests.stages import contexts

GSM8K = Path(__file__).parents[1] / "data" / "gsm8k"


def config_of(path: Path | str, **changes: object) -> Config:
    settings = {"data.path": str(path)} | {name.replace("__", "."): value for name, value in changes.items()}
    return override(Config(), settings)


def found(config: Config) -> Found:
    return sources.questions(config, config.data, stage="generate")


def questions(config: Config) -> tuple[list[records.Question], list[records.Rejected]]:
    taken = found(config)
    assert taken.filtered == []
    return taken.questions, taken.rejected


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
    taken, rejected = questions(config)
    lines = [json.loads(line) for line in (GSM8K / "test.jsonl").read_text().splitlines()]
    assert [q.problem for q in taken] == [line["question"] for line in lines]
    assert [q.answer for q in taken] == [line["answer"].split("####")[1].strip() for line in lines]
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
        ("paper:orz-maths", "did you mean 'orz-math'"),
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
    taken, rejected = questions(config_of(path, data__max_rejected_fraction=0.05))
    assert len(taken) == 96
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
    taken, rejected = questions(config_of(path, data__max_rejected_fraction=0.5))
    assert len(taken) == 3
    assert [row.reason for row in rejected] == ["missing_column:problem"]


def arithmetic(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"problem": f"{i} + 1?", "answer": str(i + 1)} for i in range(start, start + count)]


def test_a_folder_of_any_store_may_mix_jsonl_packed_jsonl_and_parquet() -> None:
    store = fsspec.filesystem("memory")
    with store.open("/mixed/a/set.jsonl", "wb") as file:
        file.write("".join(f"{json.dumps(row)}\n" for row in arithmetic(2)).encode())
    with store.open("/mixed/b/set.jsonl.gz", "wb") as file:
        file.write(gzip.compress("".join(f"{json.dumps(row)}\n" for row in arithmetic(2, 2)).encode()))
    with store.open("/mixed/b/set.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(arithmetic(2, 4)), file)
    taken, _ = questions(config_of("memory://mixed"))
    assert [q.problem for q in taken] == [f"{i} + 1?" for i in range(6)]
    places = [row.place for row in sources.rows(config_of("memory://mixed").data)]
    assert places == [f"a/set.jsonl:{i}" for i in (1, 2)] + [
        "b/set.jsonl.gz:1",
        "b/set.jsonl.gz:2",
        "b/set.parquet:0",
        "b/set.parquet:1",
    ]
    assert len(questions(config_of("memory://mixed/b/set.parquet"))[0]) == 2


def test_a_file_url_is_the_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "set.jsonl", *arithmetic(3))
    assert questions(config_of(f"file://{path}", data__columns={}))[0][0].problem == "0 + 1?"


def test_every_row_that_a_filter_turns_down_is_counted_with_its_reason_and_is_no_flaw(tmp_path: Path) -> None:
    bad = [
        {"problem": "What is <b>1</b>?", "answer": "1"},
        {"problem": "Find the area in the figure.", "answer": "2"},
        {"problem": "Let $x be one. Find it.", "answer": "3"},
        {"problem": "1/2?", "answer": "\\frac{1}{2}"},
        {"problem": "Root?", "answer": "\\sqrt{"},
        {"problem": "None?", "answer": ""},
    ]
    path = jsonl(tmp_path / "set.jsonl", *arithmetic(4), *bad)
    names = ["verifiable", "complete", "no_image", "no_markup", "digits"]
    taken = found(config_of(path, data__filters=names, data__max_rejected_fraction=0.0))
    assert (len(taken.questions), taken.rejected, taken.num_rows) == (4, [], 10)
    assert [f"{row.row_key} {row.stage} {row.reason}" for row in taken.filtered[:4]] == [
        "set.jsonl:5 filter no_markup:html",
        "set.jsonl:6 filter no_image:spoken_of",
        "set.jsonl:7 filter complete:unbalanced_dollar",
        "set.jsonl:8 filter digits:not_digits",
    ]
    figures = taken.figures()
    assert (figures["questions"], figures["questions_rejected"], figures["questions_filtered"]) == (4, 0, 6)
    assert sum(figures["filtered_reasons"].values()) == 6
    assert figures["filtered_reasons"]["verifiable:empty_answer"] == 1


def test_gold_that_cannot_be_judged_is_a_flaw_unless_its_filter_is_on(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "set.jsonl", *arithmetic(3), {"problem": "Root?", "answer": "\\sqrt{"})
    off = found(config_of(path, data__max_rejected_fraction=0.5))
    on = found(config_of(path, data__filters=["verifiable"]))
    assert (off.filtered, on.rejected) == ([], [])
    assert off.rejected[0].row_key == on.filtered[0].row_key == "set.jsonl:4"
    assert on.filtered[0].reason == off.rejected[0].reason.replace("bad_gold:", "verifiable:")


def test_the_paper_s_judge_sets_aside_no_answer_that_it_merely_does_not_know_again(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "answer": r"11\sqrt2"},
        {"problem": "b", "answer": "(" * 900 + "1" + ")" * 900},
        *arithmetic(3),
    ]
    config = config_of(jsonl(tmp_path / "set.jsonl", *rows), verify__judge="paper", data__max_rejected_fraction=0.5)
    taken, rejected = questions(config)
    assert [question.answer for question in taken] == [r"11\sqrt2", *[row["answer"] for row in rows[2:]]]
    # The strict judge finds it equal to its own characters; the paper's would parse it.
    assert [row.reason for row in rejected] == ["bad_gold:cpu_deadline"]


def test_a_line_of_brackets_without_end_is_set_aside_and_spoils_no_other(tmp_path: Path) -> None:
    deep = '{"problem": "q", "answer": "2", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    path = jsonl(tmp_path / "set.jsonl", *arithmetic(3), "[" * 200_000, deep)
    taken, rejected = questions(config_of(path, data__max_rejected_fraction=0.5))
    assert len(taken) == 3
    assert [(row.row_key, row.reason) for row in rejected] == [
        ("set.jsonl:4", "not_a_record"),
        ("set.jsonl:5", "not_a_record"),
    ]


def test_a_limit_counts_the_questions_that_are_taken(tmp_path: Path) -> None:
    bad = [{"problem": "Find the", "answer": "1"}, {"problem": "Root?", "answer": "\\sqrt{"}]
    path = jsonl(tmp_path / "set.jsonl", *arithmetic(1), *bad, *arithmetic(9, 1))
    taken = found(config_of(path, data__filters=["complete", "verifiable"], data__limit=2))
    assert [q.problem for q in taken.questions] == ["0 + 1?", "1 + 1?"]
    assert taken.num_rows == 4  # and what follows was not looked at
    untouched = found(config_of(path, data__limit=1))
    assert (len(untouched.questions), untouched.num_rows) == (1, 1)


def test_filters_hold_for_the_miniature_too() -> None:
    config = config_of("miniature:train", data__filters=["no_markup"], data__limit=5)
    assert len(found(config).questions) == 5
    nobody = config_of("miniature:train", data__filters=["digits"])
    taken = found(nobody)
    assert all(q.answer.isdigit() for q in taken.questions)
    assert taken.num_rows == nobody.miniature.num_train


def test_letters_are_taken_as_they_are_and_not_asked_of_the_judge_of_mathematics(tmp_path: Path) -> None:
    rows = [{"problem": f"Which {i}?", "answer": answer} for i, answer in enumerate(["(C)", "d.", "7"])]
    config = config_of(jsonl(tmp_path / "s.jsonl", *rows), data__answers="choice", data__max_rejected_fraction=0.5)
    taken = found(config)
    assert [q.answer for q in taken.questions] == ["C", "D"]
    assert [row.reason for row in taken.rejected] == ["bad_gold:not_a_letter"]


class Boxed(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.string(), "tests.boxed")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Boxed":
        raise AssertionError("code of the file's type ran")


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_file_with_extension_types_is_refused(tmp_path: Path, nested: bool) -> None:
    boxed = pa.ExtensionArray.from_storage(Boxed(), pa.array(["1"]))
    column = pa.StructArray.from_arrays([boxed], ["inside"]) if nested else boxed
    table = pa.table({"problem": ["a?"], "answer": ["1"], "other": column})
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(ConfigError, match=r"set.parquet holds Arrow extension types \(columns \['other'\]\).*anew"):
        questions(config_of(tmp_path / "set.parquet"))


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ConfigError, match=r"set.parquet is no Parquet file"):
        questions(config_of(tmp_path / "set.parquet"))


def test_parquet_rows_come_without_the_columns_that_nobody_asked_for(tmp_path: Path) -> None:
    rows = [row | {"generations": ["a", "b"], "meta": {"id": i, "x": 1}} for i, row in enumerate(arithmetic(3))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    data = config_of(tmp_path, data__texts={"p": "generations"}, data__columns={"question_id": "meta.id"}).data
    assert list(next(sources.rows(data, with_texts=False)).value or {}) == ["answer", "meta", "problem"]
    assert list(next(sources.rows(data)).value or {}) == ["answer", "generations", "meta", "problem"]


def test_a_hugging_face_set_streams_from_a_local_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for part in range(2):
        rows = [row | {"extra": [1]} for row in arithmetic(3, 3 * part)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-{part}.parquet")
    config = config_of(f"hf:{folder}", data__limit=4)
    taken, _ = questions(config)
    assert [q.problem for q in taken] == [f"{i} + 1?" for i in range(4)]
    assert set(next(sources.rows(config.data)).value or {}) == {"problem", "answer"}
    assert sources.local_path(f"hf:{folder}") == str(folder)
    assert inputs.content(sources.local_path(f"hf:{folder}")) == inputs.content(str(folder))


def test_a_hugging_face_set_that_is_out_of_reach_says_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"hf:nobody/nothing.*cannot be read: .*HF_HOME .*or data.path to a folder"):
        questions(config_of("hf:nobody/nothing", data__revision="abc"))


def test_what_evaluation_sets_give_and_lose_is_told_by_set(tmp_path: Path) -> None:
    jsonl(tmp_path / "set.jsonl", *arithmetic(2), {"problem": "Find the", "answer": "1"}, {"problem": "no answer?"})
    context = contexts.context(
        tmp_path / "run",
        Step(name="evaluate", stage="evaluate"),
        evaluate__sets={"one": str(tmp_path / "set.jsonl"), "other": str(tmp_path / "set.jsonl")},
        data__filters=["complete"],
        data__max_rejected_fraction=0.5,
    )
    taken = evaluate._questions(context)
    assert [(q.source, q.problem) for q in taken.questions] == [
        (name, problem) for name in ("one", "other") for problem in ("0 + 1?", "1 + 1?")
    ]
    assert [row.row_key for row in taken.filtered] == ["one/set.jsonl:3", "other/set.jsonl:3"]
    assert [row.row_key for row in taken.rejected] == ["one/set.jsonl:4", "other/set.jsonl:4"]
