"""How much vectors vary from draw to draw, from one vector and one number kept of all that were seen."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Spread:
    """The trace of the covariance of vectors that come one after the other. A vector is a list of tensors, of which
    each rank may hold a part of its own; `total` adds a number over the ranks.

    Source: Welford 1962, "Note on a Method for Calculating Corrected Sums of Squares and Products".
    """

    def __init__(self, total: Callable[[float], float]) -> None:
        self._total = total
        self._mean: list[Tensor] = []
        self._squares = 0.0
        self.num = 0

    def add(self, vector: Sequence[Tensor]) -> None:
        """Take one more vector in; it is not kept."""
        self.num += 1
        if self.num == 1:
            self._mean = [part.clone() for part in vector]
            return
        for mean, part in zip(self._mean, vector, strict=True):
            before = part - mean
            mean += before / self.num
            self._squares += float((before.double() * (part - mean).double()).sum())

    def trace(self) -> float:
        """Sum of the elements' variances (unbiased). Raises: ValueError with fewer than two vectors."""
        if self.num < 2:
            raise ValueError(f"a variance needs two vectors or more, got {self.num}")
        return self._total(self._squares) / (self.num - 1)


def squared_norm(vector: Sequence[Tensor], total: Callable[[float], float]) -> float:
    """The sum of the squares of the elements, over all ranks."""
    return total(float(sum(torch.linalg.vector_norm(part.double()).square() for part in vector)))
