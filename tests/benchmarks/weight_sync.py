"""What a weight sync through the object store costs: the way of the bytes, and their loading, each against a plain bound.

    python -m tests.benchmarks.weight_sync [--mib 200] [--rounds 9] [--json FILE]

`transport` is all that `grpo.weight_sync=object_store` does from a learner's tensors to arrays that an engine's process
reads: gathering, checksums at both ends, two puts into the store. It is the real learner, `ObjectStoreSync`,
rollout pool and engine actor, with engine.kind=scripted, which takes weights and loads nothing. Its bound is one copy of as
many bytes between two arrays that have been touched before.

`load` is what a vLLM engine does with such arrays (`Engine.load_weights`), the checksum included. Its bound is vLLM's own
`reload_weights` of the same weights from a safetensors file in the page cache.

Each pair takes turns, every second round in the opposite order. Prints Markdown; medians, ratios within a round.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raml_ray.config import Config, Step, override
from raml_ray.settings import BaseConfig, TrainConfig
from raml_ray.workers import fresh, sharding, weights

PARTS = ("transport", "load")
PATIENCE_S = 300.0
NUM_WARM_UP = 8
"""Rounds before those that count: until then the store hands out memory that was never touched, at four times the cost."""
PAUSE_S = 0.5
"""Before each way: the pool's own copy of the last version, which nobody waits for, is made meanwhile."""
TOLD = {"time/gather_s": "learner", "time/engine_load_s": "pool and engine"}
"""Of what a sync says of itself, and whose time it is."""
Round = dict[str, float]
"""Way -> seconds; of `transport` what TOLD names, too."""


def prepared(folder: Path, mib: int) -> None:
    """Puts a policy of so many MiB there, and a question."""
    from raml_ray.miniature.base import save

    vocabulary = fresh.tokenizer(["Sum: 1 + 2"], 300)
    layer = 2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 2048  # parameters of one
    num_layers = max(1, round((mib * 2**20 / 4 - 512 * 512) / layer))
    shape = BaseConfig(
        kind="random", hidden_size=512, num_layers=num_layers, num_heads=8, num_kv_heads=2, intermediate_size=2048
    )
    save(fresh.model(shape, vocabulary, seed=0), vocabulary, folder / "policy")
    (folder / "questions.jsonl").write_text(json.dumps({"problem": "Sum: 1 + 2", "answer": "3"}) + "\n")


def settings_of(folder: Path, kind: str, bucket_mib: float = 256) -> Config:
    return override(
        Config(steps=(Step(name="grpo", stage="grpo"),)),
        {
            "root": str(folder / "runs"),
            "data.path": str(folder / "questions.jsonl"),
            "policy.path": str(folder / "policy"),
            "prompt.template": "plain",
            "engine.kind": kind,
            "engine.max_model_len": 64,
            "grpo.num_steps": 10_000,
            "grpo.questions_per_step": 1,
            "grpo.num_trajectories": 2,
            "grpo.num_updated": 2,
            "grpo.num_minibatches": 1,
            "grpo.max_tokens": 2,
            "grpo.sync_bucket_mib": bucket_mib,
            "cluster.num_cpus": 4,
            "cluster.object_store_mib": 1500,
        },
    )


def in_turns(ways: dict[str, Callable[[], object]], num_rounds: int) -> list[Round]:
    rounds: list[Round] = []
    for number in range(NUM_WARM_UP + num_rounds):
        rounds.append({})
        for way in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            told = ways[way]()
            rounds[-1][way] = time.perf_counter() - began
            if isinstance(told, dict):
                rounds[-1] |= {name: told[name] for name in TOLD}
    return rounds[NUM_WARM_UP:]


