"""What the benchmark scripts make of what they measured."""

import math
import random

import pytest

from raml_ray.settings import GrpoConfig
from raml_ray.workers import grpo_groups
from tests.benchmarks import grpo_overlap, learner, trl_comparison, weight_sync
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
