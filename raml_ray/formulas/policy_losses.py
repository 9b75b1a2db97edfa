"""Policy losses of single tokens. The ratio r is the policy's probability of a token over the old policy's.

Each keeps what is learned from a token within bounds of its own. `formulas/losses.py` adds tokens up.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raml_ray.formulas.losses import same_shape, sequence_means


class Surrogate(NamedTuple):
    """The loss of every token, and which ones its bounds hold back: `Surrogate(loss, held_low, held_high)`, (B, T)."""

    loss_BT: Tensor
    held_low_BT: Tensor
    """Held at the lower bound: unlikelier tokens of trajectories to lower."""
    held_high_BT: Tensor
    """Held at the upper bound: likelier tokens of trajectories to raise."""


def log_ratio(logprob_BT: Tensor, other_logprob_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Log of the policy's probability over the other's, (B, T), nats; 0 where the mask keeps nothing.

    Emptied before any exp: an infinite ratio at padding would poison the gradient through `where`.

    Raises: ValueError if the shapes differ.
    """
    same_shape(logprob=logprob_BT, other=other_logprob_BT, mask=mask_BT)
    return torch.where(mask_BT.bool(), logprob_BT.float() - other_logprob_BT.float().detach(), 0.0)


def token_ratio(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) of every token.

    Raises: ValueError if the shapes differ.

    Source: Shao et al. 2024, arXiv:2402.03300, Eq. 3; asymmetric bounds: Yu et al. 2025 (DAPO), arXiv:2503.14476.
    """
    same_shape(logprob=logprob_BT, advantage=advantage_BT)
    return _clipped(log_ratio(logprob_BT, old_logprob_BT, mask_BT).exp(), advantage_BT, clip_low, clip_high)


def sequence_ratio(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    sequence_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """`token_ratio` with the sequence's ratio, the geometric mean of its tokens', in the place of each token's.

    Every token of a sequence has the sequence's loss: their mean is that loss, with its gradient.

    Raises: ValueError if the shapes differ.

    Source: Zheng et al. 2025 (GSPO), arXiv:2507.18071, Eqs. 5 and 7.
    """
    same_shape(logprob=logprob_BT, advantage=advantage_BT)
    mean_B, _ = sequence_means(log_ratio(logprob_BT, old_logprob_BT, mask_BT), mask_BT, sequence_BT)
    return _clipped(mean_B[sequence_BT].exp(), advantage_BT, clip_low, clip_high)


def clipped_weight(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Surrogate:
    """-A w log p of every token, w = clip(r, 1 - clip_low, 1 + clip_high) without gradient: no token loses its own.

    Raises: ValueError if the shapes differ.

    Source: MiniMax 2025 (CISPO), arXiv:2506.13585, Eqs. 4 and 5.
    """
    same_shape(logprob=logprob_BT, advantage=advantage_BT)
    ratio_BT = log_ratio(logprob_BT, old_logprob_BT, mask_BT).exp().detach()
    weight_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return Surrogate(
        -advantage_BT * weight_BT * torch.where(mask_BT.bool(), logprob_BT.float(), 0.0),
        (ratio_BT < weight_BT) & (advantage_BT < 0),
        (ratio_BT > weight_BT) & (advantage_BT > 0),
    )


def _clipped(ratio_BT: Tensor, advantage_BT: Tensor, clip_low: float, clip_high: float) -> Surrogate:
    plain_BT = -advantage_BT * ratio_BT
    clipped_BT = -advantage_BT * ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    held_BT = clipped_BT.detach() > plain_BT.detach()
    return Surrogate(torch.maximum(plain_BT, clipped_BT), held_BT & (advantage_BT < 0), held_BT & (advantage_BT > 0))
