"""Output tokens per second of the ways to sample trajectories: what the streaming engine and the whole stage cost.

    python -m tests.benchmarks.rollouts [--questions 256] [--rounds 3] [--json FILE]

`bare`: all prompts at once into vLLM's engine, stepped until it is empty, as `vllm.LLM.generate` does. `loop`: threads
that ask an EngineLoop for one shard after the other, as many as the stage has. `async`: vLLM's AsyncLLM, its core in a
process of its own. `stage`: the step `generate`, through Ray Data. Every way is a fresh process on the same --threads
cores, with the same engine settings, and answers the same seeded requests with the same tokens (checked). With --spare
the stage's engine alone has those cores, and Ray's own processes have so many others, which no other way uses. A round takes all ways in turn, every second one in the opposite order. Lengths are geometric: the
policy has random weights, and enough of its vocabulary ends a response. The steady rate is that of the tokens whose
responses finished between the first tenth and nine tenths of all; of `stage` a response finishes with its shard's file.
Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from raml_ray.config import Config, Step, override
from raml_ray.settings import BaseConfig, EngineConfig
from raml_ray.stages.rollouts import TRAJECTORIES, shards_at_once
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling

WAYS = ("stage", "bare", "loop", "async")
SHAPES = {
    "50M": BaseConfig(
        kind="random", hidden_size=512, num_layers=13, num_heads=8, num_kv_heads=2, intermediate_size=2048
    ),
    "miniature": BaseConfig(kind="random"),
}
MOST_PER_MEAN = 4
"""generate.max_tokens, in mean response lengths."""
WARM_UP = 8
"""Requests before the clock starts."""
STEADY = (0.1, 0.9)
"""Between these shares of the responses an engine neither fills nor drains."""


class Finished(NamedTuple):
    """A response."""

    at_s: float
    """Since the first request, or the start of the step."""
    token_ids: list[int]


def prepared(folder: Path, shape: BaseConfig, options: argparse.Namespace) -> None:
    """Puts questions and a policy there whose responses are about options.mean_tokens long."""
    from raml_ray.miniature.base import save
    from raml_ray.workers import fresh

    numbers = random.Random(0)
    problems = [
        "Sum: " + " + ".join(str(numbers.randint(0, 999)) for _ in range(numbers.randint(4, 16)))
        for _ in range(options.questions)
    ]
    rows = [json.dumps({"problem": problem, "answer": "0"}) + "\n" for problem in problems]
    (folder / "questions.jsonl").write_text("".join(rows))
    tokenizer = fresh.tokenizer(problems, shape.vocab_size)
    save(fresh.model(shape, tokenizer, seed=0), tokenizer, folder / "policy")
    ends = random.Random(0).sample(range(len(tokenizer)), max(1, round(len(tokenizer) / options.mean_tokens)))
    (folder / "policy" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


def settings_of(folder: Path, options: argparse.Namespace) -> Config:
    """Of the stage; its engine is everyone's."""
    shard_rows = max(options.samples, options.max_num_seqs // 2)
    return override(
        Config(steps=(Step(name="generate", stage="generate"),)),
        {
            "name": f"round{options.round}",
            "root": str(folder / "runs"),
            "data.path": str(folder / "questions.jsonl"),
            "policy.path": str(folder / "policy"),
            "prompt.template": "plain",
            "engine.cpus_per_engine": options.threads,
            "engine.max_num_seqs": options.max_num_seqs,
            "engine.max_model_len": 256 + MOST_PER_MEAN * options.mean_tokens,
            "engine.kv_cache_gib": 1,
            "generate.num_samples": options.samples,
            "generate.max_tokens": MOST_PER_MEAN * options.mean_tokens,
            "generate.shard_questions": shard_rows // options.samples,
            "cluster.num_cpus": options.threads + 2,
            "tracking.enabled": False,
        },
    )


def keep_apart(cores: Sequence[int], num_engine: int) -> None:
    """From now on the first of the cores are the engine's of the stage, and the others everyone else's."""
    os.sched_setaffinity(0, cores[num_engine:])

    def pin() -> None:
        while True:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    if process.name().startswith("ray::MapWorker"):
                        for thread in process.threads():
                            os.sched_setaffinity(thread.id, cores[:num_engine])
            time.sleep(0.5)

    threading.Thread(target=pin, daemon=True).start()


def by_stage(folder: Path, options: argparse.Namespace) -> list[Finished]:
    """Runs the step; leaves what it asked in requests.json, for the other ways to ask the same."""
    from raml_ray.stages import pipeline

    if options.spare:
        keep_apart(sorted(os.sched_getaffinity(0)), options.threads)
    began = time.time()
    made = pipeline.run(settings_of(folder, options)) / "generate" / TRAJECTORIES
    finished, asked = [], []
    for name in sorted(made.names("shard-", ".parquet")):
        columns = made.read_table(name, ["prompt_token_ids", "seed", "sampling", "token_ids"]).to_pydict()
        at_s = Path(made.file(name)).stat().st_mtime - began
        finished += [Finished(at_s, token_ids) for token_ids in columns["token_ids"]]
        asked.append(list(zip(columns["prompt_token_ids"], columns["seed"], strict=True)))
    (folder / "requests.json").write_text(json.dumps({"sampling": columns["sampling"][0], "shards": asked}))
    return finished


def asked_before(folder: Path) -> tuple[list[list[Request]], Sampling]:
    """Shards of requests, and how they are sampled, as the stage left them."""
    asked = json.loads((folder / "requests.json").read_text())
    values = json.loads(asked["sampling"])
    sampling = Sampling(**(values | {"stop_token_ids": tuple(values["stop_token_ids"])}))
    return [[Request(prompt, seed) for prompt, seed in shard] for shard in asked["shards"]], sampling


def warm_up(shards: Sequence[Sequence[Request]]) -> list[Request]:
    """Requests like those to come, which answer none of them from the prefix cache."""
    return [Request(request.prompt_token_ids[::-1], seed=1) for request in shards[0][:WARM_UP]]


def by_bare(folder: Path, settings: EngineConfig) -> list[Finished]:
    from vllm.inputs.engine import tokens_input

    from raml_ray.workers.engine import Engine
    from raml_ray.workers.engine_arguments import params_of

    shards, sampling = asked_before(folder)
    engine = Engine(str(folder / "policy"), settings, seed=0)
    engine.generate(warm_up(shards), sampling)
    requests = [request for shard in shards for request in shard]
    prompts = [tokens_input(request.prompt_token_ids) for request in requests]
    params = [params_of(request, sampling, settings.max_model_len) for request in requests]
    bare = engine._vllm.llm_engine
    finished: list[Finished] = []
    began = time.perf_counter()
    for number, (prompt, how) in enumerate(zip(prompts, params, strict=True)):
        bare.add_request(str(number), prompt, how)
    while bare.has_unfinished_requests():
        outputs = bare.step()
        at_s = time.perf_counter() - began
        finished += [Finished(at_s, list(output.outputs[0].token_ids)) for output in outputs if output.finished]
    return finished


def given_up(reason: str) -> None:
    print(f"the engine has failed: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def by_loop(folder: Path, settings: EngineConfig) -> list[Finished]:
    from raml_ray.workers.engine import Engine
    from raml_ray.workers.engine_loop import EngineLoop

    shards, sampling = asked_before(folder)
    loop = EngineLoop(
        lambda: Engine(str(folder / "policy"), settings, seed=0),
        stall_timeout_s=settings.stall_timeout_s,
        on_failure=given_up,
    )
    for answer in [loop.submit(request, sampling) for request in warm_up(shards)]:
        answer.result()
    waiting: queue.SimpleQueue[list[Request]] = queue.SimpleQueue()
    for shard in shards:
        waiting.put(shard)
    finished: list[Finished] = []
    began = time.perf_counter()

    def noted(future: Future[Completion | Failure]) -> None:
        reply = future.result()
        assert isinstance(reply, Completion), reply
        finished.append(Finished(time.perf_counter() - began, reply.token_ids))

    def feed() -> None:
        while True:
            try:
                shard = waiting.get_nowait()
            except queue.Empty:
                return
            asked = [loop.submit(request, sampling) for request in shard]
            for future in asked:
                future.add_done_callback(noted)
            for future in asked:
                future.result()

    at_once = shards_at_once(settings.max_num_seqs, len(shards[0]), len(shards), 1)
    threads = [threading.Thread(target=feed) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.close()
    return finished


def by_async(folder: Path, settings: EngineConfig) -> list[Finished]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs.engine import tokens_input
    from vllm.v1.engine.async_llm import AsyncLLM

    from raml_ray.workers.engine_arguments import arguments, params_of

    shards, sampling = asked_before(folder)
    requests = [request for shard in shards for request in shard]
    finished: list[Finished] = []

    async def asked(llm: AsyncLLM, name: str, request: Request) -> list[int]:
        params = params_of(request, sampling, settings.max_model_len)
        async for output in llm.generate(tokens_input(request.prompt_token_ids), params, name):
            last = output
        return list(last.outputs[0].token_ids)

    async def all_asked() -> None:
        policy = str(folder / "policy")
        llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**arguments(policy, settings, longest=settings.max_model_len + 1, seed=0))
        )
        await asyncio.gather(*(asked(llm, f"w{index}", one) for index, one in enumerate(warm_up(shards))))
        began = time.perf_counter()

        async def noted(index: int) -> None:
            token_ids = await asked(llm, str(index), requests[index])
            finished.append(Finished(time.perf_counter() - began, token_ids))

        await asyncio.gather(*(noted(index) for index in range(len(requests))))
        llm.shutdown()

    asyncio.run(all_asked())
    return finished


def measured(finished: Sequence[Finished]) -> dict[str, Any]:
    """Tokens per second of the whole and of its steady part, and a digest of all tokens, whatever their order."""
    finished = sorted(finished)
    responses = sorted(one.token_ids for one in finished)
    lengths = sorted(len(token_ids) for token_ids in responses)
    first_s, last_s = (finished[math.ceil(share * len(finished)) - 1].at_s for share in STEADY)
    in_between = sum(len(one.token_ids) for one in finished if first_s < one.at_s <= last_s)
    return {
        "whole": sum(lengths) / finished[-1].at_s,
        "steady": in_between / (last_s - first_s) if last_s > first_s else None,
        "responses": len(lengths),
        "lengths": [lengths[round(share * (len(lengths) - 1))] for share in (0.1, 0.5, 0.9, 1.0)],
        "digest": hashlib.sha256(json.dumps(responses).encode()).hexdigest()[:12],
    }


def one_way(options: argparse.Namespace) -> None:
    """In a process of its own: puts its figures into the folder."""
    folder, engine = options.folder, settings_of(options.folder, options).engine
    num_cores = options.threads + (options.spare if options.way == "stage" else 0)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cores])
    if options.way == "stage":
        finished = by_stage(folder, options)
    else:
        finished = {"bare": by_bare, "loop": by_loop, "async": by_async}[options.way](folder, engine)
    (folder / "figures.json").write_text(json.dumps(measured(finished)))


