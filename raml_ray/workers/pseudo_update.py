"""What a trajectory's tokens write into a real policy's attention, as changes of W_v, beside the gradient they should follow.

Two queries read a token. `answer` is the one that decodes the answer's first token, behind the answer suffix: the token
is one of its keys. `token` is the token itself, as in Proposition 2.1: the last query, and the newest of its own keys.
For each, per layer and head, the write is exact given the layer's inputs; what the token did in layers below is part of
those inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from raml_ray.formulas import pseudo_update as formulas
from raml_ray.formulas.pseudo_update import Write
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers.answer_loss import answer_loss
from raml_ray.workers.traced_attention import Layer, attention_modules, traced

READERS = ("answer", "token")


@dataclass(frozen=True, slots=True)
class HeadUpdates:
    """One token's pseudo-update in every layer and head, each (L, H) float32; cosines are with minus the gradient."""

    mass: Tensor
    """p, the attention on the token; NaN where there is none to speak of (`state_update`)."""
    direction_norm: Tensor
    """|v_t - o_l|."""
    patch_norm: Tensor
    """|dW_v|."""
    reconstruction_error: Tensor
    """|output of the patched head without the token - output with it| / |output with it|."""
    gradient_norm: Tensor
    """|dL/dW_v| before the token, of the head's key-value head."""
    cosine: Tensor
    """Of dW_v with -dL/dW_v, before the token."""
    cosine_random: Tensor
    """The same read input with a step of random direction."""
    cosine_shuffled: Tensor
    """The dW_v of another token of the trajectory for the same query; NaN where there is no other."""
    patch_norm_shuffled: Tensor
    """Its |dW_v|."""
    transfer_error: Tensor
    """What the patch leaves of the steps that the later answer queries need (`answer`), or the first one (`token`), as
    a share; 1: as bad as none."""


@dataclass(frozen=True, slots=True)
class TokenUpdate:
    """A token of a trajectory as an update, and what happened to L-hat meanwhile (nats per answer token)."""

    lhat_before: float
    lhat_after: float
    heads: dict[str, HeadUpdates]
    """By reader, one of READERS."""


def value_gradients(
    model: PreTrainedModel, prefix_ids: Sequence[int], suffix: AnswerSuffix
) -> tuple[float, list[Tensor]]:
    """L-hat after the prefix, and its gradient with respect to each layer's W_v: (H, D, E) for row vectors, each
    key-value head repeated for the query heads that share it."""
    modules = attention_modules(model)
    weights = [module.v_proj.weight for module in modules]
    with torch.enable_grad():
        loss = answer_loss(model, prefix_ids, suffix)
        gradients = torch.autograd.grad(loss, weights)
    found = []
    for module, gradient in zip(modules, gradients, strict=True):
        per_group = gradient.detach().float().unflatten(0, (-1, module.head_dim)).mT
        found.append(per_group.repeat_interleave(module.num_key_value_groups, dim=0))
    return float(loss.detach()), found


def queries(prefix_length: int, suffix: AnswerSuffix) -> list[int]:
    """The places that decode the answer's tokens and what follows the answer, ascending: two at least."""
    answer = [prefix_length + index for index, is_answer in enumerate(suffix.is_answer) if is_answer]
    return sorted({place - 1 for place in answer} | {answer[-1]})


def places(
    model: PreTrainedModel, token_ids: Sequence[int], first_position: int, seed: int
) -> tuple[int, int | None, torch.Generator]:
    """The last token's place, that of another of the trajectory (None where it has no other), and what drew it.

    Raises: ValueError if there is no token before the trajectory, or the policy's weights are not float32.
    """
    if not 0 < first_position < len(token_ids):
        raise ValueError(
            f"of {len(token_ids)} tokens those from {first_position} on make no trajectory behind a prompt"
        )
    if model.dtype != torch.float32:
        raise ValueError(f"an update needs float32 weights, not {model.dtype}: set analyze.dtype=float32")
    generator = torch.Generator().manual_seed(seed)
    place = len(token_ids) - 1
    others = range(first_position, place)
    return place, others[int(torch.randint(len(others), (1,), generator=generator))] if others else None, generator


def token_update(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    first_position: int,
    suffix: AnswerSuffix,
    seed: int,
) -> TokenUpdate:
    """The pseudo-update of the last of these tokens; those from `first_position` on are the trajectory's.

    Raises: ValueError if there is no token before it, the policy's weights are not float32, or as `traced` does.
    """
    place, other, generator = places(model, token_ids, first_position, seed)
    before, gradients = value_gradients(model, token_ids[:-1], suffix)
    asked = queries(len(token_ids), suffix)
    layers = traced(model, [*token_ids, *suffix.token_ids], [place, *asked])
    readers: dict[str, list[HeadUpdates]] = {reader: [] for reader in READERS}
    for layer, gradient_HDE in zip(layers, gradients, strict=True):
        for reader, made in _layer_updates(layer, -gradient_HDE, place, other, generator).items():
            readers[reader].append(made)
    with torch.no_grad():
        after = float(answer_loss(model, token_ids, suffix))
    return TokenUpdate(before, after, {reader: stacked(made) for reader, made in readers.items()})


