"""What the benchmark scripts make of what they measured."""

import math
import random
from pathlib import Path

import pytest

from raml_ray import records
from raml_ray.miniature import task
from raml_ray.records import Question
from raml_ray.settings import GrpoConfig
from raml_ray.storage import Folder
from raml_ray.workers import grpo_groups
from tests.benchmarks import grpo_overlap, learner, miniature_open, probe, trl_comparison, weight_sync
from tests.benchmarks.learner import Pair, Took
from tests.benchmarks.trl_comparison import StepTaken


def test_a_learners_ratio_is_taken_within_its_pair() -> None:
    pairs = [
        Pair(100, {"learner": Took(2.0, 4.0, 1.0), "bare": Took(1.0, 3.0, 1.0)}),
        Pair(100, {"learner": Took(1.0, 2.0, 1.0), "bare": Took(0.9, 2.0, 1.0)}),
        Pair(300, {"learner": Took(3.0, 4.0, 1.0), "bare": Took(3.0, 4.0, 1.0)}),
    ]
    found = learner.summary(pairs)
    assert found["ratio"] == pytest.approx(0.9)
    assert (found["ratio_lowest"], found["ratio_highest"]) == (0.5, 1.0)
    assert found["ratio_cpu"] == pytest.approx(9 / 10)
    assert found["learner_tokens_per_s"] == 100  # of 50, 100, 100


def test_two_ways_that_find_different_losses_did_not_do_the_same_work() -> None:
    pair = Pair(100, {"learner": Took(1.0, 1.0, 2.0), "bare": Took(1.0, 1.0, 2.1)})
    with pytest.raises(SystemExit, match="not the same work"):
        learner.checked(iter([pair]))


def test_a_group_of_the_learners_benchmark_is_one_that_the_learner_takes() -> None:
    group = learner.group_of(learner.examples(4, random.Random(0)))
    settings = GrpoConfig(num_trajectories=4, num_updated=4)
    (minibatch,) = grpo_groups.examples([group], grpo_groups.judge([group], settings, seed=0))
    # Two of four are right: rewards 1 and 0, of mean 1/2 and standard deviation sqrt(4 / 4 / 3).
    expected = math.sqrt(3) / 2
    found = sorted(example.fields["advantage"][0] for example in minibatch)
    assert found == pytest.approx([-expected, -expected, expected, expected], rel=1e-3)


def test_the_first_pair_does_not_count() -> None:
    pairs = [Pair(num, {"learner": Took(1.0, 1.0, 2.0), "bare": Took(1.0, 1.0, 2.0)}) for num in (1, 2, 3)]
    assert [pair.num_tokens for pair in learner.checked(iter(pairs))] == [2, 3]


def steps(rewards: list[float], seconds: float) -> list[StepTaken]:
    return [StepTaken(seconds * (place + 1), seconds, reward, 50.0) for place, reward in enumerate(rewards)]


def test_time_to_reward_is_to_what_both_reached() -> None:
    found = trl_comparison.summary(
        {
            # Means of three: 0.1, 0.2, 0.4, 0.6 and 0.1, 0.3, 0.5, 0.5. The target is 0.9 * 0.5.
            "trl": {"whole_s": 100.0, "steps": steps([0.1, 0.1, 0.1, 0.4, 0.7, 0.7], 10.0)},
            "raml_ray": {"whole_s": 50.0, "steps": steps([0.1, 0.1, 0.1, 0.7, 0.7, 0.1], 2.0)},
        }
    )
    assert found["trl"]["target"] == found["raml_ray"]["target"] == pytest.approx(0.45)
    assert (found["trl"]["target_step"], found["trl"]["target_s"]) == (6, 60.0)
    assert (found["raml_ray"]["target_step"], found["raml_ray"]["target_s"]) == (5, 10.0)
    assert (found["trl"]["step_s"], found["trl"]["start_s"]) == (10.0, 40.0)


