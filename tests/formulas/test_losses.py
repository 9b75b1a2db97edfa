import json
import math
import pathlib

import pytest
import torch

from raml_ray.formulas import losses

VECTOR = json.loads((pathlib.Path(__file__).parents[1] / "data" / "vectors.json").read_text())["misc"]["gen_mask_loss"]
SPLITS = [[8], [4, 4], [3, 5], [1] * 8]


def paper_loss(mask_BT, clip_high=0.2):
    logprob_BT = torch.tensor(VECTOR["ratio"]).log()
    advantage_B = torch.tensor([1.0, -1.0])
    zero_BT = torch.zeros_like(logprob_BT)
    return losses.clipped_surrogate(logprob_BT, zero_BT, advantage_B, mask_BT, clip_low=0.2, clip_high=clip_high)


def test_the_papers_masked_losses():
    # row 0, A = +1: -1.2 (clipped), -1, -0.5: mean -0.9; row 1, A = -1, two tokens: 1, 2: mean 1.5; all: 0.3 / 5
    response_BT = torch.tensor([[1, 1, 1], [1, 1, 0]])
    row0_BT, row1_BT = response_BT.clone(), response_BT.clone()
    row0_BT[1], row1_BT[0] = 0, 0
    assert paper_loss(response_BT).loss.mean.item() == pytest.approx(VECTOR["all"], abs=1e-6)
    assert paper_loss(row0_BT).loss.mean.item() == pytest.approx(VECTOR["row0_only"], abs=1e-6)
    assert paper_loss(row1_BT).loss.mean.item() == pytest.approx(VECTOR["row1_only"], abs=1e-6)
    assert paper_loss(response_BT, clip_high=0.28).loss.mean.item() == pytest.approx(VECTOR["hi_0.28"], abs=1e-6)


def test_an_empty_mask_is_zero_and_not_nan():
    part = paper_loss(torch.zeros(2, 3)).loss
    assert (part.total.item(), part.count.item(), part.mean.item()) == (0.0, 0.0, 0.0)


def test_held_tokens_are_counted_by_side():
    # ratio 1.4 with A = +1 is held above; 0.67 with A = -1 is held below; 0.5 with A = +1 and 2 with A = -1 are free
    surrogate = paper_loss(torch.ones(2, 3))
    assert (surrogate.clipped_high.total.item(), surrogate.clipped_low.total.item()) == (1.0, 1.0)
    assert surrogate.clipped_high.count.item() == 6.0


def test_a_held_token_has_no_gradient():
    logprob_BT = torch.tensor([[1.4, 1.0]]).log().requires_grad_()
    surrogate = losses.clipped_surrogate(
        logprob_BT, torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2), clip_low=0.2, clip_high=0.2
    )
    surrogate.loss.total.backward()
    assert logprob_BT.grad.tolist() == [[0.0, -1.0]]


def test_infinite_padding_reaches_neither_value_nor_gradient():
    logprob_BT = torch.tensor([[-1.0, -math.inf]], requires_grad=True)
    old_BT = torch.tensor([[-1.0, -500.0]])
    part = losses.clipped_surrogate(
        logprob_BT, old_BT, torch.ones(1), torch.tensor([[1, 0]]), clip_low=0.2, clip_high=0.2
    ).loss
    part.mean.backward()
    assert part.mean.item() == -1.0
    assert logprob_BT.grad.tolist() == [[-1.0, 0.0]]


def test_cross_entropy_adds_nats_and_counts_tokens():
    logprob_BT = torch.tensor([[0.5, 0.25], [0.125, 1.0]]).log()
    part = losses.cross_entropy(logprob_BT, torch.tensor([[1, 1], [1, 0]]))
    # log 2 + log 4 + log 8 = 6 log 2
    assert part.total.item() == pytest.approx(6 * math.log(2))
    assert part.count.item() == 3.0


def test_broadcasting_is_refused():
    square = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="shapes differ"):
        losses.clipped_surrogate(square, square, torch.zeros(2, 1), square, clip_low=0.2, clip_high=0.2)
    with pytest.raises(ValueError, match="3 advantages for 2 sequences"):
        losses.clipped_surrogate(square, square, torch.zeros(3), square, clip_low=0.2, clip_high=0.2)
    with pytest.raises(ValueError, match="shapes differ"):
        losses.cross_entropy(square, torch.ones(2))


def test_importance_weights_are_capped_and_constant():
    old_BT = torch.tensor([[0.5, 0.9, 0.3]]).log().requires_grad_()
    rollout_BT = torch.tensor([[0.5, 0.1, 0.6]]).log()
    weight_BT = losses.truncated_importance(old_BT, rollout_BT, cap=2.0)
    assert weight_BT[0].tolist() == pytest.approx([1.0, 2.0, 0.5])
    assert not weight_BT.requires_grad
    with pytest.raises(ValueError, match="tis_cap"):
        losses.truncated_importance(old_BT, rollout_BT, cap=0.0)


def test_mismatch_by_hand():
    learner_BT = torch.tensor([[0.0, math.log(2.0), 7.0]])
    found = losses.mismatch(learner_BT, torch.zeros(1, 3), torch.tensor([[1, 1, 0]]))
    # deltas 0 and log 2; k3 = r - 1 - log r = 0 and 1 - log 2
    assert found.absolute.mean.item() == pytest.approx(math.log(2) / 2)
    assert found.largest.item() == pytest.approx(math.log(2))
    assert found.kl.mean.item() == pytest.approx((1 - math.log(2)) / 2)


def test_a_split_into_micro_batches_changes_neither_value_nor_gradient():
    generator = torch.Generator().manual_seed(0)
    old_BT = -torch.rand(8, 5, generator=generator)
    advantage_B = torch.randn(8, generator=generator)
    mask_BT = torch.rand(8, 5, generator=generator) < 0.6
    weight_BT = torch.rand(8, 5, generator=generator) + 0.5
    values, gradients = [], []
    for split in SPLITS:
        logprob_BT = (old_BT + 0.4 * torch.sin(torch.arange(40.0)).reshape(8, 5)).requires_grad_()
        part = losses.Part(torch.tensor(0.0), torch.tensor(0.0))
        for rows in torch.arange(8).split(split):
            part += losses.clipped_surrogate(
                logprob_BT[rows],
                old_BT[rows],
                advantage_B[rows],
                mask_BT[rows],
                clip_low=0.2,
                clip_high=0.28,
                weight_BT=weight_BT[rows],
            ).loss
        part.mean.backward()
        values.append(part.mean.item())
        gradients.append(logprob_BT.grad)
    assert values == pytest.approx([values[0]] * 4, abs=1e-6)
    for gradient_BT in gradients:
        torch.testing.assert_close(gradient_BT, gradients[0], atol=1e-6, rtol=0)
