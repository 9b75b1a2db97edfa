"""What the tree probe gains over the released notebook's way: L-hat at every token of the same trajectories, by the same policy.

    python -m tests.benchmarks.probe [--tokens 128 512 2048] [--rounds 3] [--policy PATH] [--json FILE]

`requests` is one vLLM request per prefix with prompt_logprobs, all handed over at once; `tree` is `workers.probe`. Both are
given the same random tokens and must find the same L-hat. Rounds take the ways in turn, each of them first in every other
round; the engine's start and one short trajectory each way are not measured. Of the medians it prints ratios, what four times
the tokens cost, and the exponent of time over tokens by a fit of their logarithms. Without --policy one of random weights is
made. Prints Markdown.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from raml_ray.settings import EngineConfig
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers import policy, prefix_requests, probe
from raml_ray.workers.engine import Engine
from raml_ray.workers.probe_text import Probe

WAYS = ("requests", "tree")
HEADER, ANSWER = 9, 3
"""Tokens of the suffix and of the answer: the paper's, and a number of three digits."""
APART = 2e-4
"""Nats that the ways may differ by in float32 over thousands of tokens."""


def made(folder: Path, longest: int) -> str:
    """A policy of 3 million random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=longest,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def lhat(way: str, model: PreTrainedModel, engine: Engine, token_ids: list[int], memory_mib: float) -> np.ndarray:
    lengths = range(1, len(token_ids) - HEADER - ANSWER + 1)
    suffix = AnswerSuffix(token_ids[-HEADER - ANSWER :], [False] * HEADER + [True] * ANSWER)
    trajectory = token_ids[: -HEADER - ANSWER]
    if way == "requests":
        return prefix_requests.answer_nll(engine, trajectory, lengths, suffix)
    ((found,),) = probe.answer_nll(model, [Probe(trajectory, lengths, [suffix])], memory_mib=memory_mib)
    return found


def measured(
    model: PreTrainedModel, engine: Engine, sizes: Sequence[int], num_rounds: int, memory_mib: float
) -> dict[str, dict[int, list[float]]]:
    """Way -> tokens of the trajectory -> seconds of each round."""
    draw = random.Random(0)
    seconds: dict[str, dict[int, list[float]]] = {way: {size: [] for size in sizes} for way in WAYS}
    texts = {
        size: [draw.randrange(model.config.vocab_size) for _ in range(size + HEADER + ANSWER)] for size in (16, *sizes)
    }
    for way in WAYS:
        lhat(way, model, engine, texts[16], memory_mib)  # first calls allocate and compile
    for number in range(num_rounds):
        for size in sizes:
            found = {}
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                began = time.perf_counter()
                found[way] = lhat(way, model, engine, texts[size], memory_mib)
                seconds[way][size].append(time.perf_counter() - began)
            apart = float(np.abs(found["requests"] - found["tree"]).max())
            if not apart <= APART:
                raise SystemExit(f"at {size} tokens the ways are {apart:.2g} nats apart: they do not measure the same")
    return seconds


def exponent(medians: dict[int, float]) -> float:
    """The slope of log seconds over log tokens: 1 is linear, 2 quadratic."""
    x, y = ([math.log(value) for value in column] for column in (medians.keys(), medians.values()))
    return statistics.linear_regression(x, y).slope


def told(medians: dict[str, dict[int, float]], num_rounds: int) -> str:
    sizes = list(medians["tree"])
    lines = [
        f"Median of {num_rounds} rounds, seconds; growth is against the row above.",
        "",
        "| tokens | one request per prefix | tree | ratio | growth: requests | growth: tree |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for place, size in enumerate(sizes):
        before = sizes[place - 1] if place else None
        growth = ["-" if before is None else f"{medians[way][size] / medians[way][before]:.1f}x" for way in WAYS]
        slow, fast = (medians[way][size] for way in WAYS)
        lines.append(f"| {size} | {slow:.2f} | {fast:.3f} | {slow / fast:.1f} | {' | '.join(growth)} |")
    if len(sizes) > 1:
        slopes = ", ".join(f"{way} {exponent(medians[way]):.2f}" for way in WAYS)
        lines += [
            "",
            f"Seconds grow with tokens to the power of: {slopes} (fit of the logarithms over the sizes above).",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 2048], help="of the trajectory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--policy", help="a folder; its context must hold the longest trajectory and the suffix")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-mib", type=float, default=512, help="analyze.probe_memory_mib")
    parser.add_argument("--json", type=Path, help="write all rounds there")
    given = parser.parse_args()
    longest = max(given.tokens) + HEADER + ANSWER + 2
    with tempfile.TemporaryDirectory() as folder:
        path = given.policy or made(Path(folder), longest)
        settings = EngineConfig(max_model_len=longest, cpus_per_engine=given.threads, kv_cache_gib=1.0)
        engine = Engine(path, settings, seed=0)
        model = policy.load_model(path).eval()
        torch.set_num_threads(given.threads)
        seconds = measured(model, engine, sorted(given.tokens), given.rounds, given.memory_mib)
        engine.close()
    medians = {way: {size: statistics.median(each) for size, each in of.items()} for way, of in seconds.items()}
    print(told(medians, given.rounds))
    if given.json:
        settings_told = {name: str(value) for name, value in vars(given).items()}
        given.json.write_text(json.dumps({"settings": settings_told, "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
