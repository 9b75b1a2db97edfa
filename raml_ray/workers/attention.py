"""Attention over sequences packed into one row: each sequence attends to itself, causally, and nothing is computed for
pairs of tokens that do not see each other.

A dense block mask would cost the square of the whole row. Here the row is cut where its sequences begin, and runs of
sequences of one length, which lie side by side when the longest come first, are one call of torch's kernel.
"""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from raml_ray.settings import TrainConfig
from raml_ray.text.batches import Example, collate
from raml_ray.workers.attention_choice import Choice, choose
from raml_ray.workers.policy import token_logprobs

PACKED = "raml_packed"
"""The name of `packed` among transformers' attention functions."""
APART = "raml_apart"
"""The name of `_apart`: what flash-attn is to compute, but for what it adds to scores itself."""
LAYER_TYPES = {"full_attention", "sliding_attention"}
UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some architectures add to attention scores, and `packed` does not."""
CHECK_LENGTH, LONGEST_CHECK = 24, 64
"""Tokens of the longer sequence that `check` looks at; more, up to the second, where a sliding window is to be passed."""


def use(model: PreTrainedModel, settings: TrainConfig, device: torch.device, dtype: torch.dtype) -> Choice:
    """Give the model the attention that `train.attention` and `train.packing` ask for, where it trains on `device` in
    `dtype`, and say which it is; packed, it is checked where
    it is and as it is, unless that is the meta device.

    Raises: ValueError if flash-attn is asked for and cannot be had; as `use_packed` does.
    """
    chosen = choose(settings, device, dtype, model)
    if settings.packing:
        use_packed(model, by_flash=chosen.name == "flash_attention_2")
    else:
        model.set_attn_implementation(chosen.name)
    return chosen


def use_packed(model: PreTrainedModel, *, by_flash: bool = False) -> None:
    """Make the model take packed rows (and padded ones as before): by flash-attn, or by `packed`.

    Raises: ValueError if the model's layers mix tokens in ways that packed sequences cannot be kept apart in.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - LAYER_TYPES
    if model._is_stateful or not model._supports_attention_backend or kinds:
        raise ValueError(
            f"{model.config.model_type} policies ({', '.join(sorted(kinds)) or type(model).__name__}) do not keep packed"
            " sequences apart: set train.packing=false"
        )
    model.set_attn_implementation(APART if by_flash else PACKED)
    if model.device.type != "meta":
        check(model)
    if by_flash:
        model.set_attn_implementation("flash_attention_2")


