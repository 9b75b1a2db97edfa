"""What packing gains on GSM8K's lengths: one forward and backward pass of the same examples, padded, bucketed, packed.

    python -m tests.benchmarks.packing [--data PATH] [--rounds 5] [--json FILE]

Each round draws a batch and takes the three ways in turn, the first of them another one each time. All three keep to one
token budget per pass and must find one loss. `padded` fills its micro-batches in the drawn order, `bucketed` is
train.packing=false, `packed` is train.packing=true. Prints Markdown; ends with 1 below the bar.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from raml_ray.formulas import losses
from raml_ray.settings import BaseConfig, PromptConfig
from raml_ray.text.batches import Example, collate, encode, micro_batches
from raml_ray.workers import attention, fresh, policy

DATA = Path(__file__).parents[1] / "data" / "gsm8k" / "train.jsonl"
BASE = BaseConfig(
    kind="random", hidden_size=512, num_layers=13, num_heads=8, num_kv_heads=2, intermediate_size=2048, vocab_size=512
)
"""50 million parameters."""
WAYS = ("padded", "bucketed", "packed")
BAR = 0.85
"""Of the speed-up over `padded` that the lengths allow."""


class Pass(NamedTuple):
    """One way's forward and backward pass of a batch."""

    seconds: float
    cpu_seconds: float
    """Of all threads: what is left of the comparison on a machine that others use too."""
    loss: float
    columns: int
    """Tokens that the model computed, padding included."""


class Round(NamedTuple):
    """A batch taken in every way."""

    num_tokens: int
    passes: dict[str, Pass]

    def speed_up(self, way: str) -> float:
        return self.passes["padded"].seconds / self.passes[way].seconds

    def cpu_speed_up(self, way: str) -> float:
        return self.passes["padded"].cpu_seconds / self.passes[way].cpu_seconds

    def ideal(self, way: str) -> float:
        """The speed-up over `padded` if every column cost the same."""
        return self.passes["padded"].columns / self.passes[way].columns


def prepared(path: Path, seed: int) -> tuple[PreTrainedModel, list[Example]]:
    """A policy of random weights and the file's examples in its tokens, which are trained on the same text."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer = fresh.tokenizer([f"{row['question']}\n{row['answer']}" for row in rows], BASE.vocab_size)
    prompt = PromptConfig(template="plain", instruction="{problem}\n")
    every = [encode(tokenizer, row["question"], row["answer"], prompt) for row in rows]
    return fresh.model(BASE, tokenizer, seed=seed), every


def as_drawn(batch: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Groups in the order of the batch, rows x longest within the budget."""
    groups: list[list[Example]] = []
    for example in batch:
        group = [*groups[-1], example] if groups else []
        if group and len(group) * max(len(one) for one in group) <= max_tokens:
            groups[-1] = group
        else:
            groups.append([example])
    return groups


def taken(way: str, model: PreTrainedModel, batch: Sequence[Example], max_tokens: int) -> Pass:
    packing = way == "packed"
    if packing:
        attention.use_packed(model)
    else:
        model.set_attn_implementation("sdpa")
    model.zero_grad(set_to_none=True)
    total, columns, began, began_cpu = 0.0, 0, time.perf_counter(), time.process_time()
    groups = as_drawn(batch, max_tokens) if way == "padded" else micro_batches(batch, max_tokens, packing=packing)
    count = sum(len(example.response_token_ids) for example in batch)
    for group in groups:
        made = collate(group, packing=packing)
        logprob_BT = policy.token_logprobs(
            model,
            made.input_ids_BT,
            made.attention_mask_BT,
            made.position_ids_BT,
            needed_BT=made.response_mask_BT,
        )
        part = losses.cross_entropy(logprob_BT, made.response_mask_BT).total / count
        part.backward()
        total += float(part.detach())
        columns += made.input_ids_BT.numel()
    return Pass(time.perf_counter() - began, time.process_time() - began_cpu, total, columns)


def measured(
    model: PreTrainedModel, every: Sequence[Example], batch_size: int, max_tokens: int, num_rounds: int, seed: int
) -> list[Round]:
    draw = random.Random(seed)
    for way in WAYS:
        taken(way, model, every[:2], max_tokens)  # first calls allocate
    rounds = []
    for number in range(num_rounds):
        batch = draw.sample(list(every), batch_size)
        ways = [WAYS[(number + place) % len(WAYS)] for place in range(len(WAYS))]
        passes = {way: taken(way, model, batch, max_tokens) for way in ways}
        apart = max(one.loss for one in passes.values()) - min(one.loss for one in passes.values())
        if apart > 1e-5:
            raise SystemExit(f"the ways' losses are {apart:.2g} apart: {passes}")
        rounds.append(Round(sum(len(example) for example in batch), passes))
    return rounds


def summary(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Of each way medians over the rounds; a ratio is taken within its round."""
    return {
        way: {
            "tokens_per_s": statistics.median(one.num_tokens / one.passes[way].seconds for one in rounds),
            "padding": statistics.median(1 - one.num_tokens / one.passes[way].columns for one in rounds),
            "speed_up": statistics.median(one.speed_up(way) for one in rounds),
            "cpu_speed_up": statistics.median(one.cpu_speed_up(way) for one in rounds),
            "ideal": statistics.median(one.ideal(way) for one in rounds),
            "of_ideal": statistics.median(one.speed_up(way) / one.ideal(way) for one in rounds),
        }
        for way in WAYS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="JSON lines with question and answer")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=4096, help="train.max_tokens_per_micro_batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all rounds there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, every = prepared(given.data, given.seed)
    lengths = sorted(len(example) for example in every)
    print(f"{len(every)} examples of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}\n")
    rounds = measured(model, every, given.batch_size, given.max_tokens, given.rounds, given.seed)
    found = summary(rounds)
    print(
        "| way | tokens/s | padding | speed-up | in CPU time | ideal | of ideal |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for way, row in found.items():
        print(
            f"| {way} | {row['tokens_per_s']:.0f} | {row['padding']:.1%} | {row['speed_up']:.2f} | {row['cpu_speed_up']:.2f}"
            f" | {row['ideal']:.2f} | {row['of_ideal']:.2f} |"
        )
    if given.json:
        settings = {name: str(value) for name, value in vars(given).items()}
        passes = [{way: one._asdict() for way, one in each.passes.items()} for each in rounds]
        given.json.write_text(json.dumps({"settings": settings, "summary": found, "rounds": passes}, indent=2) + "\n")
    if found["packed"]["of_ideal"] < BAR:
        raise SystemExit(f"packed is at {found['packed']['of_ideal']:.2f} of the ideal speed-up: the bar is {BAR}")


if __name__ == "__main__":
    main()
