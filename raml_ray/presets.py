"""Named complete configurations. Each is a function; `name=value` words on the command line refine it."""

from collections.abc import Callable
from pathlib import Path

from raml_ray.config import Config, ConfigError, Step, hint, load, override, parse_assignments
from raml_ray.presets_paper import paper_sft_sets, paper_trajectories_distill, paper_trajectories_qwen


def miniature() -> Config:
    """The whole way on one machine: an embedded arithmetic task, a policy trained from scratch, every stage."""
    evaluated = ("base", "sft", "grpo_zero", "grpo_cold")
    return override(
        Config(
            name="miniature",
            steps=(
                Step(name="base", stage="base"),
                Step(name="generate", stage="generate", policy="base", overrides={"data.limit": 128}),
                Step(
                    name="teacher",
                    stage="generate",
                    overrides={"generate.source": "oracle", "generate.num_samples": 32, "data.limit": 128},
                ),
                Step(name="verify", stage="verify", data=("teacher", "generate")),
                Step(name="sft", stage="sft", policy="base", data=("verify",)),
                Step(name="grpo_zero", stage="grpo", policy="base"),
                Step(name="grpo_cold", stage="grpo", policy="sft"),
                *(Step(name=f"evaluate_{name}", stage="evaluate", policy=name) for name in evaluated),
                Step(name="analyze", stage="analyze", policy="sft", data=("evaluate_sft",)),
                Step(name="report", stage="report"),
            ),
        ),
        {
            "data.path": "miniature:train",
            "sft.policies": ["oracle"],
            # In synchronous GRPO learner and engine take turns: each may use both cores.
            "engine.cpus_per_engine": 2,
            "train.cpus_per_worker": 2,
            "cluster.num_cpus": 5,
            "evaluate.sets": {name: f"miniature:{name}" for name in ("in_domain", "deeper", "transfer")},
            "report.title": "RaML on the miniature",
        },
    )


def smoke() -> Config:
    """The miniature at the smallest size that still runs every line: seconds of training, figures without meaning."""
    return override(
        miniature(),
        {
            "name": "smoke",
            "base.num_steps": 30,
            "miniature.num_train": 16,
            "miniature.num_eval": 8,
            "generate.num_samples": 2,
            "generate.shard_questions": 8,
            "sft.max_steps": 4,
            "sft.batch_size": 16,
            "grpo.num_steps": 2,
            "grpo.questions_per_step": 4,
            "grpo.num_trajectories": 4,
            "grpo.num_updated": 2,
            "evaluate.num_samples": 4,
            "evaluate.k": 2,
            "analyze.num_questions": 4,
            "train.checkpoint_every": 1,
        },
    )


def miniature_modes() -> Config:
    """One policy that thinks as long as it likes, not at all, or until its thinking is cut (the paper's Fig. 11)."""
    whole = miniature()
    budgets = (8, 16, 32)
    modes = {"thinking": {}, "no_thinking": {"prompt.thinking": False}} | {
        f"budget_{budget}": {"evaluate.thinking_budget": budget} for budget in budgets
    }
    steps = (
        whole.step("base"),
        whole.step("teacher"),
        whole.step("verify").model_copy(update={"data": ("teacher",)}),
        whole.step("sft"),
        *(
            Step(name=f"evaluate_{mode}", stage="evaluate", policy="sft", overrides=overrides)
            for mode, overrides in modes.items()
        ),
        Step(name="report", stage="report"),
    )
    return override(
        whole.model_copy(update={"name": "miniature_modes", "steps": steps}),
        {"report.title": "Thinking, no thinking and cut thinking on the miniature"},
    )


def miniature_science() -> Config:
    """Every instrument on the miniature's fine-tuned policy, along its own correct and wrong trajectories."""
    whole = miniature()
    tried = ("evaluate_sft",)
    instruments = (
        Step(name="lhat", stage="analyze", policy="sft", data=tried),
        _instrument("roles", ("lhat",)),
        _instrument("pseudo_update", tried),
        # The miniature's only other words are its empty slots.
        _instrument("interventions", tried, {"interventions.neutral": ["re: _"]}),
        _instrument("landscape", tried, {"analyze.num_questions": 4}),
    )
    steps = (
        whole.step("base"),
        whole.step("teacher"),
        whole.step("verify").model_copy(update={"data": ("teacher",)}),
        whole.step("sft"),
        whole.step("evaluate_sft"),
        *instruments,
        Step(name="report", stage="report"),
    )
    return override(
        whole.model_copy(update={"name": "miniature_science", "steps": steps}),
        {
            "evaluate.sets": {"in_domain": "miniature:in_domain"},
            "report.title": "What tokens do: the miniature under every instrument",
        },
    )


