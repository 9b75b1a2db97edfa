"""The paper's sets by name."""

import json

import pytest

from raml_ray.settings import DataConfig
from raml_ray.text import known_sets, programs


def test_a_name_stands_for_the_place_the_split_and_the_columns() -> None:
    data = known_sets.resolved(DataConfig(path="paper:orz-math-val", revision="abc"))
    assert (data.path, data.split) == ("hf:jnanliu/orz-math-filtered-val", "test")
    assert data.columns == {"problem": "problem", "answer": "answer"}
    assert (data.texts, data.labels) == ({}, {})


def test_published_trajectories_bring_their_policy_and_its_labels() -> None:
    data = known_sets.resolved(DataConfig(path="paper:orz-math-distill-14b-rollouts", revision="abc"))
    assert data.texts == {"DeepSeek-R1-Distill-Qwen-14B": "generations"}
    assert data.labels == {"DeepSeek-R1-Distill-Qwen-14B": "labels"}


def test_what_the_user_set_stays() -> None:
    mine = DataConfig(
        path="paper:orz-math-qwen-72b-rollouts",
        split="validation",
        columns={"problem": "q"},
        texts={"teacher": "generations"},
        revision="abc",
        limit=3,
    )
    data = known_sets.resolved(mine)
    assert (data.split, data.columns, data.revision, data.limit) == ("validation", {"problem": "q"}, "abc", 3)
    # Labels go with the texts that they are of: not to be filled in for another policy's name.
    assert (data.texts, data.labels) == ({"teacher": "generations"}, {})


def test_other_sets_are_as_they_were_and_an_unknown_name_brings_the_nearest() -> None:
    data = DataConfig(path="hf:owner/name")
    assert known_sets.resolved(data) is data
    with pytest.raises(ValueError, match=r"paper:orz-mat'.*did you mean 'orz-math'\?; there are paper:orz-math, paper"):
        known_sets.resolved(DataConfig(path="paper:orz-mat", revision="abc"))


def test_a_version_that_is_not_named_is_asked_for_by_its_setting() -> None:
    with pytest.raises(ValueError, match=r"data\.revisions\.HuggingFaceH4/aime_2024=COMMIT, or set data\.mirror"):
        known_sets.resolved(DataConfig(path="paper:aime24"))
    pinned = DataConfig(path="paper:aime24", revisions={"HuggingFaceH4/aime_2024": "abc"})
    assert (known_sets.resolved(pinned).path, known_sets.resolved(pinned).revision) == (
        "hf:HuggingFaceH4/aime_2024",
        "abc",
    )
    with pytest.raises(ValueError, match=r"set data\.mirror to a folder"):
        known_sets.resolved(DataConfig(path="paper:livecodebench-v4-v5", answers="code", revision="abc"))


def test_answers_of_another_kind_are_refused_with_the_setting() -> None:
    with pytest.raises(ValueError, match=r"paper:gpqa-diamond: .*set data.answers=choice, in a step of its own"):
        known_sets.resolved(DataConfig(path="paper:gpqa-diamond", revision="abc"))


def test_a_set_of_parts_is_read_part_by_part() -> None:
    data = DataConfig(path="paper:livemathbench-hard", revision="abc")
    parts = [known_sets.resolved(part) for part in known_sets.parts_of(data)]
    assert [part.subset for part in parts] == ["v202412_hard_en", "v202412_hard_cn"]
    assert {part.path for part in parts} == {"hf:opencompass/LiveMathBench"}
    assert known_sets.resolved(data).columns == {"problem": "question", "answer": "answer"}
    assert known_sets.parts_of(DataConfig(path="x.jsonl")) == [DataConfig(path="x.jsonl")]


@pytest.mark.parametrize(("name", "count"), [("aime24", 30), ("aime25-i", 15), ("math500", 500), ("gpqa-diamond", 198)])
def test_a_set_has_as_many_rows_as_are_known_of_it(name: str, count: int) -> None:
    known_sets.check_rows(name, [{}] * count)
    with pytest.raises(ValueError, match=f"has {count} rows, and here are {count - 1}"):
        known_sets.check_rows(name, [{}] * (count - 1))


def test_math500_has_134_questions_of_level_5() -> None:
    rows = [{"level": 5}] * 134 + [{"level": 4}] * 366
    known_sets.check_rows("math500-level5", rows)
    with pytest.raises(ValueError, match="134 questions of level 5, and here are 133"):
        known_sets.check_rows("math500-level5", [*rows[1:], {"level": 1}])
    assert known_sets.resolved(DataConfig(path="paper:math500-level5", revision="abc")).levels == (5,)


def test_the_options_of_gpqa_are_turned_by_one_from_question_to_question() -> None:
    row = {"Question": "Which?", "Correct Answer": "r", **{f"Incorrect Answer {n}": f"w{n}" for n in (1, 2, 3)}}
    first, second, third, fourth = known_sets.shaped("gpqa-diamond", [row] * 4)
    assert first["problem"] == "Which?\n\nA) w1\nB) w2\nC) w3\nD) r"
    assert [asked["answer"] for asked in (first, second, third, fourth)] == ["D", "C", "B", "A"]


def test_a_task_of_livecodebench_starts_from_its_code_and_keeps_its_tests() -> None:
    cases = json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}])
    row = {"question_content": "Add.", "starter_code": "", "public_test_cases": cases, "private_test_cases": "[]"}
    (asked,) = known_sets.shaped("livecodebench-v4-v5", [row | {"metadata": "{}"}])
    assert asked["problem"] == "Add."
    assert programs.parse_tests(asked["answer"]).tests == (programs.ProgramTest("1 2", "3"),)
    (asked,) = known_sets.shaped("livecodebench-v4-v5", [row | {"metadata": "{}", "starter_code": "def f():"}])
    assert asked["problem"] == "Add.\n\nStart from this code:\n```python\ndef f():\n```"


def test_the_four_questions_of_figure_3_are_found_by_their_answers() -> None:
    answers = [str(n) for n in (1, 468, 204, 540, 2, "025")]
    assert known_sets.picked("aime24-four", answers) == [2, 5, 3, 1]
    assert known_sets.picked("aime24", answers) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"\[25\] are not there once"):
        known_sets.picked("aime24-four", answers[:-1])
