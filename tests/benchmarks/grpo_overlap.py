"""What overlapping generation and training gains: GRPO's step time with grpo.max_staleness=1 next to its parts alone.

    python -m tests.benchmarks.grpo_overlap [--steps 10] [--rounds 1] [--json FILE]

The stage `grpo` with real Ray, one learner and one vLLM engine, first synchronous, then one version ahead. Both times the
learner's process is bound to one core and the engine's to another, with one thread each; judges, Ray and the driver run
where the kernel puts them. In the synchronous run learner and engine take turns, so that its `time/generate_s` and
`time/update_s` are what each takes alone on its core; no step can be shorter than the longer of the two. A core's idle
share is one minus its process' CPU time over the wall time of the steps that count. Prints Markdown; medians over steps.

The policy has random weights and 8 million parameters; responses end after 128 tokens in the mean, 512 at most, and are
rewarded for a last digit of 7, so that there is always something to learn.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from raml_ray.config import Config, Step, override
from raml_ray.settings import BaseConfig
from raml_ray.workers import fresh

SHAPE = BaseConfig(
    kind="random", hidden_size=256, num_layers=8, num_heads=4, num_kv_heads=2, intermediate_size=1024, vocab_size=512
)
ROLES = {"learner": "RayTrainWorker", "engine": "PolicyEngine"}
"""Role -> what Ray puts into the title of its process."""
MODES = {"sync": 0, "async": 1}
"""Mode -> grpo.max_staleness."""
MEAN_TOKENS, MOST_TOKENS = 128, 512
NUM_WARM_UP = 2
"""Steps before those that count."""
LOOK_EVERY_S = 0.2


class Look(NamedTuple):
    """What a role's process had computed at a moment."""

    at_s: float
    """Since the epoch."""
    cpu_s: float


def prepared(folder: Path) -> None:
    from raml_ray.miniature.base import save

    draw = random.Random(0)
    problems = ["Sum: " + " + ".join(str(draw.randint(0, 999)) for _ in range(draw.randint(4, 16))) for _ in range(256)]
    rows = [json.dumps({"problem": problem, "answer": "7"}) + "\n" for problem in problems]
    (folder / "questions.jsonl").write_text("".join(rows))
    tokenizer = fresh.tokenizer(problems, SHAPE.vocab_size)
    save(fresh.model(SHAPE, tokenizer, seed=0), tokenizer, folder / "policy")
    ends = draw.sample(range(len(tokenizer)), max(1, round(len(tokenizer) / MEAN_TOKENS)))
    file = folder / "policy" / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": sorted({*ends, tokenizer.eos_token_id})}))


def settings_of(folder: Path, options: argparse.Namespace) -> Config:
    return override(
        Config(steps=(Step(name="grpo", stage="grpo"),)),
        {
            "name": options.mode,
            "root": str(folder / "runs"),
            "data.path": str(folder / "questions.jsonl"),
            "policy.path": str(folder / "policy"),
            "prompt.template": "plain",
            "verify.answer_pattern": r"(\d)",
            "engine.max_model_len": 256 + MOST_TOKENS,
            "engine.kv_cache_gib": 1,
            "grpo.num_steps": NUM_WARM_UP + options.steps,
            "grpo.questions_per_step": options.questions,
            "grpo.num_trajectories": options.samples,
            "grpo.num_updated": options.updated,
            "grpo.max_tokens": MOST_TOKENS,
            "grpo.learning_rate": 1e-5,  # small, so that the lengths stay what they are
            "grpo.max_staleness": MODES[options.mode],
            "train.checkpoint_every": 10_000,
            "cluster.num_cpus": 4,
            "tracking.enabled": False,
        },
    )


@contextlib.contextmanager
def bound() -> Iterator[dict[str, list[Look]]]:
    """Binds each role's process below this one to a core of its own, threads that come later too, and notes its CPU time."""
    cores = dict(zip(ROLES, sorted(os.sched_getaffinity(0))[-2:], strict=True))
    looks: dict[str, list[Look]] = {role: [] for role in ROLES}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_EVERY_S):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(
                    psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, FileNotFoundError
                ):
                    title = " ".join(process.cmdline())
                    for role, name in ROLES.items():
                        if title.startswith("ray::") and name in title:
                            for thread in os.listdir(f"/proc/{process.pid}/task"):
                                os.sched_setaffinity(int(thread), {cores[role]})
                            spent = process.cpu_times()
                            looks[role].append(Look(time.time(), spent.user + spent.system))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        done.set()
        thread.join()


