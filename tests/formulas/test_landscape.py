"""Directions on the scale of the weights, grids with their middle, planes with what spans them."""

import math

import pytest
import torch

from raml_ray.formulas import landscape
from raml_ray.formulas.landscape import Point

W, D = torch.tensor([[0.0, 2.0], [3.0, 1.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])


def test_filters_leave_biases_and_dead_rows_alone() -> None:
    bias = torch.tensor([3.0, 4.0])
    assert landscape.normalised(torch.ones(2), bias, "filter").tolist() == [0.0, 0.0]
    assert landscape.normalised(torch.tensor([3.0, 4.0]) / 5, bias, "tensor").tolist() == pytest.approx([3.0, 4.0])
    assert landscape.normalised(D, torch.zeros(2, 2), "filter").abs().max() == 0
    assert landscape.normalised(torch.zeros(2, 2), W, "tensor").abs().max() == 0


@pytest.mark.parametrize("kind", ["filter", "tensor"])
def test_a_directions_own_length_does_not_matter(kind: landscape.Normalisation) -> None:
    one, other = landscape.normalised(D, W, kind), landscape.normalised(7 * D, W, kind)
    assert torch.allclose(one, other, rtol=1e-6)


def test_a_grid_has_the_unmoved_weights_in_its_middle() -> None:
    points = landscape.grid(0.5, 5)
    assert len(points) == 25
    assert points[12] == Point(0.0, 0.0)
    assert points[1] == Point(-0.5, -0.25)
    assert points[-1] == Point(0.5, 0.5)
    with pytest.raises(ValueError, match="10 points to a side"):
        landscape.grid(1.0, 10)
    with pytest.raises(ValueError, match="radius 0"):
        landscape.grid(0.0, 5)


def test_no_point_remembers_another() -> None:
    weights = {"a": torch.randn(50, 50).bfloat16(), "b": torch.ones(2)}
    before = weights["a"].clone()
    first, second = ({"a": torch.randn(50, 50)} for _ in range(2))
    for _ in range(20):
        there = landscape.moved(weights, first, second, Point(1.0, -1.0))
        back = landscape.moved(weights, first, second, Point(0.0, 0.0))
    assert list(there) == ["a"]
    assert there["a"].dtype == torch.bfloat16
    assert torch.equal(weights["a"], before)
    assert torch.equal(back["a"], before)
    assert (there["a"] - before).abs().max() > 1


def test_what_spans_a_plane_lies_on_its_unit_circle() -> None:
    minus_gradient, change = {"a": torch.tensor([4.0, 0.0])}, {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([0.0])}
    found = landscape.plane(minus_gradient, change)
    assert found.length == pytest.approx(math.sqrt(2))
    assert found.first["a"].tolist() == pytest.approx([math.sqrt(2), 0.0])
    assert found.second["a"].tolist() == pytest.approx([0.0, math.sqrt(2)])
    assert landscape.projected(change, found) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))
    assert landscape.projected(minus_gradient, found) == pytest.approx((4 / math.sqrt(2), 0.0))
    # what is off the plane is left out
    assert landscape.projected({"b": torch.tensor([3.0])}, found) == pytest.approx((0.0, 0.0))


def test_one_line_spans_no_plane() -> None:
    line = {"a": torch.tensor([1.0, 2.0])}
    with pytest.raises(ValueError, match="one and the same line"):
        landscape.plane(line, {"a": torch.tensor([-2.0, -4.0])})
    with pytest.raises(ValueError, match="one is 0"):
        landscape.plane({"a": torch.zeros(2)}, line)
