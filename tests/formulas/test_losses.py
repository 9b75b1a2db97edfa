import math

import pytest
import torch

from raml_ray.formulas import losses

HOW = ("token_mean", "sequence_mean", "constant")
# Three sequences of 1, 2 and 3 tokens: padded, and packed into one row behind a prompt token each.
VALUE = [[2.0], [1.0, 3.0], [3.0, 6.0, 9.0]]
PADDED = (
    torch.tensor([[2.0, 7, 7], [1, 3, 7], [3, 6, 9]]),
    torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
    torch.tensor([[0, 0, 0], [1, 1, 1], [2, 2, 2]]),
)
PACKED = (
    torch.tensor([[7, 2.0, 7, 1, 3, 7, 3, 6, 9]]),
    torch.tensor([[0, 1, 0, 1, 1, 0, 1, 1, 1]]),
    torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 2]]),
)


def test_an_empty_mask_is_zero_and_not_nan():
    for how in HOW:
        part = losses.aggregated(PADDED[0], torch.zeros(3, 3), PADDED[2], how, max_tokens=4)
        assert (part.total.item(), part.count.item(), part.mean.item()) == (0.0, 0.0, 0.0)


def test_cross_entropy_adds_nats_and_counts_tokens():
    logprob_BT = torch.tensor([[0.5, 0.25], [0.125, 1.0]]).log()
    part = losses.cross_entropy(logprob_BT, torch.tensor([[1, 1], [1, 0]]))
    # log 2 + log 4 + log 8 = 6 log 2
    assert part.total.item() == pytest.approx(6 * math.log(2))
    assert part.count.item() == 3.0


def test_broadcasting_is_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        losses.cross_entropy(torch.zeros(2, 2), torch.ones(2))
    with pytest.raises(ValueError, match="shapes differ"):
        losses.aggregated(torch.zeros(2, 2), torch.ones(2, 2), torch.zeros(2), "sequence_mean", max_tokens=4)


@pytest.mark.parametrize("given", [PADDED, PACKED], ids=["padded", "packed"])
def test_tokens_are_added_up_in_three_ways(given):
    def mean(how):
        part = losses.aggregated(*given, how, max_tokens=4)
        return part.total.item(), part.count.item()

    assert mean("token_mean") == (24.0, 6.0)
    assert mean("sequence_mean") == (2.0 + 2.0 + 6.0, 3.0)
    assert mean("constant") == (24.0, 12.0)  # three sequences of at most 4 tokens


@pytest.mark.parametrize("how", HOW)
def test_the_count_of_a_whole_batch_is_what_its_parts_add_up_to(how):
    value_BT, mask_BT, sequence_BT = PADDED
    parts = [
        losses.aggregated(value_BT[b : b + 1], mask_BT[b : b + 1], sequence_BT[:1], how, max_tokens=4) for b in range(3)
    ]
    added = parts[0] + parts[1] + parts[2]
    whole = losses.aggregated(value_BT, mask_BT, sequence_BT, how, max_tokens=4)
    assert (added.total.item(), added.count.item()) == (whole.total.item(), whole.count.item())
    assert losses.count([1, 2, 3, 0], how, max_tokens=4) == whole.count.item()


@pytest.mark.parametrize(("loss", "is_finite"), [(2.0, True), (math.inf, False), (math.nan, False)])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(loss, is_finite):
    # Its own gradient would be 1, finite all the same.
    weight = torch.tensor(3.0, requires_grad=True)
    losses.guarded(weight - 3.0 + loss).backward()
    assert weight.grad.isfinite().item() is is_finite
    assert weight.grad.item() == 1.0 or not is_finite
