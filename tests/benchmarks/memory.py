"""The peak memory of a learner of one rank against its estimate (docs/memory.md).

    .venv/bin/python -m tests.benchmarks.memory --tokens 2048 --lora-rank 0

The peak is the process's, so every case is a process of its own.
"""

import argparse
import resource

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from raml_ray.config import Config, override
from raml_ray.formulas import architecture, memory
from raml_ray.stages import room
from raml_ray.text.batches import Example
from raml_ray.workers import sft_loop, sharding
from tests.workers import ranks

LENGTH, NUM_STEPS, PASSES = 512, 2, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help=f"of a pass, a multiple of {LENGTH}")
    parser.add_argument("--lora-rank", type=int, default=0)
    asked = parser.parse_args()
    settings = override(
        Config(), {"train.max_tokens_per_micro_batch": asked.tokens, "train.lora_rank": asked.lora_rank}
    )
    policy = Qwen2Config(
        vocab_size=16_000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    examples = [Example([1] * 8, list(range(LENGTH - 8)))] * (PASSES * asked.tokens // LENGTH)
    with ranks.alone():
        learner = sharding.wrap(Qwen2ForCausalLM(policy), settings.train)
        for _ in range(NUM_STEPS):
            sft_loop.accumulate(learner, examples, settings.sft, settings.train)
            learner.step(1e-4)
    made = architecture.of(policy.to_dict())
    assert made is not None
    estimated = memory.estimate(made, room.split_of(settings.train, made), asked.tokens, on_host=True)
    measured = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{asked.tokens} tokens, rank {asked.lora_rank}: estimated {estimated}, measured {measured / memory.GIB:.3g} GiB,"
        f" ratio {estimated.total / measured:.2f}; torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
