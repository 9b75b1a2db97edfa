import pytest
import torch

from raml_ray.formulas import selection

ALL = torch.ones(1, 6, dtype=torch.bool)


def test_selection_takes_that_many_valid_ones_of_each_question():
    valid_QG = torch.tensor([[True] * 6, [True, False, True, False, True, False], [False] * 6])
    reward_QG = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    for selected_QG in (
        selection.at_random(valid_QG, 4, seed=5),
        selection.max_variance(reward_QG, valid_QG, 4),
        selection.highest(reward_QG, valid_QG, 4),
    ):
        assert selected_QG.sum(1).tolist() == [4, 3, 0]
        assert not torch.any(selected_QG & ~valid_QG)


def test_selection_is_decided_by_its_seed():
    valid_QG = torch.ones(8, 16, dtype=torch.bool)
    one_QG = selection.at_random(valid_QG, 4, seed=1)
    assert torch.equal(one_QG, selection.at_random(valid_QG, 4, seed=1))
    assert not torch.equal(one_QG, selection.at_random(valid_QG, 4, seed=2))


def test_every_trajectory_is_selected_equally_often():
    counts_G = torch.zeros(8)
    for seed in range(200):
        counts_G += selection.at_random(torch.ones(10, 8, dtype=torch.bool), 2, seed=seed).sum(0)
    # 2000 questions, each picks 2 of 8: 500 expected, standard deviation sqrt(2000 * 1/4 * 3/4) = 19
    assert torch.all((counts_G - 500).abs() < 90)


@pytest.mark.parametrize("num_updated", [0, 7])
def test_selecting_none_or_more_than_were_sampled_is_refused(num_updated):
    reward_QG = torch.zeros(1, 6)
    for select in (
        lambda: selection.at_random(ALL, num_updated, seed=0),
        lambda: selection.highest(reward_QG, ALL, num_updated),
        lambda: selection.max_variance(reward_QG, ALL, num_updated),
        lambda: selection.by_difficulty(reward_QG, ALL, num_updated, seed=0),
    ):
        with pytest.raises(ValueError, match=r"grpo\.num_updated"):
            select()


def test_the_highest_scores_are_taken_and_invalid_ones_never():
    score_QG = torch.tensor([[0.5, torch.nan, 3.0, 1.0, 3.0, 9.0]])
    valid_QG = torch.tensor([[True, False, True, True, True, False]])
    assert selection.highest(score_QG, valid_QG, 3).nonzero()[:, 1].tolist() == [2, 3, 4]
    # Among equal ones the first.
    assert selection.highest(score_QG, valid_QG, 1).nonzero()[:, 1].tolist() == [2]


def test_max_variance_takes_both_ends():
    # Of 0 1 2 3 10 the pair that varies most is 0, 10. Of triples 0, 1, 10 (variance 20.2) beats 0, 3, 10 (17.6).
    reward_QG = torch.tensor([[2.0, 10.0, 0.0, 3.0, 1.0, 1.5]])
    valid_QG = torch.tensor([[True, True, True, True, True, False]])
    assert selection.max_variance(reward_QG, valid_QG, 2).nonzero()[:, 1].tolist() == [1, 2]
    assert selection.max_variance(reward_QG, valid_QG, 3).nonzero()[:, 1].tolist() == [1, 2, 4]


def test_max_variance_is_what_trying_all_subsets_finds():
    from itertools import combinations

    draw = torch.Generator().manual_seed(3)
    for num_updated in (1, 2, 3, 5):
        reward_G = torch.rand(7, generator=draw)
        found = selection.max_variance(reward_G[None], torch.ones(1, 7, dtype=torch.bool), num_updated)[0]
        best = max(float(reward_G[list(c)].var(correction=0)) for c in combinations(range(7), num_updated))
        assert float(reward_G[found].var(correction=0)) == pytest.approx(best, abs=1e-7)


def test_max_variance_of_one_right_answer_among_wrong_ones_keeps_it():
    reward_QG = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    assert selection.max_variance(reward_QG, ALL, 2).nonzero()[:, 1].tolist() == [0, 4]


def test_half_solved_questions_get_most_and_those_without_spread_none():
    # Pass rates 1/2, 1/10, 0: deviations 0.5, 0.3, 0. Of 3 questions times 2, 6 are spread 0.5 : 0.3, 3.75 to 2.25.
    reward_QG = torch.zeros(3, 10)
    reward_QG[0, :5] = 1
    reward_QG[1, 7] = 1
    selected_QG = selection.by_difficulty(reward_QG, torch.ones(3, 10, dtype=torch.bool), 2, seed=0)
    assert selected_QG.sum(1).tolist() == [4, 2, 0]


def test_what_a_question_cannot_give_others_do():
    # Deviations 0.5 (two valid ones) and 0.3: of 2 times 4 the first has but two to give.
    reward_QG = torch.zeros(2, 10)
    reward_QG[0, 0] = 1
    reward_QG[1, 7] = 1
    valid_QG = torch.ones(2, 10, dtype=torch.bool)
    valid_QG[0, 2:] = False
    assert selection.by_difficulty(reward_QG, valid_QG, 4, seed=0).sum(1).tolist() == [2, 6]


def test_where_nothing_differs_difficulty_selects_nothing():
    reward_QG = torch.full((2, 7), 0.1)  # no exact float: its mean need not equal it
    assert not selection.by_difficulty(reward_QG, torch.ones(2, 7, dtype=torch.bool), 3, seed=0).any()
    assert not selection.by_difficulty(reward_QG, torch.zeros(2, 7, dtype=torch.bool), 3, seed=0).any()
