"""L-hat of every prefix of a trajectory at once: the trajectory is read once, the answer branches off at every position.

The branches of many positions lie packed in one row. A branch sees the cached tokens of its own prefix and itself, so
the values are those of one forward pass per prefix, at the price of T + K * A tokens instead of T * T / 2.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from raml_ray.formulas.lhat import lhat
from raml_ray.text.suffix import AnswerSuffix

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures (config.model_type) whose every layer attends to all that the mask allows, at the positions it is given."""


def answer_nll(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    first_position: int,
    suffix: AnswerSuffix,
    positions_per_chunk: int = 64,
) -> np.ndarray:
    """L-hat after each of the prefixes token_ids[:first_position], .., token_ids[:T], (K,), nats per answer token.

    K = T - first_position + 1: with the prompt's length as the first position, prefixes with 0 tokens of the trajectory
    up to all of it. The suffix's own tokens are not averaged.

    Raises: ValueError as `answer_logprobs`.

    Source: RaML, arXiv:2505.19815, Algorithm 3.
    """
    logprob_KA = answer_logprobs(
        model, token_ids, first_position=first_position, suffix=suffix, positions_per_chunk=positions_per_chunk
    )
    return lhat(logprob_KA).numpy()


@torch.inference_mode()
def answer_logprobs(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    first_position: int,
    suffix: AnswerSuffix,
    positions_per_chunk: int = 64,
) -> Tensor:
    """Log-probabilities of the answer's tokens after each prefix, float32, (K, A), on the host.

    Raises: ValueError if the architecture is not supported, the first position is not one of 1 .. T, or prefix and
    suffix together are longer than the policy's context.
    """
    _check(model, len(token_ids), first_position, suffix, positions_per_chunk)
    model.eval()
    device = model.get_input_embeddings().weight.device
    ids_T = torch.tensor(token_ids, device=device)
    suffix_S = torch.tensor(suffix.token_ids, device=device)
    answer_A = torch.tensor(suffix.is_answer, device=device).nonzero()[:, 0]
    cache = DynamicCache(config=model.config)
    if len(token_ids) > 1:  # the last token of a prefix belongs to its branch
        model(input_ids=ids_T[None, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    length_K = torch.arange(first_position, len(token_ids) + 1, device=device)
    return torch.cat(
        [
            _branches(model, cache, ids_T, part, suffix_S, answer_A)
            for part in torch.split(length_K, positions_per_chunk)
        ]
    )


def _branches(
    model: PreTrainedModel, cache: DynamicCache, ids_T: Tensor, length_K: Tensor, suffix_S: Tensor, answer_A: Tensor
) -> Tensor:
    """Log-probabilities (K, A) for the prefixes of these lengths; leaves the cache as it was.

    A branch is the prefix's last token and the suffix but its last one, S tokens: their logits are the suffix's.
    """
    num_branches, size, num_cached = len(length_K), len(suffix_S), len(ids_T) - 1
    branch_KS = torch.cat([ids_T[length_K - 1, None], suffix_S[:-1].expand(num_branches, -1)], dim=1)
    position_KS = length_K[:, None] - 1 + torch.arange(size, device=length_K.device)
    keep_KA = torch.arange(num_branches, device=length_K.device)[:, None] * size + answer_A
    logits: Tensor = model(
        input_ids=branch_KS.view(1, -1),
        position_ids=position_KS.view(1, -1),
        attention_mask=_mask(length_K, size, num_cached, model.dtype),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep_KA.flatten(),
    ).logits[0]
    cache.crop(-num_branches * size)  # a negative count is the number of tokens to remove
    logprob = logits.float().log_softmax(-1).gather(1, suffix_S[answer_A].repeat(num_branches)[:, None])
    return logprob.view(num_branches, -1).cpu()


def _mask(length_K: Tensor, size: int, num_cached: int, dtype: torch.dtype) -> Tensor:
    """Additive attention mask (1, 1, K * S, cached + K * S): a branch sees its prefix but the last token, and itself."""
    branch = torch.arange(len(length_K), device=length_K.device).repeat_interleave(size)
    step = torch.arange(size, device=length_K.device).repeat(len(length_K))
    sees_cached = torch.arange(num_cached, device=length_K.device) < (length_K[branch] - 1)[:, None]
    sees_branch = (branch[:, None] == branch) & (step[:, None] >= step)
    hidden = ~torch.cat([sees_cached, sees_branch], dim=1)
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, torch.finfo(dtype).min)[
        None, None
    ]


def _check(model: PreTrainedModel, length: int, first_position: int, suffix: AnswerSuffix, chunk: int) -> None:
    config = model.config
    if config.model_type not in SUPPORTED:
        raise ValueError(f"{config.model_type} policies cannot be probed: known are {', '.join(SUPPORTED)}")
    settings = config.to_dict()
    kinds = set(settings.get("layer_types") or ()) - {"full_attention"}
    if kinds or (config.model_type == "mistral" and settings.get("sliding_window")):
        raise ValueError(
            f"{config.model_type} with {', '.join(sorted(kinds)) or 'sliding_attention'} layers cannot be probed:"
            " a branch must attend to its whole prefix"
        )
    rope = (settings.get("rope_parameters") or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise ValueError(
            f"{config.model_type} with {rope} RoPE cannot be probed: its angles depend on the row's length"
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} takes no block mask: load the policy with 'sdpa'"
        )
    if not 1 <= first_position <= length:
        raise ValueError(f"first_position={first_position} must lie in 1 .. {length}, the number of tokens")
    if not any(suffix.is_answer) or len(suffix.is_answer) != len(suffix.token_ids):
        raise ValueError(f"a suffix needs a mark per token and at least one answer token, got {suffix}")
    if chunk < 1:
        raise ValueError(f"analyze.positions_per_chunk={chunk} must be at least 1")
    if length + len(suffix.token_ids) > config.max_position_embeddings:
        raise ValueError(
            f"{length} tokens and a suffix of {len(suffix.token_ids)} exceed the policy's context of"
            f" {config.max_position_embeddings}"
        )
