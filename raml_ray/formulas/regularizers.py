"""Divergence from a reference policy and entropy, estimated from sampled tokens: no pass over the vocabulary.

Each is used as a term of the loss. Its gradient is therefore that of its value, and not the value's expectation's: the
two differ, since the tokens are drawn from the policy that moves.
"""

from typing import Literal

from torch import Tensor

from raml_ray.formulas.policy_losses import log_ratio


def kl(logprob_BT: Tensor, ref_logprob_BT: Tensor, mask_BT: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Estimate of KL(policy || reference) at every token sampled from the policy, (B, T), nats; 0 outside the mask.

    With d = log p - log p_ref: `k1` is d (unbiased, may be negative), `k2` d^2 / 2 (small bias), `k3` exp(-d) - 1 + d
    (unbiased, never negative). The gradient of k2 is in expectation that of the divergence. That of k1 would be 0 in
    expectation, so k1 has k2's. That of k3 is 1 - exp(-d) in the place of d.

    Raises: ValueError if the shapes differ.

    Sources: Schulman 2020, "Approximating KL Divergence"; which gradients follow: Tang and Munos 2025, arXiv:2506.09477.
    """
    difference_BT = log_ratio(logprob_BT, ref_logprob_BT, mask_BT)
    half_square_BT = difference_BT.square() / 2
    match estimator:
        case "k1":
            return difference_BT.detach() + half_square_BT - half_square_BT.detach()
        case "k2":
            return half_square_BT
        case "k3":
            return (-difference_BT).expm1() + difference_BT


def negative_entropy(logprob_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Estimate of the policy's negative entropy at every token sampled from it, log p, (B, T), nats; 0 outside the mask.

    Its gradient is (log p) grad log p, which in expectation is the negative entropy's: log p alone would have 0.

    Raises: ValueError if the shapes differ.
    """
    kept_BT = log_ratio(logprob_BT, logprob_BT.new_zeros(()).expand_as(logprob_BT), mask_BT)
    half_square_BT = kept_BT.square() / 2
    return kept_BT.detach() + half_square_BT - half_square_BT.detach()