def transport(folder: Path, num_rounds: int, bucket_mib: float) -> list[Round]:
    import ray
    import torch.distributed as dist

    from raml_ray import cluster, records
    from raml_ray.records import Question
    from raml_ray.stages import grpo, rollout_pool, weight_sync
    from raml_ray.workers import policy

    config = settings_of(folder, "scripted", bucket_mib)
    path = str(folder / "policy")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    learner = sharding.wrap(policy.load_model(path), TrainConfig())
    problem = "Sum: 1 + 2"
    question = Question(records.question_id(problem, "3"), problem, "3", "benchmark", "", 0)
    num_bytes = weights.layout_of(learner.full_tensors(), torch.float32).num_bytes
    source, target = (np.full(num_bytes, value, dtype=np.uint8) for value in (1, 2))
    with cluster.connected(config):
        place = grpo._engines_place(config, "engines of the benchmark")
        pool = ray.remote(rollout_pool.RolloutPool).options(num_cpus=0).remote(config, path, [question], place)
        ray.get(pool.ready.remote(), timeout=PATIENCE_S)
        sync = weight_sync.ObjectStoreSync(
            pool, learner, config, lambda ref, timeout_s, what: ray.get(ref, timeout=timeout_s)
        )
        versions = itertools.count()
        ways = {
            "transport": lambda: sync.send(next(versions), None, PATIENCE_S),
            "copy": lambda: np.copyto(target, source),
        }
        rounds = in_turns(ways, num_rounds)
    dist.destroy_process_group()
    return rounds


def load(folder: Path, num_rounds: int, _bucket_mib: float) -> list[Round]:
    from raml_ray.workers import policy
    from raml_ray.workers.engine import Engine

    path = str(folder / "policy")
    engine = Engine(path, settings_of(folder, "vllm").engine, seed=0)
    arrays, layout = weights.pack(policy.untied(policy.load_model(path)).items())
    for array in arrays:
        array.flags.writeable = False  # as what comes out of the store

    def from_arrays() -> None:
        engine.load_weights([(arrays, layout)], 1)

    def from_file() -> None:
        engine._vllm.collective_rpc("reload_weights")

    return in_turns({"load": from_arrays, "reload_weights": from_file}, num_rounds)


def in_a_process(part: str, folder: Path, options: argparse.Namespace) -> list[Round]:
    words = [f"--part={part}", f"--folder={folder}"]
    words += [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("rounds", "threads", "bucket-mib")]
    variables = os.environ | {"OMP_NUM_THREADS": str(options.threads), "RAY_AUTH_MODE": "disabled"}
    subprocess.run([sys.executable, "-m", __spec__.name, *words], env=variables, check=True, stdout=sys.stderr)
    rounds: list[Round] = json.loads((folder / f"{part}.json").read_text())
    return rounds


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    ours, bound = sorted(rounds[0].keys() - TOLD, key=lambda way: way not in PARTS)
    ratios = [one[ours] / one[bound] for one in rounds]
    return {
        "way": ours,
        "bound": bound,
        "seconds": statistics.median(one[ours] for one in rounds),
        "bound_seconds": statistics.median(one[bound] for one in rounds),
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "told": {
            whose: statistics.median(one[name] for one in rounds) for name, whose in TOLD.items() if name in rounds[0]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=200, help="of weights, float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bucket-mib", type=float, default=256, help="grpo.sync_bucket_mib, of transport")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="file for every round")
    for name, kind in (("--part", str), ("--folder", Path)):
        parser.add_argument(name, type=kind, default=kind(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        torch.set_num_threads(options.threads)
        rounds = {"transport": transport, "load": load}[options.part](
            options.folder, options.rounds, options.bucket_mib
        )
        (options.folder / f"{options.part}.json").write_text(json.dumps(rounds))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared(folder, options.mib)
        mib = (folder / "policy" / "model.safetensors").stat().st_size / 2**20
        parts = {part: in_a_process(part, folder, options) for part in options.parts}
    print(f"{mib:.0f} MiB of weights\n\n| way | ms | bound | ms | ratio |\n|---|---:|---|---:|---:|")
    found = {part: summary(rounds) for part, rounds in parts.items()}
    for row in found.values():
        print(
            f"| {row['way']} | {1000 * row['seconds']:.0f} | {row['bound']} | {1000 * row['bound_seconds']:.0f} |"
            f" {row['ratio']:.2f} ({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f}) |"
        )
        for whose, seconds in row["told"].items():
            print(f"| of which {whose} | {1000 * seconds:.0f} | | | |")
    if options.json:
        options.json.write_text(json.dumps({"mib": mib, "summary": found, "rounds": parts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
