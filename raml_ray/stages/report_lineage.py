"""Where a policy comes from: the training stages behind it, and the recipe that two policies may share."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from raml_ray.config import fingerprint

LINEAGE_NAMES = {(): "base", ("sft",): "SFT", ("grpo",): "Zero-GRPO", ("sft", "grpo"): "SFT + GRPO"}


class Origin(NamedTuple):
    """What a step was made of."""

    stage: str
    policy: str
    """The step (or path) whose policy it takes; empty if none."""
    data: Sequence[str]
    settings: Mapping[str, Any]
    """Dotted name -> value, of the settings that decide its result; empty for a step that has not run."""


Origins = Mapping[str, Origin]


def lineage(policy: str, origins: Origins) -> tuple[str, ...]:
    """Training stages from the base to the policy of that step; empty for a policy that no training step made."""
    stages: list[str] = []
    while policy in origins:
        stage, policy = origins[policy].stage, origins[policy].policy
        if stage in ("sft", "grpo"):
            stages.append(stage)
    return tuple(reversed(stages))


def ancestors(policy: str, origins: Origins) -> set[str]:
    """The steps (or the path) that the policy of that step descends from."""
    found = set()
    while policy in origins:
        policy = origins[policy].policy
        found.add(policy)
    return found


def lineage_name(stages: tuple[str, ...]) -> str:
    return LINEAGE_NAMES.get(stages) or " + ".join(stage.upper() for stage in stages)


def recipe(step: str, origins: Origins, varied: str) -> str:
    """The fingerprint of all that made the step's result but the setting `varied`, its inputs' own makings included.

    Equal for two steps that differ in that setting alone, whatever they are called.
    """
    if step not in origins:
        return step
    origin = origins[step]
    made = {
        "stage": origin.stage,
        "settings": {name: value for name, value in origin.settings.items() if name != varied},
        "policy": recipe(origin.policy, origins, varied),
        "data": [recipe(name, origins, varied) for name in origin.data],
    }
    return fingerprint(made)


def setting_behind(policy: str, origins: Origins, setting: str, given: Mapping[str, Any]) -> list[Any]:
    """The setting's values in the steps of its stage that made the policy: the step itself, or those its data are of.

    `sft.num_trajectories` -> [32]; `generate.oracle_length` -> one entry per step whose trajectories it learned from.
    Steps in which a setting of `given` has another value do not count: the setting has no effect there.
    """
    if policy not in origins:
        return []
    origin = origins[policy]
    if origin.stage != setting.split(".")[0]:
        return [value for name in origin.data for value in setting_behind(name, origins, setting, given)]
    holds = all(origin.settings.get(name) == value for name, value in given.items())
    return [origin.settings[setting]] if holds and setting in origin.settings else []