def check(model: PreTrainedModel) -> None:
    """Compare the log-probabilities of two short random sequences packed with the same two padded; always the same two,
    without dropout, and without a trace in the model or torch's generators. Sliding windows are compared as such: the
    padded pass's masks tell theirs, however long.

    Raises: ValueError if they differ by more than 0.001 nats in float32 (rounding: 1e-6), or 0.5 in half precision (0.02
    in two layers, more in deep models: small leaks are seen in float32 only); or as the attention function does.
    """
    settings, is_training = model.config.get_text_config(), model.training
    longest = min((getattr(settings, "sliding_window", None) or 0) + 8, LONGEST_CHECK)
    longest = min(max(longest, CHECK_LENGTH), getattr(settings, "max_position_embeddings", LONGEST_CHECK))
    draw = torch.Generator().manual_seed(0)
    sizes = (longest // 2, longest)  # the longer one last: leaks come from what lies before
    ids = [torch.randint(settings.vocab_size, (size,), generator=draw).tolist() for size in sizes]
    sequences = [Example(ids_T[:1], ids_T[1:]) for ids_T in ids]
    with torch.no_grad(), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        model.eval()
        found = []
        for packing in (False, True):
            batch = collate(sequences, packing=packing).to(model.device)
            logprob_BT = token_logprobs(model, batch.input_ids_BT, batch.attention_mask_BT, batch.position_ids_BT)
            found.append(torch.cat(batch.split(logprob_BT)))
    model.train(is_training)
    most = 1e-3 if model.dtype.itemsize >= 4 else 0.5
    # Weights that are not finite are no fault of packing: the training loop names them.
    if not torch.allclose(found[1], found[0], rtol=0, atol=most, equal_nan=True):
        gap = float((found[1] - found[0]).abs().max())
        raise ValueError(
            f"{model.config.model_type} policies do not keep packed sequences apart: log-probabilities of packed and"
            f" padded sequences differ by {gap:.2g} nats, where {most:g} is allowed: set train.packing=false"
        )


def packed(
    module: nn.Module, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, *arguments: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """`_apart`, where it computes all of the architecture's attention.

    Raises: ValueError as `_apart` does, and if the architecture adds something to the scores.
    """
    if added := [name for name in UNKNOWN if kwargs.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} needs {', '.join(added)}: set train.packing=false")
    return _apart(module, query_BHTD, key_BHTD, value_BHTD, *arguments, **kwargs)


def _apart(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_lengths: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention's output, (B, T, H, D): with a mask torch's own; without one causal within each of the sequences, whose
    lengths add up to B * T.

    Raises: ValueError if there is neither mask nor lengths, or both, or the mask has a sliding window other than the one
    that packed sequences would be given.
    """
    # Not every architecture hands down the window that its mask would have.
    sliding_window = kwargs.pop("sliding_window", getattr(module, "sliding_window", None))
    if attention_mask is not None:
        if packed_lengths is not None:
            raise ValueError(
                f"{type(module).__name__} brings an attention mask of its own to packed sequences, which has no place in"
                " their attention: set train.packing=false"
            )
        masked_window = getattr(attention_mask, "sliding_window", sliding_window)
        if masked_window != sliding_window:
            raise ValueError(
                f"{type(module).__name__} asks for a sliding window of {sliding_window}, and its mask has"
                f" {masked_window}: set train.packing=false"
            )
        padded_BTHD: Tensor = sdpa_attention_forward(
            module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **kwargs
        )[0]
        return padded_BTHD, None
    if packed_lengths is None:
        raise ValueError(
            f"{type(module).__name__} was given neither an attention mask nor the lengths of packed sequences: if its"
            " model does not hand them down, set train.packing=false"
        )
    runs = [(length, len(list(same))) for length, same in groupby(packed_lengths)]
    sizes = [length * count for length, count in runs]
    # `split`, not slices: the backward pass of n slices fills n whole rows with zeros.
    parts = zip(runs, *(_tokens_first(t).split(sizes) for t in (query_BHTD, key_BHTD, value_BHTD)), strict=True)
    outputs = []
    for (length, count), *row in parts:
        query_SHTD, key_SHTD, value_SHTD = (t.view(count, length, *t.shape[1:]).transpose(1, 2) for t in row)
        window_TT = _window(length, sliding_window, query_SHTD.device)
        output_STHD, _ = sdpa_attention_forward(module, query_SHTD, key_SHTD, value_SHTD, window_TT, **kwargs)
        outputs.append(output_STHD.flatten(0, 1))
    batch_size, _, num_tokens, _ = query_BHTD.shape
    return torch.cat(outputs).unflatten(0, (batch_size, num_tokens)), None


def _tokens_first(states_BHTD: Tensor) -> Tensor:
    """(B * T, H, D); a view where B is 1, or memory is ordered so."""
    return states_BHTD.transpose(1, 2).flatten(0, 1)


def _window(length: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """The mask of a causal sliding window, (T, T); None where it leaves nothing out."""
    if sliding_window is None or length <= sliding_window:
        return None
    every_TT = torch.ones(length, length, dtype=torch.bool, device=device)
    return every_TT.tril().triu(1 - sliding_window)


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask that transformers builds for `packed`: none for packed rows, and for padded ones never none, but
    with the size of their sliding window."""
    if attention_mask is None:
        return None
    kwargs["allow_is_causal_skip"] = False
    mask_B1TT: Tensor = sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
    mask_B1TT.sliding_window = kwargs.get("local_size")  # type: ignore[attr-defined]
    return mask_B1TT


ALL_ATTENTION_FUNCTIONS.register(PACKED, packed)
ALL_ATTENTION_FUNCTIONS.register(APART, _apart)
for name in (PACKED, APART):
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, _mask)
