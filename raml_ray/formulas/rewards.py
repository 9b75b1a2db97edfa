"""Rewards of trajectories, from what the judge says of the answer, from their form, and from their length."""

import torch
from torch import Tensor


def correctness(correct_QG: Tensor) -> Tensor:
    """1 for a correct answer, 0 for any other, (Q, G)."""
    return correct_QG.float()


def paper(correct_QG: Tensor, well_formed_QG: Tensor) -> Tensor:
    """Correctness and form, -1 to 1, (Q, G): in its form 1 for a correct answer and 0 for a wrong one, else -0.5 and -1.

    Source: RaML, arXiv:2505.19815, Eq. 21.
    """
    malformed_QG = torch.where(correct_QG.bool(), -0.5, -1.0)
    return torch.where(well_formed_QG.bool(), correctness(correct_QG), malformed_QG)


def overlong(length_QG: Tensor, max_tokens: int, overlong_tokens: int) -> Tensor:
    """What a response's length takes from its reward, -1 to 0, (Q, G): nothing up to max_tokens - overlong_tokens tokens,
    then linearly more, 1 at max_tokens.

    Raises: ValueError unless 0 <= overlong_tokens <= max_tokens.

    Source: Yu et al. 2025 (DAPO), arXiv:2503.14476, Eq. 13.
    """
    if not 0 <= overlong_tokens <= max_tokens:
        raise ValueError(f"grpo.overlong_tokens={overlong_tokens} must be in [0, grpo.max_tokens={max_tokens}]")
    if overlong_tokens == 0:
        return torch.zeros(length_QG.shape)
    return ((max_tokens - overlong_tokens - length_QG.float()) / overlong_tokens).clamp(-1.0, 0.0)
