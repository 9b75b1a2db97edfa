"""GRPO next to TRL's GRPOTrainer: seconds a step and to the same reward, for short completions and for long, spread ones.

    python -m tests.benchmarks.trl_comparison [--cases short long] [--steps 30 12] [--json FILE]

Both train the same tiny policy on the same questions with the same group size, loss (clipped ratios, mean over tokens),
optimizer and number of optimizer steps, on the same two cores, one after the other. TRL is installed by this script into an
environment of its own (--venv), and has there what it can have on a CPU: Hugging Face's generate instead of vLLM, fused
AdamW, no gradient checkpointing. Its reward is a regular expression and costs nothing; ours is the stage's judge, in
processes. Ours is the stage `grpo` as a user runs it, with Ray, weight sync and its check, synchronous or not (--staleness).

`short`: the miniature's base policy and questions, at most 64 tokens. `long`: a policy of random weights whose responses
end after 128 tokens in the mean, at most 512, as long as chance has it; it is rewarded for a last digit of 7. A step is a
policy version. Starting up (processes, engine) and the first step (allocations, warm-up) are told apart. `to reward`: from
the start of the first step until the mean of three steps' rewards reaches 0.9 of what the less successful one reached at
best. Prints Markdown.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REQUIRED = ("trl==1.16.0", "transformers==5.19.0")
TORCH = "2.13.0+cpu"
CASES = ("short", "long")
MOST_TOKENS = {"short": 64, "long": 512}
PATTERNS = {"short": r"\\boxed\{(\d+)\}", "long": r"(\d)"}
"""Of a response the last match is its answer."""
MEAN_TOKENS = 128
LUCKY = "7"
SMOOTHED = 3
OF_BEST = 0.9
RATE, CLIP_LOW, CLIP_HIGH = 5e-4, 0.2, 0.28
LEFT_OUT = 'torchvision ; python_version < "3"\n'
"""Of what TRL could use: torchvision's common build is for CUDA, and cannot be imported beside a CPU torch."""


class StepTaken(NamedTuple):
    """A policy version."""

    at_s: float
    """End of the step, since the first one began."""
    seconds: float
    reward: float
    tokens: float
    """Mean length of the responses."""


