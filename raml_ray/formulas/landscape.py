"""Directions and grids for slices through the loss as a function of a policy's weights.

`filter` is the normalisation of Li et al., `tensor` that of the paper's notebook, which cites Li et al. but scales whole
tensors and moves biases and norms as well.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

Normalisation = Literal["filter", "tensor"]
Weights = Mapping[str, Tensor]

LI_EPSILON = 1e-10


class Point(NamedTuple):
    """A place on a plane of weights, in units of its two directions: `Point(-0.5, 0.25)`."""

    x: float
    y: float


class Plane(NamedTuple):
    """Two orthogonal directions of one length, and where what spans them lies on them."""

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    length: float
    """Norm of either direction: a radius of 1 is that long."""


def grid(radius: float, num_per_side: int) -> list[Point]:
    """Points of a square around the unmoved weights, which are its middle point; x runs slowest.

    Raises: ValueError if the number is even, so that the unmoved weights would be missing, or the radius not positive.
    """
    if num_per_side < 3 or num_per_side % 2 == 0 or not radius > 0:
        raise ValueError(f"{num_per_side} points to a side, radius {radius:g}: an odd number from 3 has a middle point")
    half = num_per_side // 2
    steps = [radius * (index - half) / half for index in range(num_per_side)]
    return [Point(x, y) for x in steps for y in steps]


def normalised(direction: Tensor, weight: Tensor, kind: Normalisation) -> Tensor:
    """The direction as large as the weight, float32, of the weight's shape.

    `filter`: each row of a matrix is as long as the weight's row, and what is no matrix (biases, norms) stays where it is;
    `tensor`: as long as the whole tensor.

    Source: Li et al., arXiv:1712.09913, section 4, with its code's epsilon; RaML's landscape notebook.
    """
    direction, weight = direction.float(), weight.float()
    if kind == "tensor":
        size = float(vector_norm(direction))
        return direction * (float(vector_norm(weight)) / size if size else 0.0)
    if weight.dim() < 2:
        return torch.zeros_like(direction)
    rows, filters = direction.flatten(1), weight.flatten(1)
    scale: Tensor = vector_norm(filters, dim=1, keepdim=True) / (vector_norm(rows, dim=1, keepdim=True) + LI_EPSILON)
    return (rows * scale).view_as(direction)


def moved(weights: Weights, first: Weights, second: Weights, point: Point) -> dict[str, Tensor]:
    """weights + x first + y second, of the names that a direction has, each in its weight's type; nothing is written to.

    Summed in float32 from the weights as they are, so that no point remembers another.
    """
    return {
        name: (weights[name].float() + point.x * first[name] + point.y * second[name]).to(weights[name].dtype)
        for name in first
    }


def dot(one: Weights, other: Weights) -> float:
    """Inner product over the names that both have; a name that one lacks is 0 there."""
    return math.fsum(float((one[name].double() * other[name].double()).sum()) for name in one.keys() & other.keys())


def norm(weights: Weights) -> float:
    return math.sqrt(dot(weights, weights))


def cosine(one: Weights, other: Weights) -> float:
    """Of two changes of weights, each joined to one vector, in [-1, 1]; 0 if either is 0."""
    size = norm(one) * norm(other)
    return dot(one, other) / size if size else 0.0


def plane(first: Weights, second: Weights) -> Plane:
    """The plane that two changes of weights span, its axes as long as the second: `second` lies on the unit circle,
    and a step along `first` of the same length at (1, 0).

    Raises: ValueError if either is 0, or both point along one line.
    """
    length, size = norm(second), norm(first)
    if length == 0 or size == 0:
        raise ValueError("a plane needs two directions, and one is 0")
    x = dot(first, second) / size
    names = dict.fromkeys([*first, *second])
    unit = {name: first[name].float() / size if name in first else torch.zeros_like(second[name]) for name in names}
    rest = {
        name: (second[name].float() if name in second else torch.zeros_like(unit[name])) - x * unit[name]
        for name in names
    }
    height = norm(rest)
    if height <= 1e-5 * length:
        raise ValueError("a plane needs two directions, and these are one and the same line")
    return Plane(
        {name: length * part for name, part in unit.items()},
        {name: (length / height) * part for name, part in rest.items()},
        length,
    )


def projected(change: Weights, onto: Plane) -> Point:
    """Where a change of weights lies on the plane: of all its points the nearest."""
    square = onto.length**2
    return Point(dot(change, onto.first) / square, dot(change, onto.second) / square)
