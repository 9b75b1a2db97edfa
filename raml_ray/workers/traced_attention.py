"""What every attention layer of a policy saw and gave for chosen queries, with the softmax computed once more in float32.

The policy computes as always; an attention function of our own beside torch's writes down queries, keys and values
after rotary embeddings, and whatever else an architecture does to them, so that nothing is rebuilt from its parts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TRACED = "raml_traced"
"""The name of `_traced` among transformers' attention functions."""
TOLERANCE = 1e-5
"""Largest difference of the layer's output and the one computed here, relative to its largest entry."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's attention for K queries of one sequence, float32."""

    logit_HKT: Tensor
    """Scaled; -inf at keys that the query does not see."""
    value_HTE: Tensor
    """Each key-value head repeated for the query heads that share it."""
    output_HKE: Tensor
    """As the model computed it, before the output projection."""
    input_TD: Tensor
    """What W_v multiplies."""
    value_weight_HDE: Tensor
    """W_v of each query head's key-value head, for row vectors."""
    value_bias_HE: Tensor
    num_key_value_heads: int


@dataclass(slots=True)
class _Tape:
    queries: Sequence[int]
    inputs: dict[int, Tensor] = field(default_factory=dict)
    layers: dict[int, Layer] = field(default_factory=dict)


def attention_modules(model: PreTrainedModel) -> list[Any]:
    """The attention layers, in their order.

    Raises: ValueError if the architecture's layers do not have a W_v of their own.
    """
    found: list[Any] = [
        module for module in model.modules() if hasattr(module, "v_proj") and hasattr(module, "layer_idx")
    ]
    if len(found) != model.config.get_text_config().num_hidden_layers or not model._supports_attention_backend:
        raise ValueError(
            f"{model.config.model_type} policies cannot be traced: each layer must attend through one module with a"
            " v_proj (Llama, Mistral and Qwen do); landscape.planes=random needs no trace"
        )
    return sorted(found, key=lambda module: int(module.layer_idx))


def traced(model: PreTrainedModel, token_ids: Sequence[int], queries: Sequence[int]) -> list[Layer]:
    """What each layer's attention did for the tokens at these places, first layer first; no gradients.

    Raises: ValueError if the architecture is unknown, or what is computed here is not what the layer gave.
    """
    tape = _Tape(list(queries))
    input_ids = torch.tensor([list(token_ids)], device=model.get_input_embeddings().weight.device)
    with _taped(model, tape), torch.no_grad():
        model.base_model(input_ids=input_ids, use_cache=False, raml_tape=tape)
    layers = [tape.layers[int(module.layer_idx)] for module in attention_modules(model)]
    for index, layer in enumerate(layers):
        computed = layer.logit_HKT.softmax(-1) @ layer.value_HTE
        gap = float((computed - layer.output_HKE).abs().max() / layer.output_HKE.abs().max())
        if not gap <= TOLERANCE:
            raise ValueError(
                f"layer {index} of this {model.config.model_type} policy attends in another way than softmax(q k) v:"
                f" outputs differ by {gap:.1e} of the largest, where {TOLERANCE:g} is allowed (in float32)"
            )
    return layers


@contextmanager
def _taped(model: PreTrainedModel, tape: _Tape) -> Iterator[None]:
    before = model.config._attn_implementation
    hooks = []
    for module in attention_modules(model):
        layer = int(module.layer_idx)

        def keep(_: nn.Module, arguments: tuple[Tensor, ...], layer: int = layer) -> None:
            tape.inputs[layer] = arguments[0][0].float()

        hooks.append(module.v_proj.register_forward_pre_hook(keep))
    model.set_attn_implementation(TRACED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


def _traced(
    module: Any,
    query_BHTE: Tensor,
    key_BGTE: Tensor,
    value_BGTE: Tensor,
    attention_mask: Tensor | None,
    *,
    raml_tape: _Tape,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    output_BTHE, _ = sdpa_attention_forward(
        module, query_BHTE, key_BGTE, value_BGTE, attention_mask, scaling=scaling, **kwargs
    )
    num_heads, num_groups, size = query_BHTE.shape[1], key_BGTE.shape[1], value_BGTE.shape[-1]
    shared = num_heads // num_groups
    key_HTE, value_HTE = (t[0].float().repeat_interleave(shared, dim=0) for t in (key_BGTE, value_BGTE))
    at_K = torch.tensor(raml_tape.queries, device=query_BHTE.device)
    logit_HKT = query_BHTE[0, :, at_K].float() @ key_HTE.mT * scaling
    unseen_KT = torch.arange(key_HTE.shape[1], device=at_K.device) > at_K[:, None]
    if attention_mask is not None:
        mask_KT = attention_mask[0, 0, at_K]
        unseen_KT = ~mask_KT if mask_KT.dtype == torch.bool else mask_KT < 0
    layer, projection = int(module.layer_idx), module.v_proj
    weight_HDE = projection.weight.detach().float().unflatten(0, (num_groups, size)).mT
    bias = projection.bias
    bias_GE = (
        torch.zeros(num_groups, size, device=at_K.device) if bias is None else bias.detach().float().view(-1, size)
    )
    raml_tape.layers[layer] = Layer(
        logit_HKT=logit_HKT.masked_fill(unseen_KT, -torch.inf),
        value_HTE=value_HTE,
        output_HKE=output_BTHE[0, at_K].float().transpose(0, 1),
        input_TD=raml_tape.inputs[layer],
        value_weight_HDE=weight_HDE.repeat_interleave(shared, dim=0),
        value_bias_HE=bias_GE.repeat_interleave(shared, dim=0),
        num_key_value_heads=num_groups,
    )
    return output_BTHE, None


ALL_ATTENTION_FUNCTIONS.register(TRACED, _traced)
ALL_MASK_ATTENTION_FUNCTIONS.register(TRACED, sdpa_mask)