def in_a_process(way: str, round_: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Raises: subprocess.CalledProcessError if the way did not come to its end."""
    names = ("questions", "samples", "mean_tokens", "max_num_seqs", "threads", "spare")
    words = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    words += [f"--way={way}", f"--round={round_}", f"--folder={folder}"]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "RAY_AUTH_MODE": "disabled",
        "TORCHDYNAMO_DISABLE": "1",  # what Engine says inside its process must be said to AsyncLLM's core from outside
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    subprocess.run([sys.executable, "-m", __spec__.name, *words], env=environment, check=True, stdout=sys.stderr)
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return figures


def rounds(shape: BaseConfig, options: argparse.Namespace) -> list[dict[str, dict[str, Any]]]:
    """Way -> figures, round by round. Raises: RuntimeError if two ways answered something else."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared(folder, shape, options)
        for number in range(options.rounds):
            order = options.ways if number % 2 == 0 else options.ways[::-1]
            found.append({})
            for way in order:
                found[-1][way] = in_a_process(way, number, folder, options)
                # Said as it comes: who ends the run early keeps what there was.
                print(f"round {number}, {way}: {found[-1][way]}", file=sys.stderr, flush=True)
            digests = {way: figures["digest"] for way, figures in found[-1].items()}
            if len(set(digests.values())) != 1:
                raise RuntimeError(f"round {number}: the ways answered different tokens: {digests}")
    return found


def table(found: Sequence[dict[str, dict[str, Any]]]) -> str:
    """Medians over the rounds; the ratio is that of each round to the same rate of its own `bare`."""
    lines = ["| way | tokens/s, whole | to bare | tokens/s, steady | to bare |", "|---|---|---|---|---|"]
    for way in found[0]:
        cells = [way]
        for kind in ("whole", "steady"):
            speeds = [one[way][kind] for one in found]
            if any(one[name][kind] is None for one in found for name in (way, "bare")):  # all came at once
                cells += ["", ""]
                continue
            ratios = [speed / one["bare"][kind] for speed, one in zip(speeds, found, strict=True)]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(found) > 1 else ""
            cells += [f"{statistics.median(speeds):,.0f}", f"{statistics.median(ratios):.2f}{spread}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--samples", type=int, default=4, help="responses per question")
    parser.add_argument("--mean-tokens", type=int, default=128, help="of a response")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="engine.max_num_seqs")
    parser.add_argument("--threads", type=int, default=2, help="cores of every way, and threads of its engine")
    parser.add_argument("--spare", type=int, default=0, help="cores of their own for Ray's processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="`stage` and `bare` among them")
    parser.add_argument("--policies", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--json", type=Path, help="file for every single figure")
    for name, kind in (("--way", str), ("--round", int), ("--folder", Path)):
        parser.add_argument(name, type=kind, default=kind(), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.way:
        one_way(options)
        return
    results = {name: rounds(SHAPES[name], options) for name in options.policies}
    for name, found in results.items():
        some = found[0]["bare"]
        print(f"\n{name}: {some['responses']} responses, of {some['lengths']} tokens (10 %, median, 90 %, longest)\n")
        print(table(found))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
