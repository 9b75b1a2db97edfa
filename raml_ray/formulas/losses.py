"""Losses as sums and counts: the divide happens once per optimizer step, over all ranks and micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


def same_shape(**tensors: Tensor) -> None:
    """Nothing; broadcasting (B,) over (B, T) is legal whenever B = T, and wrong.

    Raises: ValueError naming every shape, unless all are equal.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")


def masked(value_BT: Tensor, mask_BT: Tensor) -> Part:
    """The values that the mask keeps, and their number.

    Raises: ValueError if the shapes differ.
    """
    same_shape(value=value_BT, mask=mask_BT)
    # `where`, not a product: padding may hold infinities, and 0 * inf is NaN.
    mask_BT = mask_BT.bool()
    return Part(torch.where(mask_BT, value_BT, torch.zeros_like(value_BT)).sum(), mask_BT.sum().to(value_BT.dtype))


def cross_entropy(logprob_BT: Tensor, mask_BT: Tensor) -> Part:
    """Negative log-probability over the tokens that the mask keeps, nats, and their number.

    Raises: ValueError if the shapes differ.
    """
    same_shape(logprob=logprob_BT, mask=mask_BT)
    return masked(-logprob_BT.float(), mask_BT)


def sequence_means(value_BT: Tensor, mask_BT: Tensor, sequence_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Of every sequence the mean over the tokens that the mask keeps (0 of none), (B,), and their number, (B,).

    `sequence_BT` numbers the sequence that each token belongs to from 0 on, so that rows may hold several.

    Raises: ValueError if the shapes differ.
    """
    same_shape(value=value_BT, mask=mask_BT, sequence=sequence_BT)
    mask_BT = mask_BT.bool()
    index_N = sequence_BT.flatten()
    zero_B = value_BT.new_zeros(int(index_N.max()) + 1 if index_N.numel() else 0)
    kept_N = torch.where(mask_BT, value_BT, torch.zeros_like(value_BT)).flatten()
    count_B = zero_B.index_add(0, index_N, mask_BT.flatten().to(value_BT.dtype))
    return zero_B.index_add(0, index_N, kept_N) / count_B.clamp(min=1), count_B


def aggregated(
    value_BT: Tensor,
    mask_BT: Tensor,
    sequence_BT: Tensor,
    how: Literal["token_mean", "sequence_mean", "constant"],
    *,
    max_tokens: int,
) -> Part:
    """Token losses as one sum and its count. A sequence must not be cut in two: its tokens lie in one micro-batch.

    `token_mean`: their sum, over the number of tokens; `sequence_mean`: the sum of the sequences' means, over the number
    of sequences; `constant`: their sum, over the number of sequences times `max_tokens`. Sequences without a token that
    the mask keeps do not count.

    Raises: ValueError if the shapes differ.

    Sources: Yu et al. 2025 (DAPO), arXiv:2503.14476, Eq. 8; Shao et al. 2024, arXiv:2402.03300, Eq. 3; Liu et al. 2025
    (Dr. GRPO), arXiv:2503.20783, section 3.2.
    """
    if how == "token_mean":
        return masked(value_BT, mask_BT)
    mean_B, count_B = sequence_means(value_BT, mask_BT, sequence_BT)
    num_sequences = (count_B > 0).sum().to(value_BT.dtype)
    if how == "sequence_mean":
        return Part(mean_B.sum(), num_sequences)
    return Part(masked(value_BT, mask_BT).total, num_sequences * max_tokens)


def count(lengths: Sequence[int], how: Literal["token_mean", "sequence_mean", "constant"], *, max_tokens: int) -> int:
    """What the counts of `aggregated` add up to over sequences of so many tokens, however they are split."""
    if how == "token_mean":
        return sum(lengths)
    num_sequences = sum(1 for length in lengths if length)
    return num_sequences if how == "sequence_mean" else num_sequences * max_tokens


def guarded(loss: Tensor) -> Tensor:
    """The loss, whose gradient is NaN wherever it has one if the loss itself is not finite.

    A gradient can be finite where the loss is not (behind a bound, say); on its way to all ranks a NaN makes all of them
    leave out the step.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