def test_fewer_steps_than_are_averaged_reach_nothing() -> None:
    side = {"whole_s": 30.0, "steps": steps([0.5, 0.5], 10.0)}
    assert math.isnan(trl_comparison.summary({"trl": side, "raml_ray": side})["trl"]["target_s"])


def test_overlap_is_held_against_the_longer_part_alone() -> None:
    idle = {"learner": 0.5, "engine": 0.25}
    sync = {"steps": [5.0, 5.2, 5.4], "generate": [3.0, 3.2, 3.1], "update": [1.9, 2.0, 2.1], "sync": [0.1] * 3}
    overlapped = {"steps": [3.41, 3.3, 3.5], "generate": [9.0], "update": [9.0], "sync": [9.0]}
    found = grpo_overlap.summary([{"sync": sync | {"idle": idle}, "async": overlapped | {"idle": idle}}])
    assert found["async_to_longer"] == pytest.approx(3.41 / 3.1)
    assert found["sync_to_async"] == pytest.approx(5.2 / 3.41)
    assert found["idle_sync_engine"] == 0.25


def test_a_busy_share_is_cpu_time_over_wall_time_between_two_moments() -> None:
    looks = [grpo_overlap.Look(at_s, cpu_s) for at_s, cpu_s in [(0, 9), (10, 10), (14, 13), (20, 15), (30, 99)]]
    assert grpo_overlap.busy_share(looks, 10, 20) == pytest.approx(5 / 10)


def test_a_sync_is_held_against_its_bound_round_by_round() -> None:
    found = weight_sync.summary([{"load": 2.0, "reload_weights": 1.0}, {"reload_weights": 2.0, "load": 2.0}])
    assert (found["way"], found["bound"], found["ratio"]) == ("load", "reload_weights", 1.5)


@pytest.mark.parametrize(("power", "seconds"), [(1, [3.0, 6.0, 24.0]), (2, [3.0, 12.0, 192.0]), (0, [3.0, 3.0, 3.0])])
def test_the_exponent_is_the_power_of_tokens_that_time_grows_with(power: int, seconds: list[float]) -> None:
    assert probe.exponent(dict(zip((10, 20, 80), seconds, strict=True))) == pytest.approx(power)


def test_the_exponent_is_fitted_to_all_sizes() -> None:
    # Logarithms to base 2: 0, 2, 0, 2 over 0, 1, 2, 3. From their means: (1.5 - 0.5 - 0.5 + 1.5) / 5; from end to end 2 / 3.
    assert probe.exponent({1: 1.0, 2: 4.0, 4: 1.0, 8: 4.0}) == pytest.approx(0.4)


def test_a_probes_ratio_is_within_a_size_and_its_growth_from_the_size_before() -> None:
    told = probe.told({"requests": {128: 1.0, 256: 4.0}, "tree": {128: 0.1, 256: 0.2}}, 3)
    assert "Median of 3 rounds" in told
    assert "| 128 | 1.00 | 0.100 | 10.0 | - | - |" in told
    assert "| 256 | 4.00 | 0.200 | 20.0 | 4.0x | 2.0x |" in told
    assert "requests 2.00, tree 1.00" in told


def test_a_single_size_grows_with_no_power() -> None:
    told = probe.told({"requests": {128: 1.0}, "tree": {128: 0.5}}, 1)
    assert told.endswith("| 128 | 1.00 | 0.500 | 2.0 | - | - |")


def response(*lines: str) -> str:
    return "\n".join(("<think>", *lines, "</think>")) + task.final_answer(6)


def test_a_line_is_wrong_if_it_does_not_come_to_what_the_line_before_does() -> None:
    # 6, 6, 7 and `Wait` 6; then 6, and from 6 to 5 without a word.
    text = response(" 1 2 3 _", " _ 3 3 _", " _ _ 7 _", "Wait _ _ 6 _", " _ _ _ 6", " _ _ _ 5")
    assert list(miniature_open.steps(text, "sum")) == [(True, False), (False, True), (True, False), (False, False)]


