"""How far the rollout engine's probabilities of the tokens that it sampled are from the learner's, and what corrects it."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raml_ray.formulas.losses import Part, masked, same_shape
from raml_ray.formulas.policy_losses import log_ratio


class Mismatch(NamedTuple):
    """How far the learner's log-probabilities are from the rollout engine's, in nats."""

    absolute: Part
    """|learner - engine| per token."""
    largest: Tensor
    kl: Part
    """k3 estimate of KL(engine || learner) per token."""

    def __or__(self, other: "Mismatch") -> "Mismatch":
        """Of both micro-batches together."""
        return Mismatch(self.absolute + other.absolute, torch.maximum(self.largest, other.largest), self.kl + other.kl)


def mismatch(logprob_BT: Tensor, rollout_logprob_BT: Tensor, mask_BT: Tensor) -> Mismatch:
    """Differences between the learner's and the engine's log-probabilities of the same tokens, nats, without gradient.

    Raises: ValueError if the shapes differ.

    Source: Schulman 2020, "Approximating KL Divergence" (k3).
    """
    delta_BT = log_ratio(logprob_BT, rollout_logprob_BT, mask_BT).detach()
    largest = delta_BT.abs().max() if delta_BT.numel() else delta_BT.sum()
    return Mismatch(masked(delta_BT.abs(), mask_BT), largest, masked(delta_BT.expm1() - delta_BT, mask_BT))


class Correction(NamedTuple):
    """What a token's loss is multiplied by, and where the cap decided it, (B, T) each, without gradient."""

    weight_BT: Tensor
    capped_BT: Tensor


def correction(
    old_logprob_BT: Tensor, rollout_logprob_BT: Tensor, how: Literal["tis", "mis", "none"], *, cap: float
) -> Correction:
    """The learner's probability of each token over the engine's: at most `cap` (`tis`), or 0 above it (`mis`); 1 (`none`).

    Raises: ValueError if the shapes differ or the cap is not positive.

    Sources: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (truncated
    importance sampling); Liu et al. 2025, "When Speed Kills Stability" (masked importance sampling).
    """
    same_shape(old_logprob=old_logprob_BT, rollout_logprob=rollout_logprob_BT)
    if cap <= 0:
        raise ValueError(f"the largest importance weight must be positive, got grpo.correction_cap={cap}")
    ratio_BT = (old_logprob_BT.float() - rollout_logprob_BT.float()).exp().detach()
    capped_BT = ratio_BT > cap
    match how:
        case "tis":
            return Correction(ratio_BT.clamp(max=cap), capped_BT)
        case "mis":
            return Correction(ratio_BT.masked_fill(capped_BT, 0.0), capped_BT)
        case "none":
            return Correction(torch.ones_like(ratio_BT), torch.zeros_like(capped_BT))
