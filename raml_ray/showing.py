"""A configuration as a person reads it: every setting with what it means, what the paper does not state, what it will take."""

import re
from collections.abc import Iterator, Sequence

from raml_ray import presets
from raml_ray.config import Config, ConfigError, flatten
from raml_ray.paper_choices import WITHOUT_SETTING, Choice, not_stated
from raml_ray.settings import Settings


def plan(config: Config, gpus: str, response: float) -> str:
    """What the preset will take on these devices."""
    from raml_ray.formulas import cost
    from raml_ray.stages import plan as planning
    from raml_ray.stages import sweep
    from raml_ray.stages.plan_parts import Assumed

    count, _, name = gpus.partition("x")
    if not count.isdigit() or not int(count) or not 0 < response <= 1:
        raise ConfigError(f"--gpus {gpus} --response {response:g}: give devices as 8xH100, and a share in (0, 1]")
    try:
        device = cost.device(name)
    except ValueError as error:
        raise ConfigError(f"--gpus {gpus}: {error}") from None
    assumed = Assumed(int(count), device, response)
    if config.ablate.space or config.ablate.grids:
        config = sweep.expanded(config, config.ablate.space).config
    return "\n".join(planning.told(config, assumed)) + "\n"


def describe(config: Config) -> str:
    """One line per setting: its dotted name, its value, and what it means."""
    meanings = _meanings(type(config))
    return "\n".join(f"{name} = {value!r}\n    {meanings[name]}" for name, value in flatten(config).items())


def _meanings(node: type[Settings], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in node.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            found |= _meanings(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = " ".join((field.description or "").split())
    return found


def unstated(name: str, config: Config) -> str:
    """What decides the preset's results and is not stated in the paper: chosen for a reason, or at our default."""
    chosen = presets.of_paper(name).choices
    lines = list(not_stated(chosen))
    lines.append("\nAt this project's defaults, since neither the paper nor its code speaks of them:")
    lines += [f"{setting} = {value!r}" for setting, value in at_default(config, chosen)]
    if any(step.stage == "grpo" for step in config.steps):
        lines += ["\nAnd, of no setting:", *WITHOUT_SETTING]
    return "\n".join(lines) + "\n"


def at_default(config: Config, chosen: Sequence[Choice]) -> Iterator[tuple[str, object]]:
    """The settings that decide what the steps make, of which none of the choices speaks."""
    from raml_ray.stages.context import deciding

    named = {re.sub(r"^steps\.\w+\.", "", choice.setting) for choice in chosen}
    found: dict[str, object] = {}
    for step in config.steps:
        own = config.for_step(step.name)
        if step.stage != "generate" or own.generate.source == "policy":  # what is taken over was sampled elsewhere
            found |= deciding(own, step.stage)
    for setting, value in sorted(found.items()):
        if setting not in named and not setting.startswith(("miniature.", "report.", "data.columns", "data.texts")):
            yield setting, value
