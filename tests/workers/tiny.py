"""A two-layer random Qwen2 with tied embeddings, and examples for it."""

import random
from collections.abc import Iterator, Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from raml_ray.text.batches import Example
from raml_ray.workers.sft_plan import Plan, share

VOCABULARY = 50


def model(seed: int = 0, *, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            attn_implementation="sdpa",
        )
    )


def served(*, vocab_size: int, max_position_embeddings: int, seed: int) -> PreTrainedModel:
    """A two-layer random Llama whose heads have a size that vLLM computes on CPU."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=max_position_embeddings,
            initializer_range=0.1,
        )
    ).eval()


def examples(count: int, seed: int = 1) -> list[Example]:
    source = random.Random(seed)

    def ids(longest: int) -> list[int]:
        return [source.randrange(VOCABULARY) for _ in range(source.randint(1, longest))]

    return [Example(ids(6), ids(14)) for _ in range(count)]


def shares(
    plan: Plan, examples: Sequence[Example], start_step: int, rank: int, world_size: int
) -> Iterator[list[Example]]:
    """A rank's examples of each step, from memory."""
    for step in range(start_step, plan.num_steps):
        yield share([examples[index] for index in plan.indices(step)], rank, world_size)