def busy_share(looks: Sequence[Look], began: float, ended: float) -> float:
    """CPU time over wall time between two moments."""
    within = [look for look in looks if began <= look.at_s <= ended]
    if len(within) < 2:
        raise SystemExit(f"a process was not seen between {began} and {ended}: what are Ray's processes called?")
    return (within[-1].cpu_s - within[0].cpu_s) / (within[-1].at_s - within[0].at_s)


def one_mode(options: argparse.Namespace) -> None:
    """In a process of its own: puts its figures into the folder."""
    from raml_ray.stages import pipeline

    with bound() as looks:
        step = pipeline.run(settings_of(options.folder, options)) / "grpo"
    lines = [json.loads(line) for line in Path(step.file("metrics.jsonl")).read_text().splitlines()]
    began, ended = lines[NUM_WARM_UP - 1]["time"], lines[-1]["time"]
    ends = [line["time"] for line in lines]
    counted = lines[NUM_WARM_UP:]
    figures = {
        "steps": [after - before for before, after in itertools.pairwise(ends)][NUM_WARM_UP - 1 :],
        "generate": [line["time/generate_s"] for line in counted],
        "update": [line["time/update_s"] for line in counted],
        "sync": [line["time/sync_s"] for line in counted],
        "tokens": [line["grpo/response_tokens"] for line in counted],
        "idle": {role: 1 - busy_share(looks[role], began, ended) for role in ROLES},
    }
    (options.folder / f"{options.mode}.json").write_text(json.dumps(figures))


def in_a_process(mode: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    names = ("steps", "questions", "samples", "updated")
    words = [f"--{name}={getattr(options, name)}" for name in names] + [f"--mode={mode}", f"--folder={folder}"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    subprocess.run([sys.executable, "-m", __spec__.name, *words], env=variables, check=True, stdout=sys.stderr)
    figures: dict[str, Any] = json.loads((folder / f"{mode}.json").read_text())
    return figures


def summary(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Medians over all steps of all rounds."""

    def median(mode: str, name: str) -> float:
        return statistics.median(value for one in rounds for value in one[mode][name])

    generate, update = median("sync", "generate"), median("sync", "update")
    steps = {mode: median(mode, "steps") for mode in MODES}
    idle = {
        f"idle_{mode}_{role}": statistics.mean(one[mode]["idle"][role] for one in rounds)
        for mode in MODES
        for role in ROLES
    }
    return {
        "generate_alone_s": generate,
        "update_alone_s": update,
        "sync_step_s": steps["sync"],
        "async_step_s": steps["async"],
        "async_to_longer": steps["async"] / max(generate, update),
        "sync_to_async": steps["sync"] / steps["async"],
        "weight_sync_s": median("sync", "sync"),
        **idle,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="policy versions that count, of each mode")
    parser.add_argument("--rounds", type=int, default=1, help="both modes, every second round in the opposite order")
    parser.add_argument("--questions", type=int, default=4, help="of a step")
    parser.add_argument("--samples", type=int, default=16, help="of a question")
    parser.add_argument("--updated", type=int, default=16, help="of these; fewer make the update shorter")
    parser.add_argument("--json", type=Path, help="file for every step")
    for name, kind in (("--mode", str), ("--folder", Path)):
        parser.add_argument(name, type=kind, default=kind(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        one_mode(options)
        return
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            prepared(Path(name))
            order = list(MODES) if number % 2 == 0 else list(MODES)[::-1]
            rounds.append({mode: in_a_process(mode, Path(name), options) for mode in order})
    found = summary(rounds)
    print(
        f"alone: generate {found['generate_alone_s']:.2f} s, update {found['update_alone_s']:.2f} s;"
        f" weight sync {found['weight_sync_s']:.2f} s\n"
    )
    print("| mode | s/step | to the longer part alone | learner idle | engine idle |\n|---|---:|---:|---:|---:|")
    longer = max(found["generate_alone_s"], found["update_alone_s"])
    for mode, staleness in MODES.items():
        print(
            f"| max_staleness={staleness} | {found[f'{mode}_step_s']:.2f} | {found[f'{mode}_step_s'] / longer:.2f} |"
            f" {found[f'idle_{mode}_learner']:.0%} | {found[f'idle_{mode}_engine']:.0%} |"
        )
    if options.json:
        options.json.write_text(json.dumps({"summary": found, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