def environment(folder: Path) -> Path:
    """The python of TRL's environment, made there if need be."""
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join([*REQUIRED, TORCH])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"installing {', '.join(REQUIRED)} into {folder}", file=sys.stderr, flush=True)
    uv = str(Path(sys.executable).parent / "uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
    left_out = folder / "left-out.txt"
    left_out.write_text(LEFT_OUT)
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
    is_local = any(Path(links).glob(f"torch-{TORCH}-*.whl")) if links else False
    backend = [] if is_local else ["--torch-backend", "cpu"]
    variables = os.environ | {"VIRTUAL_ENV": str(folder)} | ({"UV_FIND_LINKS": links} if is_local else {})
    words = ["pip", "install", "--quiet", "--override", str(left_out), *backend, f"torch=={TORCH}", *REQUIRED]
    subprocess.run([uv, *words], env=variables, check=True)
    stamp.write_text(wanted)
    return python


def prepared(folder: Path, case: str, options: argparse.Namespace) -> None:
    """Puts the policy there, and the questions with their prompts."""
    from raml_ray.miniature import base, task
    from raml_ray.settings import BaseConfig, MiniatureConfig
    from raml_ray.text import prompts
    from raml_ray.workers import fresh

    if case == "short":
        miniature = MiniatureConfig(num_train=256)
        asked = [(question.problem, question.answer) for question in task.questions("train", miniature, seed=0)]
        model, tokenizer = base.train(
            miniature, BaseConfig(num_steps=options.base_steps), seed=0, report=lambda step, values: None
        )
        base.save(model, tokenizer, folder / "policy")
    else:
        draw = random.Random(0)
        problems = [
            "Sum: " + " + ".join(str(draw.randint(0, 999)) for _ in range(draw.randint(4, 16))) for _ in range(256)
        ]
        asked = [(problem, LUCKY) for problem in problems]
        tokenizer = fresh.tokenizer(problems, 512)
        base.save(fresh.model(BaseConfig(kind="random"), tokenizer, seed=0), tokenizer, folder / "policy")
        ends = draw.sample(range(len(tokenizer)), max(1, round(len(tokenizer) / MEAN_TOKENS)))
        file = folder / "policy" / "generation_config.json"
        file.write_text(json.dumps({"eos_token_id": sorted({*ends, tokenizer.eos_token_id})}))
    rows = []
    for problem, answer in asked:
        ids = prompts.prompt_token_ids(tokenizer, problem, settings_of(folder, case, options).prompt)
        rows.append({"problem": problem, "answer": answer, "prompt": tokenizer.decode(ids), "ids": ids})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings_of(folder: Path, case: str, options: argparse.Namespace) -> Any:
    from raml_ray.config import Config, Step, override

    values = {
        "name": case,
        "root": str(folder / "runs"),
        "data.path": str(folder / "questions.jsonl"),
        "policy.path": str(folder / "policy"),
        "verify.answer_pattern": PATTERNS[case],
        "engine.max_model_len": 256 + MOST_TOKENS[case],
        "engine.kv_cache_gib": 0.5,
        "grpo.num_steps": options.num_steps,
        "grpo.questions_per_step": options.questions,
        "grpo.num_trajectories": options.samples,
        "grpo.num_updated": options.samples,
        "grpo.num_minibatches": options.minibatches,
        "grpo.max_tokens": MOST_TOKENS[case],
        "grpo.learning_rate": RATE,
        "grpo.max_staleness": options.staleness,
        "train.checkpoint_every": 10_000,
        # In turns learner and engine may each use all cores; side by side they share them. A policy as small as the
        # miniature's decodes faster on one.
        "engine.cpus_per_engine": 1 if options.staleness or case == "short" else options.threads,
        "train.cpus_per_worker": 1 if options.staleness else options.threads,
        "cluster.num_cpus": 2 * options.threads + 1,
        "tracking.enabled": False,
    }
    if case == "long":
        values |= {"prompt.template": "plain"}
    return override(Config(steps=(Step(name="grpo", stage="grpo"),)), values)


def by_us(folder: Path, case: str, options: argparse.Namespace) -> list[StepTaken]:
    from raml_ray.stages import pipeline

    step = pipeline.run(settings_of(folder, case, options)) / "grpo"
    lines = [json.loads(line) for line in Path(step.file("metrics.jsonl")).read_text().splitlines()]
    began = lines[0]["time"] - sum(lines[0][f"time/{part}_s"] for part in ("sample", "update", "sync"))
    ends = [began, *(line["time"] for line in lines)]
    return [
        StepTaken(end - began, end - before, line["grpo/reward"], line["grpo/response_tokens"])
        for before, end, line in zip(ends, ends[1:], lines, strict=False)
    ]


def by_trl(folder: Path, case: str, options: argparse.Namespace) -> list[StepTaken]:
    """In TRL's environment, where nothing of ours is."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(options.threads)
    policy = str(folder / "policy")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(policy)
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    for row in rows:
        if tokenizer(row["prompt"])["input_ids"] != row["ids"]:
            raise SystemExit(f"TRL would be given another prompt: {row['prompt']!r}")
    rewards: list[tuple[float, float]] = []
    ends: list[float] = []
    began = 0.0

    def reward(completions: list[str], answer: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        found = [(re.findall(PATTERNS[case], text) or [""])[-1] for text in completions]
        given = [float(one == wanted) for one, wanted in zip(found, answer, strict=True)]
        lengths = [len(ids) for ids in completion_ids]
        rewards.append((statistics.mean(given), statistics.mean(lengths)))
        return given

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            nonlocal began
            began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % options.minibatches == 0:
                ends.append(time.perf_counter() - began)

    num_sequences = options.questions * options.samples
    per_pass = min(options.per_pass, num_sequences // options.minibatches)
    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
        max_steps=options.num_steps * options.minibatches,
        per_device_train_batch_size=per_pass,
        gradient_accumulation_steps=num_sequences // per_pass // options.minibatches,
        steps_per_generation=num_sequences // per_pass,
        num_generations=options.samples,
        max_completion_length=MOST_TOKENS[case],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]),
        processing_class=tokenizer,
        callbacks=[Watch()],
    )
    trainer.train()
    return [
        StepTaken(end, end - before, *given) for before, end, given in zip([0.0, *ends], ends, rewards, strict=False)
    ]


def one_side(options: argparse.Namespace) -> None:
    """In a process of its own: puts its steps into the folder."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads :])
    taken = {"trl": by_trl, "raml_ray": by_us}[options.side](options.folder, options.cases[0], options)
    (options.folder / f"{options.side}.json").write_text(json.dumps(taken))


def in_a_process(side: str, python: Path, folder: Path, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the process' start to its end, and its steps."""
    names = ("questions", "samples", "minibatches", "threads", "per_pass", "num_steps", "staleness")
    words = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    script = ["-m", __spec__.name] if side == "raml_ray" else [__file__]
    variables = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "RAY_AUTH_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if side == "trl":
        variables.pop("PYTHONPATH", None)
    began = time.perf_counter()
    subprocess.run(
        [str(python), *script, *words, f"--side={side}", f"--folder={folder}", "--cases", case],
        env=variables,
        check=True,
        stdout=sys.stderr,
    )
    seconds = time.perf_counter() - began
    steps = [StepTaken(*step) for step in json.loads((folder / f"{side}.json").read_text())]
    return {"whole_s": seconds, "steps": steps}


def smoothed(steps: Sequence[StepTaken]) -> list[float]:
    """Mean reward of each step and those before it, SMOOTHED together; fewer at the beginning are none."""
    rewards = [step.reward for step in steps]
    return [statistics.mean(rewards[end - SMOOTHED : end]) for end in range(SMOOTHED, len(rewards) + 1)]


def summary(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each side."""
    target = OF_BEST * min(max(smoothed(side["steps"]), default=0.0) for side in found.values())
    rows = {}
    for name, side in found.items():
        steps: list[StepTaken] = side["steps"]
        reached = [place for place, reward in enumerate(smoothed(steps), start=SMOOTHED - 1) if reward >= target]
        rows[name] = {
            "step_s": statistics.median(step.seconds for step in steps[1:]),
            "first_step_s": steps[0].seconds,
            "start_s": side["whole_s"] - steps[-1].at_s,
            "tokens": statistics.mean(step.tokens for step in steps),
            "first_reward": steps[0].reward,
            "last_reward": statistics.mean(step.reward for step in steps[-SMOOTHED:]),
            "target": target,
            "target_step": reached[0] + 1 if reached else float("nan"),
            "target_s": steps[reached[0]].at_s if reached else float("nan"),
        }
    return rows


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", nargs="+", type=int, default=[30, 12], help="policy versions of each case")
    parser.add_argument("--questions", type=int, default=8, help="of a step")
    parser.add_argument("--samples", type=int, default=16, help="of a question")
    parser.add_argument("--minibatches", type=int, default=2, help="optimizer steps of a step")
    parser.add_argument("--per-pass", type=int, default=64, help="most sequences in one of TRL's passes")
    parser.add_argument("--base-steps", type=int, default=200, help="that the miniature's base policy is trained for")
    parser.add_argument("--staleness", type=int, default=0, help="grpo.max_staleness")
    parser.add_argument("--threads", type=int, default=2, help="cores of both")
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache" / "raml_ray" / "trl")
    parser.add_argument("--json", type=Path, help="file for every step")
    for name, kind in (("--side", str), ("--folder", Path), ("--num-steps", int)):
        parser.add_argument(name, type=kind, default=kind(), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.side:
        one_side(options)
        return
    pythons = {"trl": environment(options.venv.absolute()), "raml_ray": Path(sys.executable)}
    results = {}
    for case, num_steps in zip(options.cases, options.steps, strict=False):
        options.num_steps = num_steps
        with tempfile.TemporaryDirectory() as name:
            prepared(Path(name), case, options)
            found = {side: in_a_process(side, pythons[side], Path(name), case, options) for side in pythons}
        rows = summary(found)
        results[case] = {"summary": rows, "sides": found}
        print(f"\n{case}: target reward {rows['trl']['target']:.2f}\n")
        print("| | s/step | first step, s | start, s | tokens | reward, first | last | to reward, s | in steps |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for side, row in rows.items():
            print(
                f"| {side} | {row['step_s']:.2f} | {row['first_step_s']:.1f} | {row['start_s']:.0f} | {row['tokens']:.0f} |"
                f" {row['first_reward']:.2f} | {row['last_reward']:.2f} | {row['target_s']:.1f} | {row['target_step']:.0f} |"
            )
        ratios = {key: rows["trl"][key] / rows["raml_ray"][key] for key in ("step_s", "target_s")}
        print(f"\nTRL / raml_ray: {ratios['step_s']:.2f} a step, {ratios['target_s']:.2f} to the reward", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