def _instrument(name: str, data: tuple[str, ...], overrides: dict[str, object] | None = None) -> Step:
    """A step of that instrument, named after it."""
    settings = {"analyze.instrument": name} | (overrides or {})
    return Step(name=name, stage="analyze", policy="sft", data=data, overrides=settings)


GSM8K = "tests/data/gsm8k"
"""The slice that comes with the project. For the whole set: data.path=… (and evaluate.sets.test=…)."""


def gsm8k() -> Config:
    """Every stage on text that nobody here wrote: GSM8K, with a tiny policy of random weights. Its accuracy is chance."""
    return override(
        Config(
            name="gsm8k",
            steps=(
                Step(name="base", stage="base"),
                Step(name="human", stage="generate", overrides={"generate.source": "import"}),
                Step(name="verify", stage="verify", data=("human",)),
                Step(name="sft", stage="sft", policy="base", data=("verify",)),
                Step(
                    name="generate",
                    stage="generate",
                    policy="sft",
                    overrides={"data.path": f"{GSM8K}/test.jsonl", "data.limit": 8},
                ),
                Step(name="verify_generated", stage="verify", data=("generate",)),
                Step(name="evaluate", stage="evaluate", policy="sft"),
                Step(name="analyze", stage="analyze", policy="sft", data=("verify", "verify_generated")),
                Step(name="report", stage="report"),
            ),
        ),
        {
            "base.kind": "random",
            "data.path": f"{GSM8K}/train.jsonl",
            "data.columns": {"problem": "question"},
            "data.answer_pattern": r"####\s*(.+)",
            "data.texts": {"human": "answer"},
            "verify.answer_pattern": r"####\s*(.+)",
            "prompt.template": "plain",
            "prompt.instruction": "Question: {problem}\nAnswer: ",
            "engine.max_model_len": 1024,
            "generate.num_samples": 2,
            "sft.num_trajectories": 1,
            "sft.max_steps": 8,
            "sft.batch_size": 16,
            "sft.max_length": 1024,
            "evaluate.sets": {"test": f"{GSM8K}/test.jsonl"},
            "evaluate.num_samples": 2,
            "evaluate.k": 2,
            "evaluate.limit": 8,
            "analyze.num_questions": 8,
            "analyze.suffix": "\n#### ",
            "report.title": "GSM8K with a policy of random weights",
        },
    )


def gsm8k_solutions() -> Config:
    """Published model solutions of GSM8K as trajectories, our verdicts of them against the published ones."""
    solvers = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    return override(
        Config(
            name="gsm8k_solutions",
            steps=(
                Step(name="solutions", stage="generate", overrides={"generate.source": "import"}),
                Step(name="verify", stage="verify", data=("solutions",)),
                Step(name="report", stage="report"),
            ),
        ),
        {
            "data.path": f"{GSM8K}/example_model_solutions.jsonl",
            "data.columns": {"problem": "question", "answer": "ground_truth"},
            "data.answer_pattern": r"(?m)^A:\s*(.+)$",
            "data.texts": {solver: f"{solver}.solution" for solver in solvers},
            "data.labels": {solver: f"{solver}.is_correct" for solver in solvers},
            "verify.answer_pattern": r"(?m)^A:\s*(.+)$",
            "report.title": "Verdicts on published GSM8K solutions",
        },
    )


PRESETS: dict[str, Callable[[], Config]] = {
    function.__name__: function
    for function in (
        miniature,
        smoke,
        miniature_modes,
        miniature_science,
        gsm8k,
        gsm8k_solutions,
        paper_trajectories_qwen,
        paper_trajectories_distill,
        paper_sft_sets,
    )
}


def by_name(name: str) -> Config:
    """The preset of that name, or the configuration of the config.json at that path.

    Raises: ConfigError with the nearest name.
    """
    if name in PRESETS:
        return PRESETS[name]()
    if name.endswith(".json"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{name}: no such file")
        return load(path.read_text(), name)
    raise ConfigError(
        f"no preset {name!r}{hint(name, list(PRESETS))}; there are {', '.join(PRESETS)}, or give the path of a config.json"
    )


def from_words(words: list[str]) -> Config:
    """`PRESET name=value …` as a configuration."""
    if not words:
        raise ConfigError(f"name a preset ({', '.join(PRESETS)}) or the path of a config.json")
    return override(by_name(words[0]), parse_assignments(words[1:]))
