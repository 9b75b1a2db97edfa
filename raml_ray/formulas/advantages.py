"""Advantages of the trajectories of a group, compared with each other."""

import torch
from torch import Tensor


def _checked(reward_QG: Tensor, valid_QG: Tensor | None) -> tuple[Tensor, Tensor]:
    if reward_QG.dim() != 2:
        raise ValueError(f"rewards must be (Q, G), got shape {tuple(reward_QG.shape)}")
    if valid_QG is None:
        return reward_QG.float(), torch.ones_like(reward_QG, dtype=torch.bool)
    if valid_QG.shape != reward_QG.shape:
        raise ValueError(f"shapes differ: reward {tuple(reward_QG.shape)}, valid {tuple(valid_QG.shape)}")
    return reward_QG.float(), valid_QG.bool()


def centered(reward_QG: Tensor, valid_QG: Tensor | None = None) -> Tensor:
    """Reward minus the mean of its question's valid rewards, (Q, G).

    Zeros for invalid entries, for a question with fewer than two valid ones, and for one whose rewards are all equal:
    it has nothing to teach.

    Raises: ValueError if the shapes differ or are not (Q, G).

    Source: Liu et al. 2025, "Understanding R1-Zero-Like Training" (Dr. GRPO), arXiv:2503.20783.
    """
    reward_QG, valid_QG = _checked(reward_QG, valid_QG)
    # `where`, not a product: an invalid reward may be NaN.
    zero_QG = torch.zeros_like(reward_QG)
    num_valid_Q1 = valid_QG.sum(1, keepdim=True)
    mean_Q1 = torch.where(valid_QG, reward_QG, zero_QG).sum(1, keepdim=True) / num_valid_Q1.clamp(min=1)
    teaches_Q1 = differing(reward_QG, valid_QG)[:, None]
    return torch.where(valid_QG & teaches_Q1, reward_QG - mean_Q1, zero_QG)


def differing(reward_QG: Tensor, valid_QG: Tensor | None = None) -> Tensor:
    """Whether a question's valid rewards differ at all, (Q,) bool: of others nothing can be learned.

    Asked of the rewards, not of their deviations: a mean of equal floats need not equal them to the last bit.

    Raises: ValueError if the shapes differ or are not (Q, G).
    """
    reward_QG, valid_QG = _checked(reward_QG, valid_QG)
    lowest_Q = torch.where(valid_QG, reward_QG, torch.inf).amin(1)
    return torch.where(valid_QG, reward_QG, -torch.inf).amax(1) > lowest_Q


def standardized(reward_QG: Tensor, valid_QG: Tensor | None = None, *, epsilon: float = 1e-6) -> Tensor:
    """Reward minus its question's mean, over its question's standard deviation (unbiased) plus epsilon, (Q, G).

    Mean and deviation are those of the valid rewards. Zeros as `centered` has them.

    Raises: ValueError if the shapes differ or are not (Q, G).

    Source: Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, section 4.1.2.
    """
    reward_QG, valid_QG = _checked(reward_QG, valid_QG)
    centered_QG = centered(reward_QG, valid_QG)
    num_valid_Q1 = valid_QG.sum(1, keepdim=True)
    deviation_Q1 = (centered_QG.square().sum(1, keepdim=True) / (num_valid_Q1 - 1).clamp(min=1)).sqrt()
    return centered_QG / (deviation_Q1 + epsilon)
