"""The paper's steps on two cores: the same settings with a policy of random weights, and lengths divided by one number.

What a rehearsal changes stands here and nowhere else: lengths by FACTOR; counts that decide how long it takes; what is a
matter of machines; and where policies and question sets come from. All else is the paper's, so that a setting that a step
refuses is found before a cluster is paid for. Its figures mean nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raml_ray.config import Config, Step, flatten, override
from raml_ray.text import paper_prompts
from raml_ray.text.known_sets import KNOWN, KnownSet

FACTOR = 64
"""A response of 16,384 tokens has 256."""
PROMPT_TOKENS = 1536
"""Prompts cannot be shortened: room for them, in tokens that are hardly more than bytes."""
RESPONSES = (
    *("generate.max_tokens", "evaluate.max_tokens", "evaluate.thinking_budget", "grpo.max_tokens"),
    *("grpo.overlong_tokens", "shorter.summary_reads", "shorter.summary_tokens"),
)
WHOLE = (
    *("sft.max_length", "engine.max_model_len", "train.max_tokens_per_micro_batch"),
    "shorter.summary_max_model_len",
)
"""Lengths of prompt and response together."""
SECOND = "shorter.summary_policy"
"""A second policy, which is the first one's twin here; without one nothing is said of it."""
MOST = {
    "data.limit": 4,
    "generate.num_samples": 2,
    "sft.batch_size": 4,
    "grpo.num_steps": 1,
    "grpo.questions_per_step": 2,
    "grpo.num_minibatches": 2,
    "analyze.num_questions": 1,
    "analyze.num_correct": 1,
    "landscape.num_points": 3,
    "shorter.summary_draws": 2,
}
HERE: dict[str, Any] = {
    "sft.max_steps": 2,
    "evaluate.limit": 1,
    "evaluate.num_bootstrap": 100,
    # The texts of random weights are neither right nor wrong, but unreadable: others are read beside them.
    "analyze.num_wrong": 1,
    "engine.gpus_per_engine": 0,
    "engine.tensor_parallel_size": 1,
    "engine.pipeline_parallel_size": 1,
    "engine.dtype": "float32",
    "engine.enforce_eager": True,
    "engine.kv_cache_gib": 0.25,
    "answers.num_engines": 1,
    "generate.num_engines": 1,
    "evaluate.num_engines": 1,
    "grpo.num_engines": 1,
    "grpo.weight_sync": "object_store",
    "train.num_workers": 1,
    "train.gpus_per_worker": 0,
    "train.dtype": "float32",
    "analyze.num_workers": 1,
    "analyze.gpus_per_worker": 0,
    "analyze.gpus_per_policy": 1,
    "analyze.dtype": "float32",
    "analyze.probe_memory_mib": 512,
}
"""Of limits that are off, and of machines."""
BASE = {
    "base.kind": "random",
    "base.num_layers": 2,
    "base.hidden_size": 64,
    "base.num_heads": 2,
    "base.num_kv_heads": 1,
    "base.intermediate_size": 128,
    "base.vocab_size": 512,
    "data.filters": [],
    "data.path": "paper:orz-math-val",
}
TEXTS = {
    "generate.source": "import",
    "data.path": "paper:aime24-four",
    "data.texts": {"rehearsal": "generations"},
    "data.labels": {"rehearsal": "labels"},
    # Several presets' rehearsals share these steps, whatever the windows of their own policies.
    "engine.max_model_len": PROMPT_TOKENS + 512,
}
BEGUN = TEXTS | {"data.texts": {"rehearsal": "begun"}}
"""The same questions' texts where responses are begun for a policy: these begin alike, or an instrument would set all aside."""
MIRROR = "rehearsal_mirror"


