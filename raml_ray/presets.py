"""Named complete configurations. Each is a function; `name=value` words on the command line refine it."""

from collections.abc import Callable
from pathlib import Path

from raml_ray.config import Config, ConfigError, Step, hint, load, override, parse_assignments


def miniature() -> Config:
    """The whole way on one machine: an embedded arithmetic task, a policy trained from scratch, every stage."""
    evaluated = ("base", "sft", "grpo_zero", "grpo_cold")
    return override(
        Config(
            name="miniature",
            steps=(
                Step(name="base", stage="base"),
                Step(name="generate", stage="generate", policy="base"),
                Step(name="teacher", stage="generate", policy="base", overrides={"generate.source": "oracle", "generate.num_samples": 32}),
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


PRESETS: dict[str, Callable[[], Config]] = {function.__name__: function for function in (miniature, smoke)}


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
    raise ConfigError(f"no preset {name!r}{hint(name, list(PRESETS))}; there are {', '.join(PRESETS)}, or give the path of a config.json")


def from_words(words: list[str]) -> Config:
    """`PRESET name=value …` as a configuration."""
    if not words:
        raise ConfigError(f"name a preset ({', '.join(PRESETS)}) or the path of a config.json")
    return override(by_name(words[0]), parse_assignments(words[1:]))
