"""Greedy responses of a policy whose layers may be hooked into: an engine compiles its layers out of reach.

Not transformers' own `generate`, which puts whatever the policy's generation_config.json names (a repetition penalty) into
settings that leave it open.
"""

from collections.abc import Collection, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from raml_ray.workers.recurrent_forms import FORMS, context_of


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a response: the tokenizer's end of sequence and those of generation_config.json."""
    named = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return frozenset(int(token) for token in found if token is not None)


def check(model: PreTrainedModel) -> None:
    """Raises: ValueError if what the policy knows of its past is no cache of keys and values: it would be forgotten from
    token to token, in silence."""
    if model._is_stateful or model.config.model_type in FORMS:
        raise ValueError(
            f"{model.config.model_type} policies keep a state, which greedy decoding under hooks does not carry on:"
            " analyze.instrument=features needs a policy that attends (Llama, Mistral and Qwen do)"
        )


@torch.inference_mode()
def responses(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], stops: Collection[int], *, max_tokens: int
) -> list[list[int]]:
    """The likeliest token after token, of every prompt, up to and including one that stops it, at most `max_tokens`.

    Raises: ValueError if a prompt is empty or leaves no room for that in the policy's context; as `check`.
    """
    check(model)
    longest, context = max(map(len, prompts)), context_of(model.config)
    if min(map(len, prompts)) == 0:
        raise ValueError("a prompt is empty: there is nothing to go on from")
    if context is not None and longest + max_tokens > context:
        raise ValueError(
            f"a prompt of {longest} tokens and features.max_tokens={max_tokens} exceed the policy's context of {context}:"
            " lower features.max_tokens"
        )
    device = model.get_input_embeddings().weight.device
    # Padded on the left: the last column is every prompt's last token. Which token pads is all the same.
    ids_BT = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    stop_S, cache = torch.tensor(sorted(stops), device=device), DynamicCache(config=model.config)
    is_open_B = torch.ones(len(prompts), dtype=torch.bool, device=device)
    made: list[torch.Tensor] = []
    while len(made) < max_tokens and bool(is_open_B.any()):
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        next_B = output.logits[:, -1].argmax(-1)
        made.append(next_B)
        is_open_B &= ~torch.isin(next_B, stop_S)
        ids_BT, position_BT = next_B[:, None], position_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
    return [_until_stop(row, stops) for row in torch.stack(made, dim=1).tolist()]


def _until_stop(token_ids: list[int], stops: Collection[int]) -> list[int]:
    last = next((place for place, token in enumerate(token_ids) if token in stops), len(token_ids) - 1)
    return token_ids[: last + 1]
