"""Rewards, advantages and selection of a step's groups."""

import math
from collections.abc import Sequence

import pytest
import torch

from raml_ray import recipes
from raml_ray.records import Question, Verdict
from raml_ray.settings import GrpoConfig
from raml_ray.workers import grpo_groups, rollouts
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sampling import Span
from tests.workers.test_grpo_loop import SETTINGS, groups, rollout

CORRECT, WRONG = Verdict.CORRECT, Verdict.WRONG


def of(**changes: object) -> GrpoConfig:
    return SETTINGS.model_copy(update=changes)


def group(*verdicts: Verdict, lengths: Sequence[int] = ()) -> list[Rollout]:
    return [
        rollout(0, [5] * length, verdict)
        for verdict, length in zip(verdicts, lengths or [2] * len(verdicts), strict=True)
    ]


def test_one_correct_trajectory_of_four_is_raised_and_the_others_lowered() -> None:
    judged = grpo_groups.judge(groups(), SETTINGS, seed=0)
    # mean 1/4, unbiased variance (9/16 + 3/16) / 3 = 1/4: +3/4 and -1/4 over a deviation of 1/2
    assert judged.advantage_QG[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    centered = grpo_groups.judge(groups(), of(advantage="centered"), seed=0)
    assert centered.advantage_QG[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    dr_grpo = grpo_groups.judge(groups(), of(loss="dr_grpo"), seed=0)
    assert dr_grpo.advantage_QG[0].tolist() == [0.75, -0.25, -0.25, -0.25]


def test_what_the_judge_could_not_decide_leaves_its_group() -> None:
    judged = grpo_groups.judge([group(CORRECT, WRONG, Verdict.TIMEOUT, Verdict.ERROR)], SETTINGS, seed=0)
    # of the two that are left the mean is 1/2, the unbiased deviation sqrt(1/2)
    assert judged.advantage_QG[0].tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5), 0, 0], abs=1e-5)
    assert judged.updated_QG.tolist() == [[True, True, False, False]]


def test_num_updated_selects_after_the_advantages_were_taken_from_all() -> None:
    judged = grpo_groups.judge(groups(), of(num_updated=1), seed=3)
    assert torch.equal(judged.advantage_QG, grpo_groups.judge(groups(), SETTINGS, seed=3).advantage_QG)
    assert judged.updated_QG.sum(1).tolist() == [1, 1]
    assert [len(question) for question in grpo_groups.examples(groups(), judged)] == [1, 1]


def test_the_papers_reward_looks_at_the_form() -> None:
    rows = [
        Rollout("q", [1], [5, 6], [-1.0, -1.0], "stop", [Span(0, 0, 2)], verdict, is_well_formed)
        for verdict, is_well_formed in ((CORRECT, True), (WRONG, True), (CORRECT, False), (Verdict.UNREADABLE, False))
    ]
    settings = of(reward="paper")
    judged = grpo_groups.judge([rows], settings, seed=0)
    assert judged.reward_QG[0].tolist() == [1.0, 0.0, -0.5, -1.0]
    found = grpo_groups.metrics([rows], judged, settings)
    assert (found["grpo/reward"], found["grpo/accuracy"], found["grpo/well_formed_fraction"]) == (-0.125, 0.5, 0.5)
    assert grpo_groups.judge([rows], SETTINGS, seed=0).reward_QG[0].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_long_responses_pay_where_it_was_asked_for() -> None:
    settings = of(overlong_tokens=4, max_tokens=8)
    judged = grpo_groups.judge([group(CORRECT, CORRECT, WRONG, WRONG, lengths=(4, 6, 8, 1))], settings, seed=0)
    assert judged.reward_QG[0].tolist() == [1.0, 0.5, -1.0, 0.0]


def test_dapo_leaves_out_questions_that_teach_nothing_whatever_their_lengths() -> None:
    settings = of(loss="dapo", max_tokens=10)
    both = [group(WRONG, WRONG, WRONG, WRONG, lengths=(1, 2, 9, 10)), group(CORRECT, WRONG, WRONG, WRONG)]
    judged = grpo_groups.judge(both, settings, seed=0)
    assert judged.updated_QG.sum(1).tolist() == [0, 4]
    assert grpo_groups.metrics(both, judged, settings)["grpo/questions_left_out"] == 1.0
    assert rollouts.num_teaching(both, settings) == 1
    # Without dynamic sampling their tokens count in the mean.
    assert grpo_groups.judge(both, of(loss="dapo", max_refills=0), seed=0).updated_QG.all()


def test_the_most_different_tokens_are_chosen() -> None:
    tokens = ([5, 6, 7, 8], [5, 6, 7, 9], [20, 21, 22, 23], [5, 6, 7, 8])
    given = [
        [rollout(0, list(ids), verdict) for ids, verdict in zip(tokens, [CORRECT, WRONG, WRONG, WRONG], strict=True)]
    ]
    judged = grpo_groups.judge(given, of(selection="diverse", num_updated=2), seed=0)
    assert judged.updated_QG[0].tolist() == [True, False, True, False]


