"""Probes whose answer is known: states that say their class in one direction, and noise in the others."""

import pytest
import torch

from raml_ray.formulas import subspaces


def states(num: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes at -1 and 1 along the diagonal of the first two of five dimensions; the rest is noise, once of size 100."""
    generator = torch.Generator().manual_seed(0)
    class_N = torch.arange(num) % 2
    state_ND = torch.randn(num, 5, generator=generator) * torch.tensor([0.05, 0.05, 1.0, 1.0, 100.0])
    state_ND[:, :2] += (2.0 * class_N - 1)[:, None]
    return state_ND, class_N


def test_a_probe_finds_the_direction_that_says_the_class() -> None:
    state_ND, class_N = states()
    probe = subspaces.ridge_probe(state_ND, class_N, 2, 1e-6)
    assert probe.predicted(state_ND).equal(class_N)
    (direction_D,) = subspaces.read_subspace(probe, 1).T
    diagonal = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64) / 2**0.5
    assert abs(float(direction_D @ diagonal)) == pytest.approx(1.0, abs=0.01)


def test_without_its_subspace_a_state_says_nothing_and_keeps_the_rest() -> None:
    state_ND, class_N = states()
    probe = subspaces.ridge_probe(state_ND, class_N, 2, 1e-6)
    basis_DR, mean_D = subspaces.read_subspace(probe, 1), state_ND.double().mean(0)
    left_ND = subspaces.without(state_ND.double(), basis_DR, mean_D)
    assert torch.allclose((left_ND - mean_D) @ basis_DR, torch.zeros(len(left_ND), 1, dtype=torch.float64), atol=1e-9)
    scores_NC = (left_ND - probe.mean_D) @ probe.weight_DC
    assert torch.allclose(scores_NC, torch.zeros_like(scores_NC), atol=1e-6)
    other_DR = subspaces.random_subspace(5, 1, 0)
    other_DR = other_DR - basis_DR @ (basis_DR.T @ other_DR)
    assert torch.allclose(left_ND @ other_DR, state_ND.double() @ other_DR)


def test_states_that_are_all_alike_leave_the_most_frequent_class() -> None:
    state_ND = torch.zeros(6, 3)
    probe = subspaces.ridge_probe(state_ND, torch.tensor([0, 1, 2, 2, 1, 2]), 3, 0.1)
    # nothing to tell them apart by: the most frequent one
    assert probe.predicted(state_ND).tolist() == [2] * 6
    assert probe.bias_C.tolist() == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    with pytest.raises(ValueError, match=r"features\.rank=1, but a probe reads 0 directions"):
        subspaces.read_subspace(probe, 1)


def test_a_probe_of_c_classes_reads_one_direction_fewer() -> None:
    generator = torch.Generator().manual_seed(1)
    state_ND, class_N = torch.randn(90, 8, generator=generator), torch.arange(90) % 3
    probe = subspaces.ridge_probe(state_ND, class_N, 3, 0.01)
    basis_DR = subspaces.read_subspace(probe, 2)
    assert torch.allclose(basis_DR.T @ basis_DR, torch.eye(2, dtype=torch.float64), atol=1e-9)
    with pytest.raises(ValueError, match="reads 2 directions"):
        subspaces.read_subspace(probe, 3)


def test_random_subspaces_are_orthonormal_and_their_seeds() -> None:
    one, same, other = (subspaces.random_subspace(6, 3, seed) for seed in (4, 4, 5))
    assert torch.allclose(one.T @ one, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert one.equal(same)
    assert not torch.allclose(one, other)


def test_the_share_of_variance_is_that_of_the_directions() -> None:
    # variances of 1 and 9
    state_ND = torch.tensor([[1.0, 3.0], [1.0, -3.0], [-1.0, 3.0], [-1.0, -3.0]])
    first = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    assert subspaces.share_of_variance(state_ND, first) == pytest.approx(0.1)
    assert subspaces.share_of_variance(state_ND, torch.eye(2, dtype=torch.float64)) == pytest.approx(1.0)
    assert subspaces.share_of_variance(torch.ones(3, 2), first) == 0.0


def test_probes_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two states"):
        subspaces.ridge_probe(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 2, 0.1)
    with pytest.raises(ValueError, match=r"0 \.\. 1"):
        subspaces.ridge_probe(torch.zeros(2, 2), torch.tensor([0, 2]), 2, 0.1)
    with pytest.raises(ValueError, match=r"features\.penalty=0"):
        subspaces.ridge_probe(torch.zeros(2, 2), torch.tensor([0, 1]), 2, 0.0)
