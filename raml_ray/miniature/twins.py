"""Twins of the miniature's policy whose attention keeps a state: linear attention, and the delta rule.

Of the same shape, trained on the same documents by the same recipe; only what stands in softmax's place is another. With row
vectors a head's state S, (D, E), is read as q S, and a token writes k^T u into it: u = v for linear attention (Katharopoulos
et al. 2020), u = beta (v - k S) for the delta rule, a step of SGD on |k S - v|^2 / 2 (Schlag et al. 2021, Yang et al. 2024). What a
token does to its head is therefore one change of weights, the same for every query.

Computed for all tokens at once: quadratic in their number, as softmax attention is, and exact.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, apply_rotary_pos_emb

from raml_ray.miniature import TWIN
from raml_ray.miniature.twin_config import TwinConfig


@dataclass(frozen=True, slots=True)
class Written:
    """What a layer did with the tokens of one call, G states for H query heads."""

    query_BHTD: Tensor
    key_BGTD: Tensor
    value_BGTE: Tensor
    beta_BGT: Tensor | None
    """The delta rule's rate, in (0, 1)."""
    output_BHTE: Tensor
    """q S, before its norm."""


@dataclass(slots=True)
class Memory:
    """States of the layers, (B, G, D, E), that a call starts from; it leaves those after its tokens. Empty: from nothing."""

    states: dict[int, Tensor] = field(default_factory=dict)
    written: dict[int, Written] = field(default_factory=dict)


class StateAttention(nn.Module):
    """Projections as Qwen2's, a state in softmax's place, and a norm of each head's output, since nothing else bounds it."""

    def __init__(self, config: TwinConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        hidden, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head_dim = hidden // heads
        self.num_key_value_groups = heads // groups
        self.q_proj = nn.Linear(hidden, heads * self.head_dim)
        self.k_proj = nn.Linear(hidden, groups * self.head_dim)
        self.v_proj = nn.Linear(hidden, groups * self.head_dim)
        self.o_proj = nn.Linear(heads * self.head_dim, hidden, bias=False)
        self.out_norm = Qwen2RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.beta_proj = nn.Linear(hidden, groups) if config.twin_attention == "delta" else None

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: object = None,
        memory: Memory | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if past_key_values is not None or self.config._attn_implementation != "sdpa":
            raise ValueError(
                f"a {TWIN} policy keeps no keys and has one way to compute: use_cache=False and"
                " attn_implementation='sdpa'; it can be measured by analyze, not sampled or trained further"
            )
        B, T, _ = hidden_states.shape
        query_BHTD, key_BGTD, value_BGTE = (
            projection(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query_BHTD, key_BGTD = apply_rotary_pos_emb(query_BHTD, key_BGTD, *position_embeddings)
        beta_BGT = None
        if self.beta_proj is not None:
            query_BHTD, key_BGTD = (nn.functional.normalize(part, dim=-1) for part in (query_BHTD, key_BGTD))
            beta_BGT = self.beta_proj(hidden_states).sigmoid().transpose(1, 2)
        seen_B1TT = _seen(attention_mask, hidden_states)
        start_BGDE = None if memory is None else memory.states.get(self.layer_idx)
        if start_BGDE is not None and attention_mask is not None:
            raise ValueError("what follows a state is read by all of its tokens: no attention mask")
        write_BGTE = written_values(key_BGTD, value_BGTE, beta_BGT, seen_B1TT, start_BGDE)
        output_BHTE = self._read(query_BHTD, key_BGTD, write_BGTE, seen_B1TT, start_BGDE)
        if memory is not None:
            added_BGDE = key_BGTD.mT @ write_BGTE
            memory.states[self.layer_idx] = added_BGDE if start_BGDE is None else start_BGDE + added_BGDE
            memory.written[self.layer_idx] = Written(query_BHTD, key_BGTD, value_BGTE, beta_BGT, output_BHTE)
        return self.o_proj(self.out_norm(output_BHTE).transpose(1, 2).reshape(B, T, -1)), None

    def _read(
        self, query_BHTD: Tensor, key_BGTD: Tensor, write_BGTE: Tensor, seen_B1TT: Tensor, start_BGDE: Tensor | None
    ) -> Tensor:
        key_BHTD, write_BHTE = (part.repeat_interleave(self.num_key_value_groups, 1) for part in (key_BGTD, write_BGTE))
        output_BHTE = (query_BHTD @ key_BHTD.mT * seen_B1TT) @ write_BHTE
        if start_BGDE is not None:
            output_BHTE = output_BHTE + query_BHTD @ start_BGDE.repeat_interleave(self.num_key_value_groups, 1)
        return output_BHTE


def written_values(
    key_BGTD: Tensor, value_BGTE: Tensor, beta_BGT: Tensor | None, seen_B1TT: Tensor, start_BGDE: Tensor | None
) -> Tensor:
    """u of every token, (B, G, T, E), such that the state after it is the one before plus k^T u.

    By the delta rule u_t = beta_t (v_t - k_t S), S holding what the tokens before t wrote: one triangular system for all.
    """
    if beta_BGT is None:
        return value_BGTE
    wanted_BGTE = value_BGTE if start_BGDE is None else value_BGTE - key_BGTD @ start_BGDE
    before_B1TT = seen_B1TT.tril(-1)
    system_BGTT = beta_BGT[..., None] * (key_BGTD @ key_BGTD.mT) * before_B1TT
    system_BGTT = system_BGTT + torch.eye(key_BGTD.shape[-2], device=key_BGTD.device)
    found: Tensor = torch.linalg.solve_triangular(system_BGTT, beta_BGT[..., None] * wanted_BGTE, upper=False)
    return found


def _seen(attention_mask: Tensor | None, hidden_BTH: Tensor) -> Tensor:
    """1 where a query (row) sees a token, (B or 1, 1, T, T)."""
    if attention_mask is None:
        num_tokens = hidden_BTH.shape[1]
        return torch.ones(1, 1, num_tokens, num_tokens, dtype=hidden_BTH.dtype, device=hidden_BTH.device).tril()
    seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    return seen.to(hidden_BTH.dtype)


class TwinForCausalLM(Qwen2ForCausalLM):
    """Qwen2 with StateAttention in every layer."""

    config_class = TwinConfig
    config: TwinConfig
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False

    def __init__(self, config: TwinConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = StateAttention(config, index)
        self.post_init()