def test_the_largest_descent_is_chosen_and_one_without_a_probe_never() -> None:
    descent_QG = torch.tensor([[0.5, 2.0, torch.nan, 1.0]])
    given = [group(CORRECT, WRONG, Verdict.ERROR, WRONG)]
    judged = grpo_groups.judge(given, of(selection="lhat_descent", num_updated=2), seed=0, descent_QG=descent_QG)
    assert judged.updated_QG[0].tolist() == [False, True, False, True]


@pytest.mark.parametrize("selection", ["random", "max_variance", "difficulty", "diverse"])
def test_a_step_that_nobody_could_judge_selects_nothing(selection: str) -> None:
    given = [group(Verdict.TIMEOUT, Verdict.ERROR), group(Verdict.ERROR, Verdict.ERROR)]
    settings = of(selection=selection, num_updated=2)
    judged = grpo_groups.judge(given, settings, seed=0)
    assert not judged.updated_QG.any()
    found = grpo_groups.metrics(given, judged, settings)
    assert all(math.isfinite(value) for value in found.values())
    assert (found["grpo/unjudged"], found["grpo/updated_trajectories"]) == (4.0, 0.0)


def test_rewards_spread_and_groups_that_agree_are_counted() -> None:
    unjudged = group(Verdict.TIMEOUT, Verdict.ERROR)
    given = [
        group(CORRECT, CORRECT),
        group(CORRECT, Verdict.ERROR),
        group(WRONG, CORRECT),
        group(WRONG, WRONG),
        unjudged,
    ]
    found = grpo_groups.metrics(given, grpo_groups.judge(given, of(num_updated=2), seed=0), SETTINGS)
    # Of seven rewards four are 1: a mean of 4/7, a variance of 4/7 * 3/7
    assert found["grpo/reward_std"] == pytest.approx(math.sqrt(12) / 7)
    assert (found["grpo/all_correct_fraction"], found["grpo/none_correct_fraction"]) == pytest.approx((0.4, 0.2))


def test_the_entropy_is_that_of_the_sampled_tokens() -> None:
    given = [[rollout(0, [5, 6], CORRECT, logprob=-1.0), rollout(0, [5, 6, 7, 8], WRONG, logprob=-0.25)]]
    # 2 tokens of 1 nat and 4 of 1/4 nat
    assert grpo_groups.metrics(given, grpo_groups.judge(given, of(num_updated=2), seed=0), SETTINGS)[
        "grpo/entropy"
    ] == pytest.approx(0.5)


def test_a_recipe_is_what_its_name_says_but_for_what_is_set() -> None:
    assert recipes.of(GrpoConfig()) == recipes.Recipe("token_ratio", "token_mean", "standardized", 0.2, 0.28, 0, 0)
    dapo = recipes.of(GrpoConfig(loss="dapo", max_tokens=100))
    assert (dapo.max_refills, dapo.overlong_tokens) == (3, 20)
    gspo = recipes.of(GrpoConfig(loss="gspo", clip_high=0.1))
    assert (gspo.surrogate, gspo.aggregation, gspo.clip_low, gspo.clip_high) == (
        "sequence_ratio",
        "sequence_mean",
        3e-4,
        0.1,
    )
    assert recipes.of(GrpoConfig(loss="dapo", overlong_tokens=0)).overlong_tokens == 0


def test_compute_matched_steps_update_on_equally_many_trajectories() -> None:
    for num_updated in (1, 2, 4, 16):
        matched = GrpoConfig(questions_per_step=8, num_trajectories=16, num_updated=num_updated, compute_matched=True)
        assert recipes.questions_of_a_step(matched) * num_updated == 8 * 16
    assert recipes.questions_of_a_step(GrpoConfig(questions_per_step=8, num_trajectories=16, num_updated=2)) == 8


def test_a_refill_asks_others_and_is_decided_by_the_step() -> None:
    questions = [Question(str(i), "p", "1", "s") for i in range(8)]
    asked = questions[:5]
    refill = rollouts.questions_of_refill(questions, asked, 3, 0, num=2, seed=0)
    assert len(refill) == 2 and not {q.question_id for q in refill} & {q.question_id for q in asked}
    assert refill == rollouts.questions_of_refill(questions, asked, 3, 0, num=2, seed=0)
    # There are but three others, and then none.
    assert len(rollouts.questions_of_refill(questions, asked, 3, 1, num=9, seed=0)) == 3
    assert rollouts.questions_of_refill(questions, questions, 3, 1, num=9, seed=0) == []
    prompts = [[1]] * 2
    first = rollouts.requests_of_step(refill, prompts, 3, num=4, seed=0)
    behind = rollouts.requests_of_step(refill, prompts, 3, num=4, seed=0, first_place=5)
    assert not {request.seed for request in first} & {request.seed for request in behind}