def _layer_updates(
    layer: Layer, descent_HDE: Tensor, place: int, other: int | None, generator: torch.Generator
) -> dict[str, HeadUpdates]:
    """Both readers' updates in one layer, each (H,)."""
    written, read_HKD = _written(layer, place)
    swapped, swapped_read_HKD = (written, read_HKD) if other is None else _written(layer, other)
    there = torch.nan if other is None else 1.0
    noise = torch.randn(written.step_KE.shape, generator=generator).to(read_HKD.device)
    error_HK = _reconstruction_error(layer, written, read_HKD)
    targets = {"token": [1], "answer": list(range(2, read_HKD.shape[1]))}
    found = {}
    for query, reader in enumerate(("token", "answer")):
        read_HD, step_HE = read_HKD[:, query], written.step_KE[:, query]
        swapped_HD = swapped_read_HKD[:, query], swapped.step_KE[:, query]
        transfer = [
            formulas.transfer_error(read_HD, step_HE, read_HKD[:, later], written.step_KE[:, later])
            for later in targets[reader]
        ]
        found[reader] = HeadUpdates(
            mass=written.mass_K[:, query],
            direction_norm=torch.linalg.vector_norm(written.direction_KE[:, query], dim=-1),
            patch_norm=formulas.value_patch_norm(read_HD, step_HE),
            reconstruction_error=error_HK[:, query],
            gradient_norm=torch.linalg.vector_norm(descent_HDE, dim=(-2, -1)),
            cosine=formulas.value_patch_cosine(read_HD, step_HE, descent_HDE),
            cosine_random=formulas.value_patch_cosine(read_HD, noise[:, query], descent_HDE),
            cosine_shuffled=there * formulas.value_patch_cosine(*swapped_HD, descent_HDE),
            patch_norm_shuffled=there * formulas.value_patch_norm(*swapped_HD),
            transfer_error=torch.stack(transfer).mean(0),
        )
    return found


def _written(layer: Layer, place: int | Sequence[int]) -> tuple[Write, Tensor]:
    """What the keys at these places write for every query, and the read inputs m, (H, K, D)."""
    num_keys = layer.value_HTE.shape[1]
    is_new_T = torch.zeros(num_keys, dtype=torch.bool, device=layer.value_HTE.device)
    is_new_T[torch.tensor(place)] = True
    written = formulas.write(layer.logit_HKT, layer.value_HTE, is_new_T)
    return written, written.old_attention_KT @ layer.input_TD


def _reconstruction_error(layer: Layer, written: Write, read_HKD: Tensor) -> Tensor:
    """(H, K): the patched weights, as matrices, over the old keys' inputs, against what the layer gave with the token."""
    patch_HKDE = formulas.value_patch(read_HKD, written.step_KE)
    patched_HKDE = layer.value_weight_HDE[:, None] + patch_HKDE
    output_HKE = (read_HKD[..., None, :] @ patched_HKDE)[..., 0, :] + layer.value_bias_HE[:, None]
    error = torch.linalg.vector_norm(output_HKE - layer.output_HKE, dim=-1)
    found: Tensor = error / torch.linalg.vector_norm(layer.output_HKE, dim=-1)
    return found


def stacked(layers: Sequence[HeadUpdates]) -> HeadUpdates:
    """One layer's after the other, on the host."""
    return HeadUpdates(
        **{
            each.name: torch.stack([getattr(layer, each.name) for layer in layers]).cpu()
            for each in fields(HeadUpdates)
        }
    )


def value_patches(
    model: PreTrainedModel, token_ids: Sequence[int], suffix: AnswerSuffix, new: Sequence[int]
) -> dict[str, Tensor]:
    """The smallest change of every layer's W_v, by parameter name, with which the keys at the places `new` can be left
    out: it serves all answer queries and all heads that share a key-value head at once.

    Raises: ValueError as `traced` does.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = traced(model, [*token_ids, *suffix.token_ids], queries(len(token_ids), suffix)[:-1])
    patches = {}
    for module, layer in zip(attention_modules(model), layers, strict=True):
        written, read_HKD = _written(layer, new)
        groups = (layer.num_key_value_heads, -1)
        read_GKD, step_GKE = (t.flatten(0, 1).unflatten(0, groups) for t in (read_HKD, written.step_KE))
        patch_GDE = formulas.joint_value_patch(read_GKD, step_GKE)
        patches[names[id(module.v_proj.weight)]] = patch_GDE.mT.flatten(0, 1)
    return patches


def evenly(first: int, last: int, num: int) -> list[int]:
    """At most so many different whole numbers from first to last, both included, evenly spread."""
    if last < first:
        return []
    return [int(number) for number in np.unique(np.linspace(first, last, num).round())]