def rehearsed(config: Config) -> Config:
    """The configuration as it runs here, in a run of its own that starts with a policy of random weights."""
    steps = [Step(name="base", stage="base", overrides=dict(BASE))]
    sampled = {step.name for step in config.steps if step.stage == "generate" and not _is_import(config, step)}
    evaluated = {step.name for step in config.steps if step.stage == "evaluate"}
    looked_at = {name for step in config.steps if step.stage == "analyze" for name in step.data} & evaluated
    begun = {name for name in sampled if config.for_step(name).prompt.response_prefix}
    if sampled - begun or looked_at:
        steps.append(Step(name="texts", stage="generate", overrides=dict(TEXTS)))
    if begun:
        steps.append(Step(name="texts_begun", stage="generate", overrides=dict(BEGUN)))
    if looked_at:
        steps.append(Step(name="verify_texts", stage="verify", data=("texts",)))
    second = str(Path(config.root).absolute() / f"rehearsal_{config.name}" / "base" / "policy")
    for step in config.steps:
        more: tuple[str, ...] = ()
        if step.stage == "verify" and sampled & set(step.data):
            more = ("texts_begun",) if begun & set(step.data) else ("texts",)
        if step.stage == "analyze" and looked_at & set(step.data):
            more = ("verify_texts",)
        needs_one = step.stage in ("sft", "grpo", "evaluate", "analyze") or step.name in sampled
        changes = {
            "policy": step.policy or ("base" if needs_one else ""),
            "data": (*step.data, *more),
            "overrides": _small(step.overrides, second),
        }
        steps.append(step.model_copy(update=changes))
    whole = config.model_copy(update={"steps": tuple(steps)})
    there = {name: value for name, value in flatten(config).items() if "." in name}
    mirror = str(Path(config.root).absolute() / MIRROR)
    own = {"name": f"rehearsal_{config.name}", "policy.path": "", "data.mirror": mirror, "data.revisions": {}}
    return override(whole, _small(there, second) | HERE | own)


def _is_import(config: Config, step: Step) -> bool:
    return config.for_step(step.name).generate.source == "import"


def _small(settings: Mapping[str, Any], second: str) -> dict[str, Any]:
    """Of these settings those that a rehearsal changes or leaves: without policies, which are made here, `second` for one
    that is named beside the step's own."""
    found = {}
    for name, value in settings.items():
        if name in ("policy.path", "policy.revision") or (name in HERE and name not in MOST):
            continue
        if name.startswith(SECOND.removesuffix("policy")) and not settings.get(SECOND):
            continue
        if name == SECOND:
            value = second
        if name in RESPONSES and value:
            value = max(value // FACTOR, 8)
        elif name in WHOLE and value:
            value = value // FACTOR + PROMPT_TOKENS
        elif name in MOST:
            value = min(value, MOST[name]) if value else MOST[name]
        found[name] = value
    if "evaluate.k" in found:
        found["evaluate.num_samples"] = found["evaluate.k"]
    return found


def write_mirror(folder: Path) -> None:
    """Every known set in its own shape and with all its rows, of sums that anybody can check; once."""
    if (folder / "SHA256SUMS").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sums = []
    for name, known in KNOWN.items():
        if not known.parts and not known.mirrored_as:
            rows = [_row(known, number) for number in range((known.num_rows or (8,))[-1])]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text)
            sums.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}.jsonl\n")
    (folder / "SHA256SUMS").write_text("".join(sums))


def _row(known: KnownSet, number: int) -> dict[str, Any]:
    four = KNOWN["aime24-four"].picked
    answer = four[number] if number < len(four) else 1000 + number
    problem = f"What is {answer - 1} + 1?"
    if known.shape == "options":
        wrong = {f"Incorrect Answer {n}": str(answer + n) for n in (1, 2, 3)}
        return {"Question": problem, "Correct Answer": str(answer), **wrong}
    if known.shape == "program":
        cases = json.dumps([{"input": f"{answer - 1}\n", "output": f"{answer}\n", "testtype": "stdin"}])
        tests = {"public_test_cases": cases, "private_test_cases": "[]", "metadata": "{}"}
        return {"question_content": f"Read a number and print the next one ({number}).", "starter_code": "", **tests}
    asked, gold = dict(known.columns)["problem"], dict(known.columns)["answer"]
    texts = [
        f"<think>\n{answer - 1} and one more.\nWait, that is {said}.\n</think>\nThe sum is \\boxed{{{said}}}."
        for said in (answer, answer + 1)
    ]
    level = KNOWN["math500-level5"]
    return {
        asked: problem,
        gold: str(answer),
        "level": level.level if number < level.num_of_level else 1,
        "generations": texts,
        "begun": [f"{paper_prompts.NO_THINKING_PREFIX} \\boxed{{{said}}}." for said in (answer, answer + 1)],
        "labels": [1, 0],
    }
