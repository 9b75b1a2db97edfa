"""Where a sweep may end trials that are behind, and where that would spoil what it is to show."""

from raml_ray import recipes
from raml_ray.config import ConfigError
from raml_ray.settings import AblateConfig
from raml_ray.stages.sweep import Sweep

REWARD_OF = ("data", "miniature", "prompt", "verify", "engine")
"""Nodes that decide which questions are asked, how, and what counts as right."""
NO_COMPARISON = {
    "seed": "the seeds that learn slowly would be ended, and a mean over seeds be one over lucky ones",
    "grpo.reward": "it decides what the reward is",
    "grpo.layout": "it decides what the reward is",
    "grpo.temperature": "rewards at another temperature are of other responses",
    "grpo.max_tokens": "rewards of responses that are cut elsewhere are other rewards",
    "grpo.num_steps": "the longer run is the same run until the shorter one ends",
}


def check(sweep: Sweep, settings: AblateConfig) -> None:
    """Refuse ablate.scheduler=asha where what it compares means something else in every trial.

    Raises: ConfigError with the setting, the reason and the remedy.
    """
    if settings.scheduler != "asha":
        return
    rewards = set()
    for trial in sweep.trials:
        for name in trial.values:
            setting = ".".join(name.split(".")[2:]) if name.startswith("steps.") else name
            why = NO_COMPARISON.get(setting)
            if setting.split(".")[0] in REWARD_OF:
                why = "it decides which questions are asked, or what counts as right"
            if why:
                raise ConfigError(f"ablate.scheduler=asha over {name}: {why}; set ablate.scheduler=none")
        own = [name for name in sweep.own(trial) if sweep.config.step(name).stage == "grpo"]
        if len(own) != 1:
            raise ConfigError(
                f"ablate.scheduler=asha compares {settings.metric}, and trial {trial.name} has {len(own)} GRPO steps of its"
                " own, not one: set ablate.scheduler=none, or vary what reaches one alone"
            )
        recipe = recipes.of(sweep.config.for_step(own[0]).grpo)
        rewards.add((recipe.max_refills, recipe.overlong_tokens))
    if len(rewards) > 1:
        raise ConfigError(
            "ablate.scheduler=asha over rewards of different responses: the trials' grpo.max_refills and"
            f" grpo.overlong_tokens, which grpo.loss decides where they are not set, are {sorted(rewards)}; set both, or"
            " ablate.scheduler=none"
        )
