"""Advantages of a group of trajectories, and which of the group enter the policy loss."""

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
    lowest_Q1 = torch.where(valid_QG, reward_QG, torch.inf).amin(1, keepdim=True)
    highest_Q1 = torch.where(valid_QG, reward_QG, -torch.inf).amax(1, keepdim=True)
    # Asked of the rewards, not of their deviations: a mean of equal floats need not equal them to the last bit.
    teaches_Q1 = (num_valid_Q1 >= 2) & (highest_Q1 > lowest_Q1)
    return torch.where(valid_QG & teaches_Q1, reward_QG - mean_Q1, zero_QG)


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


def select_random(valid_QG: Tensor, num_updated: int, seed: int) -> Tensor:
    """Which trajectories are updated on, (Q, G) bool: `num_updated` of each question's valid ones, all if it has fewer.

    The same seed selects the same ones.

    Raises: ValueError if num_updated is outside [1, G].

    Source: RaML's num_update_sample_per_prompt, arXiv:2505.19815, Table 7.
    """
    num_questions, num_trajectories = valid_QG.shape
    if not 1 <= num_updated <= num_trajectories:
        raise ValueError(
            f"grpo.num_updated={num_updated} must be in [1, {num_trajectories}]: "
            "only sampled trajectories can be updated on"
        )
    generator = torch.Generator().manual_seed(seed)
    draw_QG = torch.rand(num_questions, num_trajectories, generator=generator).to(valid_QG.device)
    best_QU = torch.where(valid_QG.bool(), draw_QG, -1.0).topk(num_updated, dim=1).indices
    selected_QG = torch.zeros_like(valid_QG, dtype=torch.bool).scatter(1, best_QU, True)
    return selected_QG & valid_QG.bool()
