"""L-hat on planes through a policy's weights, which stay untouched: moved weights stand in for them, call by call."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raml_ray import records
from raml_ray.formulas import landscape
from raml_ray.formulas.landscape import Normalisation, Plane, Point
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers.answer_loss import answer_loss, answer_losses
from raml_ray.workers.pseudo_update import value_patches
from raml_ray.workers.traced_attention import attention_modules


@dataclass(frozen=True, slots=True)
class UpdatePlane:
    """The plane of minus the gradient of L-hat without the trajectory and the trajectory's pseudo-update, in W_v."""

    plane: Plane
    update: dict[str, Tensor]
    """The change of every W_v that stands in for the whole trajectory; on the plane's unit circle."""


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that a landscape moves, by name: all but embeddings and the output head, as in the paper."""
    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    kept = {id(parameter) for module in outer if module is not None for parameter in module.parameters()}
    return {name: p.detach() for name, p in model.named_parameters() if id(p) not in kept}


def random_plane(model: PreTrainedModel, seed: int, kind: Normalisation) -> Plane:
    """Two Gaussian directions on the scale of the weights, the same on every machine; its length is that of the weights."""
    weights = weights_of(model)

    def direction(axis: str) -> dict[str, Tensor]:
        found = {}
        for name, weight in weights.items():
            draw = torch.Generator().manual_seed(records.seed_of(seed, "landscape", axis, name))
            found[name] = landscape.normalised(
                torch.randn(weight.shape, generator=draw).to(weight.device), weight, kind
            )
        return found

    return Plane(direction("x"), direction("y"), landscape.norm(weights))


def update_plane(
    model: PreTrainedModel, prompt_ids: Sequence[int], ids: Sequence[int], suffix: AnswerSuffix
) -> UpdatePlane:
    """The plane of this trajectory. Raises: ValueError as `plane` and `value_patches` do."""
    update = value_patches(model, [*prompt_ids, *ids], suffix, range(len(prompt_ids), len(prompt_ids) + len(ids)))
    return UpdatePlane(landscape.plane(descent(model, prompt_ids, suffix), update), update)


def descent(model: PreTrainedModel, prefix_ids: Sequence[int], suffix: AnswerSuffix) -> dict[str, Tensor]:
    """Minus the gradient of L-hat after the prefix with respect to every layer's W_v, by parameter name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    weights = [module.v_proj.weight for module in attention_modules(model)]
    with torch.enable_grad():
        gradients = torch.autograd.grad(answer_loss(model, prefix_ids, suffix), weights)
    return {names[id(weight)]: -gradient.float() for weight, gradient in zip(weights, gradients, strict=True)}


def path(
    model: PreTrainedModel,
    plane: Plane,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    suffix: AnswerSuffix,
    places: Sequence[int],
) -> Iterator[tuple[int, Point, float]]:
    """Where the pseudo-update of the first so many trajectory tokens lies on the plane, and what share of its length is
    off it; nothing of it is drawn to fit."""
    for place in places:
        if place == 0:
            yield 0, Point(0.0, 0.0), 0.0
            continue
        prefix, new = [*prompt_ids, *ids[:place]], range(len(prompt_ids), len(prompt_ids) + place)
        change = value_patches(model, prefix, suffix, new)
        at = landscape.projected(change, plane)
        on_plane = (at.x**2 + at.y**2) * plane.length**2
        off = max(1 - on_plane / landscape.dot(change, change), 0.0) ** 0.5
        yield place, at, off


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    plane: Plane,
    points: Sequence[Point],
    prefixes: Sequence[Sequence[int]],
    suffix: AnswerSuffix,
) -> Iterator[list[float]]:
    """At each point L-hat after each prefix, nats per answer token."""
    weights = dict(model.named_parameters())
    for point in points:
        moved = landscape.moved(weights, plane.first, plane.second, point)
        yield answer_losses(model, prefixes, suffix, moved).tolist()


def changed(model: PreTrainedModel, change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a change names, with it."""
    weights = dict(model.named_parameters())
    return {name: (weights[name].detach().float() + part).to(weights[name].dtype) for name, part in change.items()}


@torch.no_grad()
def loss_after(
    model: PreTrainedModel, change: Mapping[str, Tensor], prefix_ids: Sequence[int], suffix: AnswerSuffix
) -> float:
    """L-hat after the prefix with the weights changed by this."""
    return float(answer_loss(model, prefix_ids, suffix, changed(model, change)))


def scaled(change: Mapping[str, Tensor], length: float) -> dict[str, Tensor]:
    """The change at this length. Raises: ValueError if it is 0."""
    size = landscape.norm(change)
    if size == 0:
        raise ValueError("a change of weights that is 0 has no direction")
    return {name: part * (length / size) for name, part in change.items()}


def noise_like(change: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A Gaussian change of the same weights and length."""
    drawn = {}
    for name, part in change.items():
        generator = torch.Generator().manual_seed(records.seed_of(seed, "noise", name))
        drawn[name] = torch.randn(part.shape, generator=generator).to(part.device)
    return scaled(drawn, landscape.norm(change))
