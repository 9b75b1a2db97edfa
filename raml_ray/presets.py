"""Named complete configurations. Each is a function; `name=value` words on the command line refine it."""

from collections.abc import Callable
from pathlib import Path

from raml_ray.config import Config, ConfigError, Step, hint, load, override, parse_assignments
from raml_ray.presets_between import BETWEEN
from raml_ray.presets_figures import FIGURES
from raml_ray.presets_miniature import miniature, miniature_modes, miniature_open, miniature_science, smoke
from raml_ray.presets_paper import PAPER, PaperPreset
from raml_ray.presets_sweeps import (
    miniature_domains,
    miniature_grpo_matched,
    miniature_grpo_matched_32,
    miniature_grpo_selection,
    miniature_grpo_trajectories,
    miniature_grpo_trajectories_32,
    miniature_length,
    miniature_outer_losses,
    miniature_policies,
    miniature_reproduction,
    miniature_reproduction_quick,
    miniature_sft_selection,
    miniature_sft_trajectories,
)

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


def gsm8k_science() -> Config:
    """Every instrument on published model solutions of GSM8K, with the policy at policy.path.

    Nothing here is of the miniature: partial results are numbers behind a `=`, thinking ends where the text does, and the
    two domains are the model solutions and the ones that people wrote (questions have no domain of their own).
    """
    solutions = gsm8k_solutions()
    people = {
        "generate.source": "import",
        "data.path": f"{GSM8K}/train.jsonl",
        "data.columns": {"problem": "question"},
        "data.answer_pattern": r"####\s*(.+)",
        "data.texts": {"human": "answer"},
        "data.labels": {},
        "verify.answer_pattern": r"####\s*(.+)",
    }
    judged = ("verify",)

    def instrument(name: str, data: tuple[str, ...], **settings: object) -> Step:
        overrides = {"analyze.instrument": name} | {key.replace("__", "."): value for key, value in settings.items()}
        return Step(name=name, stage="analyze", data=data, overrides=overrides)

    steps = (
        solutions.step("solutions"),
        solutions.step("verify"),
        Step(name="human", stage="generate", overrides=people),
        Step(name="verify_human", stage="verify", data=("human",), overrides=people),
        instrument("lhat", judged),
        instrument("roles", ("lhat",)),
        # These solutions hardly reflect; they say "so" and "then".
        instrument("interventions", judged, interventions__category="transition", interventions__num_samples=2),
        instrument("pseudo_update", judged, pseudo_update__num_positions=8),
        instrument("real_updates", judged),
        instrument("modes", judged),
        instrument("shorter", judged),
        instrument("landscape", judged, analyze__num_questions=2, landscape__num_points=5),
        instrument("features", (*judged, "verify_human"), features__by="source", analyze__num_questions=20),
        Step(name="report", stage="report"),
    )
    return override(
        solutions.model_copy(update={"name": "gsm8k_science", "steps": steps}),
        {
            "prompt.template": "plain",
            "prompt.instruction": "Question: {problem}\nAnswer: ",
            "analyze.suffix": "\nA: ",
            "analyze.until": "",
            "analyze.num_questions": 8,
            "answers.cut_text": "\nA: ",
            # In Qwen's tokens these solutions think 30 and more, half of them over 116: the budgets cut 99, 88 and 40 % of them.
            "modes.budgets": [32, 64, 128],
            "engine.max_model_len": 1024,
            "report.title": "Every instrument on GSM8K solutions",
        },
    )


PRESETS: dict[str, Callable[[], Config]] = (
    {
        function.__name__: function
        for function in (
            miniature,
            smoke,
            miniature_modes,
            miniature_science,
            miniature_open,
            gsm8k,
            gsm8k_solutions,
            gsm8k_science,
            miniature_policies,
            miniature_sft_trajectories,
            miniature_grpo_trajectories,
            miniature_grpo_trajectories_32,
            miniature_grpo_matched,
            miniature_grpo_matched_32,
            miniature_length,
            miniature_sft_selection,
            miniature_grpo_selection,
            miniature_domains,
            miniature_outer_losses,
            miniature_reproduction,
            miniature_reproduction_quick,
        )
    }
    | BETWEEN
    | {name: preset.config for name, preset in (PAPER | FIGURES).items()}
)


def of_paper(name: str) -> PaperPreset:
    """The paper's preset of that name, with where its settings come from. Raises: ConfigError with the nearest name."""
    there = PAPER | FIGURES
    if name not in there:
        raise ConfigError(f"{name!r} is no preset of the paper{hint(name, list(there))}; these are {', '.join(there)}")
    return there[name]


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
