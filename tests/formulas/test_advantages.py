import pytest
import torch

from raml_ray.formulas import advantages


def test_one_correct_trajectory_of_four_is_raised_and_the_others_lowered():
    # mean 1/4, so +3/4 for the first and -1/4 for each of the rest
    assert advantages.centered(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).tolist() == [[0.75, -0.25, -0.25, -0.25]]


@pytest.mark.parametrize("formula", [advantages.centered, advantages.standardized])
def test_a_group_with_one_reward_has_zero_advantage(formula):
    # 0.1 has no exact float: the mean of seven of them need not be 0.1
    assert torch.all(formula(torch.full((2, 7), 0.1)) == 0)


@pytest.mark.parametrize("formula", [advantages.centered, advantages.standardized])
def test_invalid_entries_get_zero_and_move_nothing(formula):
    reward_QG = torch.tensor([[1.0, float("nan"), 0.0, 0.0]])
    valid_QG = torch.tensor([[True, False, True, True]])
    result = formula(reward_QG, valid_QG)
    assert result[0, 1] == 0
    assert result[0, [0, 2, 3]].tolist() == pytest.approx(formula(torch.tensor([[1.0, 0.0, 0.0]]))[0].tolist())


@pytest.mark.parametrize("formula", [advantages.centered, advantages.standardized])
def test_fewer_than_two_valid_rewards_teach_nothing(formula):
    reward_QG = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    valid_QG = torch.tensor([[True, False], [False, False]])
    assert torch.all(formula(reward_QG, valid_QG) == 0)


@pytest.mark.parametrize("formula", [advantages.centered, advantages.standardized])
def test_a_shift_of_the_rewards_and_the_order_in_the_group_do_not_matter(formula):
    reward_QG = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(formula(reward_QG + 2.0), formula(reward_QG), atol=1e-5, rtol=0)
    torch.testing.assert_close(formula(reward_QG[:, order]), formula(reward_QG)[:, order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("formula", [advantages.centered, advantages.standardized])
def test_wrong_shapes_are_refused(formula):
    with pytest.raises(ValueError, match="shapes differ"):
        formula(torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(Q, G\)"):
        formula(torch.zeros(3))
