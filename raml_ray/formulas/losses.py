"""Losses as sums and counts: the divide happens once per optimizer step, over all ranks and micro-batches."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """One micro-batch's share of a mean: parts add up, and `mean` divides once.

    `Part(total=tensor(-1.5), count=tensor(3.))`
    """

    total: Tensor
    count: Tensor

    def __add__(self, other: "Part") -> "Part":
        return Part(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """Total over count; 0 when nothing was counted."""
        return self.total / self.count.clamp(min=1)


class Surrogate(NamedTuple):
    """The policy loss and how often its clipping held a token back: `Surrogate(loss, low, high)`."""

    loss: Part
    clipped_low: Part
    """Tokens held at the lower bound of the ratio: unlikelier ones of trajectories to lower."""
    clipped_high: Part
    """Tokens held at the upper bound of the ratio: likelier ones of trajectories to raise."""


class Mismatch(NamedTuple):
    """How far the learner's log-probabilities are from the rollout engine's, in nats."""

    absolute: Part
    """|learner - engine| per token."""
    largest: Tensor
    kl: Part
    """k3 estimate of KL(engine || learner) per token."""


def same_shape(**tensors: Tensor) -> None:
    """Nothing; broadcasting (B,) over (B, T) is legal whenever B = T, and wrong.

    Raises: ValueError naming every shape, unless all are equal.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")


def _masked(value_BT: Tensor, mask_BT: Tensor) -> Part:
    # `where`, not a product: padding may hold infinities, and 0 * inf is NaN.
    mask_BT = mask_BT.bool()
    return Part(torch.where(mask_BT, value_BT, torch.zeros_like(value_BT)).sum(), mask_BT.sum().to(value_BT.dtype))


def cross_entropy(logprob_BT: Tensor, mask_BT: Tensor) -> Part:
    """Negative log-probability over the tokens that the mask keeps, nats, and their number.

    Raises: ValueError if the shapes differ.
    """
    same_shape(logprob=logprob_BT, mask=mask_BT)
    return _masked(-logprob_BT.float(), mask_BT)


def clipped_surrogate(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    weight_BT: Tensor | None = None,
) -> Surrogate:
    """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) over the tokens that the mask keeps, and their number.

    The ratio r is exp(logprob - old_logprob); `advantage` is (B,) or (B, T); `weight_BT` (truncated importance)
    multiplies the loss of a token, not its count.

    Raises: ValueError if the shapes differ.

    Source: Shao et al. 2024, arXiv:2402.03300, Eq. 3; asymmetric bounds: Yu et al. 2025 (DAPO), arXiv:2503.14476.
    """
    advantage_BT = advantage
    if advantage.dim() == 1:
        if len(advantage) != len(logprob_BT):
            raise ValueError(f"{len(advantage)} advantages for {len(logprob_BT)} sequences")
        advantage_BT = advantage[:, None].expand_as(logprob_BT)
    same_shape(logprob=logprob_BT, old_logprob=old_logprob_BT, advantage=advantage_BT, mask=mask_BT)
    # The difference is emptied before exp: an infinite ratio at padding would poison the gradient through `where`.
    difference_BT = torch.where(mask_BT.bool(), logprob_BT.float() - old_logprob_BT.float().detach(), 0.0)
    ratio_BT = difference_BT.exp()
    plain_BT = -advantage_BT * ratio_BT
    clipped_BT = -advantage_BT * ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    loss_BT = torch.maximum(plain_BT, clipped_BT)
    if weight_BT is not None:
        same_shape(logprob=logprob_BT, weight=weight_BT)
        loss_BT = loss_BT * weight_BT.detach()
    held_BT = clipped_BT.detach() > plain_BT.detach()
    return Surrogate(
        loss=_masked(loss_BT, mask_BT),
        clipped_low=_masked((held_BT & (advantage_BT < 0)).float(), mask_BT),
        clipped_high=_masked((held_BT & (advantage_BT > 0)).float(), mask_BT),
    )


def truncated_importance(old_logprob_BT: Tensor, rollout_logprob_BT: Tensor, cap: float) -> Tensor:
    """min(learner's probability over the engine's, cap) of each token, (B, T), without gradient.

    Raises: ValueError if the shapes differ or the cap is not positive.

    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".
    """
    same_shape(old_logprob=old_logprob_BT, rollout_logprob=rollout_logprob_BT)
    if cap <= 0:
        raise ValueError(
            f"the largest importance weight must be positive, got grpo.tis_cap={cap} (0 turns weights off)"
        )
    return (old_logprob_BT.float() - rollout_logprob_BT.float()).exp().clamp(max=cap).detach()


def mismatch(logprob_BT: Tensor, rollout_logprob_BT: Tensor, mask_BT: Tensor) -> Mismatch:
    """Differences between the learner's and the engine's log-probabilities of the same tokens, nats, without gradient.

    Raises: ValueError if the shapes differ.

    Source: Schulman 2020, "Approximating KL Divergence" (k3).
    """
    same_shape(logprob=logprob_BT, rollout_logprob=rollout_logprob_BT, mask=mask_BT)
    delta_BT = torch.where(mask_BT.bool(), (logprob_BT.float() - rollout_logprob_BT.float()).detach(), 0.0)
    largest = delta_BT.abs().max() if delta_BT.numel() else delta_BT.sum()
    return Mismatch(_masked(delta_BT.abs(), mask_BT), largest, _masked(delta_BT.expm1() - delta_BT, mask_BT))
