"""Policies whose past is a state of fixed size, one token at a time: the state as plain tensors, sequences along their first
axis, so that states can be kept, picked and put together.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from raml_ray.miniature import TWIN

if TYPE_CHECKING:  # who only loads a tokenizer does without their imports
    from transformers import PretrainedConfig, PreTrainedModel

State = Sequence[Tensor]
"""Of B sequences, each tensor (B, ..)."""


class Form(Protocol):
    """A policy as a recurrence."""

    def start(self, num_rows: int) -> State:
        """The state of so many sequences that have read nothing."""

    def step(self, id_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Hidden states (B, H) that decode the next token, and the state, after one token more. The state that is given may
        be written over."""


def picked(state: State, row_N: Tensor) -> State:
    """Copies of these rows."""
    return [part.index_select(0, row_N) for part in state]


def joined(states: Sequence[State]) -> State:
    """The rows of all of them."""
    return [torch.cat(parts) for parts in zip(*states, strict=True)]


def num_bytes(state: State) -> int:
    """Of one row."""
    return sum(part[0].numel() * part.element_size() for part in state)


class _Mamba:
    """State-space models of transformers: in every layer the last inputs of its convolution, and the state itself.

    Of several tokens at once they forget the state that they are given (transformers 5.19): one token at a time they do not.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        first = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
        self._cache = model.base_model(input_ids=first, use_cache=True).cache_params

    def start(self, num_rows: int) -> State:
        parts = [part for layer in self._cache.layers for part in (layer.conv_states[0], layer.recurrent_states[0])]
        return [torch.zeros_like(part).repeat_interleave(num_rows, dim=0) for part in parts]

    def step(self, id_B: Tensor, state: State) -> tuple[Tensor, State]:
        cache, parts = copy.copy(self._cache), iter(state)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in cache.layers:
            layer.conv_states, layer.recurrent_states = {0: next(parts)}, {0: next(parts)}
        hidden_B1H = self._model.base_model(
            input_ids=id_B[:, None], cache_params=cache, use_cache=True
        ).last_hidden_state
        found = [part for layer in cache.layers for part in (layer.conv_states[0], layer.recurrent_states[0])]
        return hidden_B1H[:, 0], found


class _Rwkv:
    """RWKV: five tensors (B, H, layers), the last of them a maximum."""

    LOWEST = -1e30

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model

    def start(self, num_rows: int) -> State:
        config, weight = self._model.config, self._model.get_input_embeddings().weight
        width = (config.hidden_size, config.hidden_size, *[config.attention_hidden_size or config.hidden_size] * 3)
        return [
            torch.full(
                (num_rows, width[index], config.num_hidden_layers),
                self.LOWEST if index == 4 else 0.0,
                dtype=weight.dtype if index <= 1 else torch.float32,
                device=weight.device,
            )
            for index in range(5)
        ]

    def step(self, id_B: Tensor, state: State) -> tuple[Tensor, State]:
        last = [_Last(part) for part in state[:2]]
        hidden_B1H = self._model.base_model(
            input_ids=id_B[:, None], state=[*last, *state[2:]], use_cache=True
        ).last_hidden_state
        return hidden_B1H[:, 0], state


class _Last:
    """What a layer saw last, as (B, 1, H): RWKV's own (B, H) is added to (B, 1, H), which mixes the sequences of a batch
    (transformers 5.19, one token at a time)."""

    def __init__(self, part_BHL: Tensor) -> None:
        self._part_BHL = part_BHL

    def __getitem__(self, key: tuple[slice, slice, int]) -> Tensor:
        return self._part_BHL[key].unsqueeze(1)

    def __setitem__(self, key: tuple[slice, slice, int], value_BH: Tensor) -> None:
        self._part_BHL[key] = value_BH


class _Twin:
    """The miniature's twins: of every layer a state (B, G, D, E), and how many tokens were read, (B, 1)."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model

    def start(self, num_rows: int) -> State:
        config, weight = self._model.config, self._model.get_input_embeddings().weight
        head_size = config.hidden_size // config.num_attention_heads
        size = (num_rows, config.num_key_value_heads, head_size, head_size)
        states = [torch.zeros(size, dtype=weight.dtype, device=weight.device) for _ in range(config.num_hidden_layers)]
        return [*states, torch.zeros(num_rows, 1, dtype=torch.long, device=weight.device)]

    def step(self, id_B: Tensor, state: State) -> tuple[Tensor, State]:
        from raml_ray.miniature.twins import Memory

        *states, position_B1 = state
        memory = Memory(dict(enumerate(states)))
        hidden_B1H = self._model.base_model(
            input_ids=id_B[:, None], position_ids=position_B1, use_cache=False, memory=memory
        ).last_hidden_state
        return hidden_B1H[:, 0], [*(memory.states[index] for index in range(len(states))), position_B1 + 1]


FORMS: "dict[str, Callable[[PreTrainedModel], Form]]" = {
    "falcon_mamba": _Mamba,
    "mamba": _Mamba,
    "mamba2": _Mamba,
    TWIN: _Twin,
    "rwkv": _Rwkv,
}
"""By architecture (config.model_type)."""


def attention_of(config: "PretrainedConfig") -> dict[str, Any]:
    """What transformers is told of a policy's attention as it loads one; the miniature's twins are made known to it."""
    if config.model_type == TWIN:
        from transformers import AutoModelForCausalLM

        from raml_ray.miniature.twin_config import TwinConfig
        from raml_ray.miniature.twins import TwinForCausalLM

        AutoModelForCausalLM.register(TwinConfig, TwinForCausalLM, exist_ok=True)
    return {} if config.model_type in FORMS else {"attn_implementation": "sdpa"}


def context_of(config: "PretrainedConfig") -> int | None:
    """Tokens that prompt and response may have together; None where the architecture names no such number, as many whose
    past is a state do not."""
    found = getattr(config, "max_position_embeddings", None)
    return None if found is None else int(found)


def keep_weights(config: "PretrainedConfig") -> None:
    """RWKV of transformers 5.19 halves weights in place at its first forward pass, every `rescale_every` layers, for the
    range of float16: weights that stand in for them (a landscape's) would be those of another policy. Without it RWKV
    computes what it was trained to; halved, its norms' epsilons weigh more."""
    if config.model_type == "rwkv":
        config.rescale_every = 0