def test_a_second_pass_begins_with_no_line_of_its_own() -> None:
    # `Alternatively` starts from the question's 6 behind a line of 7: itself it is not counted, and what follows it is.
    text = response(" 1 2 3", " _ _ 7", "Alternatively _ 3 3", " _ _ 6")
    assert list(miniature_open.steps(text, "sum")) == [(False, False), (True, False)]


def test_a_line_is_right_in_its_own_domain() -> None:
    # 15, whose last digit is 5
    text = response(" 7 8", " _ 5")
    assert list(miniature_open.steps(text, "sum_mod_10")) == [(True, False)]
    assert list(miniature_open.steps(text, "sum")) == [(False, False)]


def test_what_stands_behind_the_thinking_is_no_line() -> None:
    assert list(miniature_open.steps(response(" 1 2", " _ 3") + "\n _ 9", "sum")) == [(True, False)]
    assert list(miniature_open.steps(response(" 1 2"), "sum")) == []


def evaluated(root: Path, questions: list[Question], rows: list[dict[str, str]]) -> Folder:
    """An evaluate step's folder: its questions, and its trajectories with the verdicts on them."""
    folder = Folder(str(root))
    rows = [{"trajectory_id": f"t{number}", **row} for number, row in enumerate(rows)]
    folder.write_table("questions.parquet", records.table(questions, records.QUESTION))
    for name, schema in (("trajectories", records.TRAJECTORY), ("verdicts", records.VERDICT)):
        (folder / name).write_table("shard-000000.parquet", records.table(rows, schema))
    return folder


def test_waits_are_shares_of_a_questions_wrong_and_right_lines(tmp_path: Path) -> None:
    questions = [
        Question("a", "Sum: 1 2 3", "6", "in_domain", "sum"),
        Question("b", "Sum: 1 2", "3", "in_domain", "sum"),
        Question("c", "Sum mod 10: 7 8", "5", "transfer", "sum_mod_10"),
    ]
    noticed = response(" 1 2 3", " _ 4 3", "Wait _ 3 3", " _ _ 6")  # one wrong line, with Wait, and one right one
    doubted = response(" 1 2 3", " _ 3 3", "Wait _ 3 3", " _ _ 7")  # one right line, with Wait, and a wrong one
    sloppy = response(" 1 2 3", " _ 3 3", " _ _ 6", " _ _ 9")  # two right lines and a wrong one, without
    rows = [{"question_id": "a", "text": text} for text in (noticed, doubted, sloppy)]
    rows += [
        {"question_id": "b", "text": response(" 1 2", " _ 3")},
        {"question_id": "c", "text": response(" 7 8", " _ 4")},
    ]
    found = miniature_open.waits(evaluated(tmp_path, questions, rows))
    # Of a's three wrong lines one, and of its four right ones one; b has no wrong line.
    assert found == {"a": (1 / 3, 1 / 4), "b": None}


def test_plain_sums_are_a_share_of_the_wrong_answers_in_the_other_domain(tmp_path: Path) -> None:
    questions = [
        Question("a", "Sum mod 10: _ 7 8", "5", "transfer", "sum_mod_10"),
        Question("b", "Sum mod 10: 9 9 _", "8", "transfer", "sum_mod_10"),
        Question("c", "Sum: 7 8", "15", "in_domain", "sum"),
    ]
    answers = [
        ("a", "wrong", "15"),
        ("a", "wrong", "4"),
        ("a", "wrong", "15"),
        ("a", "wrong", "25"),
        ("a", "correct", "5"),
        ("a", "unreadable", ""),
        ("b", "correct", "8"),
        ("c", "wrong", "5"),
    ]
    rows = [dict(zip(("question_id", "verdict", "extracted"), each, strict=True)) for each in answers]
    # Two of a's four wrong answers are 7 + 8; b has no wrong one.
    assert miniature_open.plain(evaluated(tmp_path, questions, rows)) == {"a": 0.5}
