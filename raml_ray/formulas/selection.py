"""Which trajectories of each group enter the policy loss. Advantages come from all of a group, whichever are chosen.

Every function returns (Q, G) bool, true for at most `num_updated` of a question's valid ones (`by_difficulty`: so many on
average), for all of them where there are no more. Ties are decided by the order of the trajectories.
"""

import heapq
import math

import torch
from torch import Tensor


def at_random(valid_QG: Tensor, num_updated: int, seed: int) -> Tensor:
    """Drawn without replacement; the same seed selects the same ones.

    Raises: ValueError if num_updated is outside [1, G].

    Source: RaML's num_update_sample_per_prompt, arXiv:2505.19815, Table 7.
    """
    num_questions, num_trajectories = valid_QG.shape
    generator = torch.Generator().manual_seed(seed)
    draw_QG = torch.rand(num_questions, num_trajectories, generator=generator).to(valid_QG.device)
    return highest(draw_QG, valid_QG, num_updated)


def highest(score_QG: Tensor, valid_QG: Tensor, num_updated: int) -> Tensor:
    """Those with the highest scores.

    Raises: ValueError if num_updated is outside [1, G].
    """
    _check(valid_QG, num_updated)
    # A score may be NaN where the trajectory is not valid.
    ranked_QG = torch.where(valid_QG.bool(), score_QG, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    return _first(ranked_QG, valid_QG, torch.full((len(valid_QG), 1), num_updated))


def max_variance(reward_QG: Tensor, valid_QG: Tensor, num_updated: int) -> Tensor:
    """Those whose rewards have the largest variance: some of the highest and some of the lowest.

    Of the splits into highest and lowest that are equally good the one with most of the lowest. A question whose rewards
    are all equal has its first ones.

    Raises: ValueError if num_updated is outside [1, G].

    Source: Xu et al. 2025 (PODS), arXiv:2504.13818, section 3.2.
    """
    _check(valid_QG, num_updated)
    selected_QG = torch.zeros_like(valid_QG, dtype=torch.bool)
    for question, (reward_G, valid_G) in enumerate(zip(reward_QG.double(), valid_QG.bool(), strict=True)):
        place_N = valid_G.nonzero()[:, 0]
        count = min(num_updated, len(place_N))
        ranked_N = place_N[reward_G[place_N].sort(stable=True).indices]
        chosen = [
            torch.cat([ranked_N[: count - num_high], ranked_N[len(ranked_N) - num_high :]])
            for num_high in range(count + 1)
        ]
        best = max(chosen, key=lambda place_U: float(reward_G[place_U].var(correction=0)) if count else 0.0)
        selected_QG[question, best] = True
    return selected_QG


def by_difficulty(reward_QG: Tensor, valid_QG: Tensor, num_updated: int, seed: int) -> Tensor:
    """Q * num_updated in all, spread over the questions by the standard deviation of their rewards; at random within one.

    Of 0/1 rewards that is sqrt(p (1 - p)) of the pass rate p: most of questions that are half solved, none of those that
    are solved always or never. A question gives at most its valid ones, and what it cannot give others do.

    Raises: ValueError if num_updated is outside [1, G].

    Source: Neyman 1934, the allocation with which a mean over strata varies least at a given number of samples; for
    rollouts: Yao et al. 2025 (GVM), arXiv:2505.02391.
    """
    _check(valid_QG, num_updated)
    valid_QG = valid_QG.bool()
    num_valid_Q = valid_QG.sum(1)
    mean_Q1 = torch.where(valid_QG, reward_QG, 0.0).sum(1, keepdim=True) / num_valid_Q.clamp(min=1)[:, None]
    square_Q = torch.where(valid_QG, reward_QG - mean_Q1, 0.0).square().sum(1)
    # Below rounding a deviation is that of equal rewards.
    deviations = [
        math.sqrt(square / n) if n and square / n > 1e-10 else 0.0
        for square, n in zip(square_Q.tolist(), num_valid_Q.tolist(), strict=True)
    ]
    quota_Q1 = torch.tensor(_spread(len(valid_QG) * num_updated, deviations, num_valid_Q.tolist()))[:, None]
    generator = torch.Generator().manual_seed(seed)
    draw_QG = torch.where(valid_QG, torch.rand(valid_QG.shape, generator=generator), -1.0)
    return _first(draw_QG.sort(dim=1, descending=True, stable=True).indices, valid_QG, quota_Q1)


def _spread(total: int, weights: list[float], most: list[int]) -> list[int]:
    """Whole numbers that add up to `total` or, if they cannot, are `most` wherever the weight is not 0: one after the
    other goes to whoever has least for its weight (Webster's divisors, which round to the nearest share)."""
    given = [0] * len(weights)
    waiting = [(-weight, index) for index, weight in enumerate(weights) if weight > 0 and most[index] > 0]
    heapq.heapify(waiting)
    for _ in range(min(total, sum(most[index] for _, index in waiting))):
        index = heapq.heappop(waiting)[1]
        given[index] += 1
        if given[index] < most[index]:
            heapq.heappush(waiting, (-weights[index] / (2 * given[index] + 1), index))
    return given


def _first(ranked_QG: Tensor, valid_QG: Tensor, quota_Q1: Tensor) -> Tensor:
    """True for the first of each question's ranked trajectories, so many as its quota, if they are valid."""
    is_first_QG = torch.arange(ranked_QG.shape[1]).expand_as(ranked_QG) < quota_Q1
    return torch.zeros_like(valid_QG, dtype=torch.bool).scatter(1, ranked_QG, is_first_QG) & valid_QG.bool()


def _check(valid_QG: Tensor, num_updated: int) -> None:
    if not 1 <= num_updated <= valid_QG.shape[1]:
        raise ValueError(
            f"grpo.num_updated={num_updated} must be in [1, {valid_QG.shape[1]}]: "
            "only sampled trajectories can be updated on"
        )
