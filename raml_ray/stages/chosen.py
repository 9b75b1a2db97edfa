"""Which steps of a run a command is about. Imports nothing heavy: a dry run asks, too."""

from raml_ray.config import Config, ConfigError, Stage, Step


def steps(config: Config, *, only: str | None = None, stage: Stage | None = None) -> list[Step]:
    """All steps, the one named `only`, or those of one stage, in their order.

    Raises: ConfigError if there are none.
    """
    if not config.steps:
        raise ConfigError(f"run {config.name!r} has no steps: name a preset that has (raml show lists them)")
    if only:
        return [config.step(only)]
    found = [step for step in config.steps if stage is None or step.stage == stage]
    if not found:
        raise ConfigError(
            f"run {config.name!r} has no step of stage {stage!r}; it has {', '.join(s.name for s in config.steps)}"
        )
    return found
