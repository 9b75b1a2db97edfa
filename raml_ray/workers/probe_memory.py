"""How many tokens a pass of the probe may hold, from the policy's sizes and a memory budget."""

from typing import NamedTuple

from transformers import PretrainedConfig

MIB = 2**20


class Costs(NamedTuple):
    """Bytes that a pass holds beside the weights, at its peak: in some layer, or behind the output head."""

    per_key: int
    """Keys and values of every layer, and one layer's again: as they were before this pass's were put behind them, and
    repeated for the heads that share them."""
    per_token: int
    """Hidden states of one layer, attention's and the MLP's."""
    per_pair: int
    """Of a token and a key: the mask, while it is made; with eager attention the scores too."""
    per_logits: int
    """The vocabulary's logits at one place, as they come, as float32 where they are not, and once more for their sum."""

    def bytes(self, num_tokens: int, num_cached: int, num_logits: int, num_own: int | None = None) -> int:
        """With a mask over the cached tokens and those of the pass, or, of the latter, over `num_own`."""
        pairs = num_tokens * (num_cached + (num_tokens if num_own is None else num_own))
        layer = self.per_token * num_tokens + self.per_pair * pairs
        return self.per_key * (num_cached + num_tokens) + max(layer, self.per_logits * num_logits)


def costs(config: PretrainedConfig, itemsize: int, *, num_masks: int, is_eager: bool) -> Costs:
    """Of the architecture with numbers of `itemsize` bytes and so many masks; block masks count as one byte a pair, which
    making them takes."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or hidden // heads
    # Four times the hidden size is what configs mean that say nothing (GPT-2's). Of experts a token passes several.
    expert = (getattr(config, "num_experts_per_tok", None) or 1) * (getattr(config, "moe_intermediate_size", None) or 0)
    wide = max(getattr(config, "intermediate_size", None) or 4 * hidden, expert)
    state = 2 * head_size * itemsize
    return Costs(
        per_key=state * (config.num_hidden_layers * kv_heads + kv_heads + heads),
        per_token=itemsize * (6 * hidden + 2 * heads * head_size + 3 * wide),
        per_pair=num_masks * itemsize + 8 + (heads * (itemsize + 8) if is_eager else 0),
        per_logits=config.vocab_size * (itemsize + (4 if itemsize == 4 else 8)),
    )
