import math

import pytest
import torch

from raml_ray.formulas import losses
from raml_ray.formulas import policy_losses as policy

BOUNDS = {"clip_low": 0.2, "clip_high": 0.28}


def test_held_tokens_are_marked_by_side():
    # ratio 1.3 with A = +1 is held above; 0.7 with A = -1 is held below; 0.7 with A = +1 and 1.3 with A = -1 are free
    logprob_BT = torch.tensor([[1.3, 0.7], [1.3, 0.7]]).log()
    advantage_BT = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    surrogate = policy.token_ratio(logprob_BT, torch.zeros(2, 2), advantage_BT, torch.ones(2, 2), **BOUNDS)
    assert surrogate.held_high_BT.tolist() == [[True, False], [False, False]]
    assert surrogate.held_low_BT.tolist() == [[False, False], [False, True]]


def test_a_held_token_has_no_gradient():
    logprob_BT = torch.tensor([[1.4, 1.0]]).log().requires_grad_()
    one_BT = torch.ones(1, 2)
    policy.token_ratio(
        logprob_BT, torch.zeros(1, 2), one_BT, one_BT, clip_low=0.2, clip_high=0.2
    ).loss_BT.sum().backward()
    assert logprob_BT.grad.tolist() == [[0.0, -1.0]]


@pytest.mark.parametrize("name", ["token_ratio", "sequence_ratio", "clipped_weight"])
def test_infinite_padding_reaches_neither_value_nor_gradient(name):
    logprob_BT = torch.tensor([[-1.0, -math.inf]], requires_grad=True)
    old_BT, mask_BT = torch.tensor([[-1.0, -500.0]]), torch.tensor([[1, 0]])
    sequence = (torch.zeros(1, 2, dtype=torch.long),) if name == "sequence_ratio" else ()
    found = getattr(policy, name)(logprob_BT, old_BT, torch.ones(1, 2), mask_BT, *sequence, **BOUNDS)
    total = losses.masked(found.loss_BT, mask_BT).total
    total.backward()
    # A w log p of log p = -1 is 1 as a loss, where -A r is -1.
    assert total.item() == (1.0 if name == "clipped_weight" else -1.0)
    assert logprob_BT.grad.tolist() == [[-1.0, 0.0]]


def test_a_sequence_is_clipped_as_a_whole_by_the_geometric_mean_of_its_ratios():
    # Ratios 4 and 1: geometric mean 2, held at 1.28 with A = +1, free with A = -1.
    logprob_BT = torch.tensor([[4.0, 1.0, 4.0, 1.0]]).log().requires_grad_()
    sequence_BT = torch.tensor([[0, 0, 1, 1]])
    advantage_BT = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    one_BT = torch.ones(1, 4)
    found = policy.sequence_ratio(logprob_BT, torch.zeros(1, 4), advantage_BT, one_BT, sequence_BT, **BOUNDS)
    assert found.loss_BT[0].tolist() == pytest.approx([-1.28, -1.28, 2.0, 2.0])
    assert found.held_high_BT[0].tolist() == [True, True, False, False]
    part = losses.aggregated(found.loss_BT, one_BT, sequence_BT, "sequence_mean", max_tokens=9)
    assert part.mean.item() == pytest.approx((2.0 - 1.28) / 2)
    part.total.backward()
    # d s / d log p = s / 2 of each of the two tokens
    assert logprob_BT.grad[0].tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])


def test_a_clipped_weight_leaves_every_token_its_gradient():
    # Ratios 2, 0.5, 1.1 with A = 3: weights 1.28, 0.8, 1.1, each times -3
    logprob_BT = torch.tensor([[0.4, 0.1, 0.22]]).log().requires_grad_()
    old_BT = torch.tensor([[0.2, 0.2, 0.2]]).log()
    three_BT, one_BT = torch.full((1, 3), 3.0), torch.ones(1, 3)
    found = policy.clipped_weight(logprob_BT, old_BT, three_BT, one_BT, **BOUNDS)
    found.loss_BT.sum().backward()
    assert logprob_BT.grad[0].tolist() == pytest.approx([-3.84, -2.4, -3.3])
    assert found.loss_BT[0].tolist() == pytest.approx(
        [-3.84 * math.log(0.4), -2.4 * math.log(0.1), -3.3 * math.log(0.22)], rel=1e-5
    )
    assert found.held_high_BT[0].tolist() == [True, False, False]
    # Without a lower bound (clip_low=1) the second one keeps its ratio.
    free = policy.clipped_weight(logprob_BT, old_BT, three_BT, one_BT, clip_low=1.0, clip_high=0.28)
    assert free.loss_BT[0, 1].item() == pytest.approx(-1.5 * math.log(0.1), rel=1e-5)


@pytest.mark.parametrize("name", ["token_ratio", "sequence_ratio", "clipped_weight"])
def test_at_the_old_policy_every_loss_has_the_policy_gradient(name):
    logprob_BT = torch.tensor([[-0.5, -2.0, -1.0]], requires_grad=True)
    advantage_BT, one_BT = torch.tensor([[0.5, 0.5, 0.5]]), torch.ones(1, 3)
    sequence = (torch.zeros(1, 3, dtype=torch.long),) if name == "sequence_ratio" else ()
    found = getattr(policy, name)(logprob_BT, logprob_BT.detach(), advantage_BT, one_BT, *sequence, **BOUNDS)
    found.loss_BT.sum().backward()
    assert logprob_BT.grad[0].tolist() == pytest.approx([-0.5, -0.5, -0.5])


def test_broadcasting_is_refused():
    square = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="shapes differ"):
        policy.token_ratio(square, square, torch.zeros(2, 1), square, **BOUNDS)
    with pytest.raises(ValueError, match="shapes differ"):
        policy.clipped_weight(square, square, torch.zeros(2), square, **BOUNDS)


SPLITS = [[8], [4, 4], [3, 5], [1] * 8]


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("name", ["token_ratio", "sequence_ratio", "clipped_weight"])
def test_a_split_into_micro_batches_changes_neither_value_nor_gradient(name, how):
    generator = torch.Generator().manual_seed(0)
    old_BT = -torch.rand(8, 5, generator=generator)
    advantage_BT = torch.randn(8, 1, generator=generator).expand(8, 5)
    mask_BT = torch.rand(8, 5, generator=generator) < 0.6
    weight_BT = torch.rand(8, 5, generator=generator) + 0.5
    values, gradients = [], []
    for split in SPLITS:
        logprob_BT = (old_BT + 0.4 * torch.sin(torch.arange(40.0)).reshape(8, 5)).requires_grad_()
        part = losses.Part(torch.tensor(0.0), torch.tensor(0.0))
        for rows in torch.arange(8).split(split):
            sequence_BT = torch.arange(len(rows))[:, None].expand(-1, 5)
            sequence = (sequence_BT,) if name == "sequence_ratio" else ()
            found = getattr(policy, name)(
                logprob_BT[rows], old_BT[rows], advantage_BT[rows], mask_BT[rows], *sequence, **BOUNDS
            )
            part += losses.aggregated(found.loss_BT * weight_BT[rows], mask_BT[rows], sequence_BT, how, max_tokens=7)
        part.mean.backward()
        values.append(part.mean.item())
        gradients.append(logprob_BT.grad)
    assert values == pytest.approx([values[0]] * 4, abs=1e-6)
    for gradient_BT in gradients:
        torch.testing.assert_close(gradient_BT, gradients[0], atol=1e-6, rtol=0)
