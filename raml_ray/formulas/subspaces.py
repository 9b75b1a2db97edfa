"""Linear probes for a class, the subspace that one reads, and what is left of states when a subspace is taken away."""

from typing import NamedTuple

import torch
from torch import Tensor


class LinearProbe(NamedTuple):
    """Scores of a state: (state - mean) weight + bias; the class with the largest is what the probe says."""

    mean_D: Tensor
    weight_DC: Tensor
    bias_C: Tensor

    def predicted(self, state_ND: Tensor) -> Tensor:
        """The class of each state, (N,) int64."""
        return ((state_ND.double() - self.mean_D) @ self.weight_DC + self.bias_C).argmax(-1)


def ridge_probe(state_ND: Tensor, class_N: Tensor, num_classes: int, penalty: float) -> LinearProbe:
    """The least-squares classifier of the states, float64: ridge regression of class indicators.

    Every dimension is brought to unit variance first, so that the penalty (per state) weighs all alike.

    Raises: ValueError if there are no two states, a class is none of 0 .. num_classes - 1, or the penalty is not positive.
    """
    if state_ND.dim() != 2 or len(state_ND) < 2 or class_N.shape != (len(state_ND),):
        raise ValueError(f"a probe needs at least two states and a class of each, got {tuple(state_ND.shape)}")
    if penalty <= 0:
        raise ValueError(f"features.penalty={penalty:g} must be above 0")
    if not 0 <= int(class_N.min()) <= int(class_N.max()) < num_classes:
        raise ValueError(f"classes must lie in 0 .. {num_classes - 1}")
    state = state_ND.double()
    mean_D = state.mean(0)
    scale_D = state.std(0, unbiased=False)
    # What varies by rounding alone is no dimension to be blown up.
    scale_D = torch.where(scale_D > 1e-6 * scale_D.max(), scale_D, scale_D.max().clamp(min=1e-30))
    x_ND = (state - mean_D) / scale_D
    indicator_NC = torch.nn.functional.one_hot(class_N, num_classes).double()
    bias_C = indicator_NC.mean(0)
    covariance_DD = x_ND.T @ x_ND / len(x_ND)
    penalised_DD = covariance_DD + penalty * torch.eye(len(mean_D), dtype=torch.float64)
    weight_DC = torch.linalg.solve(penalised_DD, x_ND.T @ (indicator_NC - bias_C) / len(x_ND))
    return LinearProbe(mean_D, weight_DC / scale_D[:, None], bias_C)


def read_subspace(probe: LinearProbe, rank: int) -> Tensor:
    """An orthonormal basis (D, R) of the directions that the probe's scores depend on most; C classes have at most C - 1.

    Raises: ValueError if it reads fewer than `rank`.
    """
    left_DK, size_K, _ = torch.linalg.svd(probe.weight_DC, full_matrices=False)
    num_read = int((size_K > 1e-9 * size_K[0]).sum()) if size_K[0] > 0 else 0
    if num_read < rank:
        raise ValueError(
            f"features.rank={rank}, but a probe reads {num_read} directions: lower it, or look at more results"
        )
    read_DR: Tensor = left_DK[:, :rank]
    return read_DR


def random_subspace(num_dimensions: int, rank: int, seed: int) -> Tensor:
    """An orthonormal basis (D, R) of a uniformly random subspace, float64."""
    generator = torch.Generator().manual_seed(seed)
    gaussian_DR = torch.randn(num_dimensions, rank, generator=generator, dtype=torch.float64)
    basis_DR: Tensor = torch.linalg.qr(gaussian_DR).Q
    return basis_DR


def without(state_ND: Tensor, basis_DR: Tensor, mean_D: Tensor) -> Tensor:
    """The states with what they have in the subspace replaced by what the mean has there."""
    return state_ND - ((state_ND - mean_D) @ basis_DR) @ basis_DR.T


def share_of_variance(state_ND: Tensor, basis_DR: Tensor) -> float:
    """The share of the states' variance that lies in the subspace, in [0, 1]; 0 where they do not vary."""
    centred_ND = state_ND.double() - state_ND.double().mean(0)
    whole = float(centred_ND.square().sum())
    return float((centred_ND @ basis_DR).square().sum()) / whole if whole > 0 else 0.0
