"""A sweep as a run: a preset's steps once for every setting that reaches them, and the trials that they belong to.

A step is copied for those values of the search space that it, or a step that it builds on, can read; all trials that
agree on these share the copy, those of other grids too. So trajectories are generated once for every training set that is
drawn from them, and a policy that two sweeps need is trained once.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from raml_ray.config import Config, ConfigError, Step, fingerprint, flatten, hint, override, parse_assignments
from raml_ray.settings import GridConfig
from raml_ray.stages.context import READS, probed

SWEEP_FILE = "sweep.json"
"""In the run's folder: the trials, and which of the run's steps are whose."""
PRESET_FILE = "preset.json"
"""Beside it: the configuration as it was given, which makes the same sweep again."""
ATTEMPTS = "attempts.json"
"""Beside it: the seconds of every attempt that came to its end."""
GRID = re.compile(r"grid\((.*)\)", re.DOTALL)
RANGE = re.compile(r"range\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)")
PROBE_DATA = "train.probe_data"
STEP_NAME_CHARS = re.compile(r"[^a-z0-9]+")


class Trial(NamedTuple):
    """One point of the search space: `Trial("num_trajectories_4_seed_0", {"sft.num_trajectories": 4, "seed": 0}, ...)`."""

    name: str
    values: dict[str, Any]
    """Dotted setting -> value."""
    steps: dict[str, str]
    """The preset's name of each step -> the name of the copy that is this trial's."""
    grid: str = ""
    """Of ablate.grids; empty where there is one search space alone."""


class Sweep(NamedTuple):
    """A run that holds every copy of every step, and who needs which."""

    config: Config
    trials: tuple[Trial, ...]

    def shared(self) -> list[str]:
        """The steps that more than one trial needs, and what their learners are probed with, in the order in which they
        can be run."""
        users = Counter(name for trial in self.trials for name in set(trial.steps.values()))
        wanted = {name for name, count in users.items() if count > 1}
        for step in reversed(self.config.steps):
            if step.name in wanted:
                wanted |= {step.policy, *step.data, probed(self.config, step)}
        return [step.name for step in self.config.steps if step.name in wanted]

    def own(self, trial: Trial) -> list[str]:
        """The steps that this trial alone needs, in the order in which they can be run."""
        wanted = set(trial.steps.values()) - set(self.shared())
        return [step.name for step in self.config.steps if step.name in wanted]


def parsed(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """`name=value` words as settings, and those of the form `name=grid(1,2,4)` or `name=range(3)` as a search space.

    Raises: ConfigError for a word of neither form, or a search over nothing.
    """
    fixed, space = [], {}
    for word in words:
        name, _, text = word.partition("=")
        if found := RANGE.fullmatch(text.strip()):
            first, last = (0, found[1]) if found[2] is None else (found[1], found[2])
            space[name] = list(range(int(first), int(last)))
        elif found := GRID.fullmatch(text.strip()):
            texts = [part.strip() for part in _parts(found[1]) if part.strip()]
            space[name] = [parse_assignments([f"{name}={part}"])[name] for part in texts]
        else:
            fixed.append(word)
            continue
        if not space[name]:
            raise ConfigError(f"{word!r} searches over nothing: give values, for example {name}=grid(1,2,4)")
    return parse_assignments(fixed), space


def _parts(text: str) -> Iterator[str]:
    """Between the commas that stand in no brackets."""
    depth, start = 0, 0
    for place, char in enumerate(text):
        depth += (char in "[({") - (char in "])}")
        if char == "," and not depth:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def expanded(config: Config, space: Mapping[str, Sequence[Any]]) -> Sweep:
    """The run of all trials of a search space, or of every grid times that space, over a preset; its report is the sweep's.

    A setting that a step overrides itself is not varied there; `steps.NAME.SETTING` is varied in that step alone.

    Raises: ConfigError for an unknown setting or a value that does not fit it, and for a setting that no step reads.
    """
    grids = dict(config.ablate.grids) or {"": GridConfig()}
    copies: dict[str, Step] = {}  # by what they do
    trials = [trial for name, grid in grids.items() for trial in _trials(config, name, grid, space, copies)]
    reports = [step for step in config.steps if step.stage == "report"] or [Step(name="report", stage="report")]
    whole = config.model_copy(update={"steps": ()})
    merged = Config.model_validate(whole.model_dump() | {"steps": [*copies.values(), *reports[-1:]]})
    return Sweep(override(merged, {}), tuple(trials))


def _trials(
    config: Config, grid_name: str, grid: GridConfig, space: Mapping[str, Sequence[Any]], copies: dict[str, Step]
) -> Iterator[Trial]:
    """The trials of one grid; the copies that they need are added to those that there are, by what they do."""
    space = dict(grid.space) | dict(space)
    if not space:
        raise ConfigError("a sweep needs a search space: sft.num_trajectories=grid(1,2,4) or ablate.space={...}")
    space = {name: [_typed(config, name, value) for value in values] for name, values in space.items()}
    labels = {name: _labels(name, values) for name, values in space.items()}
    steps = _wanted(config, grid_name, grid)
    reach = _reach(steps, list(space))
    for name in space:
        if not any(name in names for names in reach.values()):
            raise ConfigError(
                f"{name} is varied, but no step of run {config.name!r} reads it: its trials would be alike"
            )
    for point in itertools.product(*(range(len(values)) for values in space.values())):
        values = {name: space[name][place] for name, place in zip(space, point, strict=True)}
        told = {name: labels[name][place] for name, place in zip(space, point, strict=True)}
        names: dict[str, str] = {}
        for step in steps:
            slug = _slug(step.name, {name: told[name] for name in space if name in reach[step.name]})
            copy = _copy(step, slug, names, values, reach[step.name], probed(config, step))
            names[step.name] = copies.setdefault(_does(config, step, copy), copy).name
        yield Trial(_slug(grid_name, told), values, names, grid_name)


def _wanted(config: Config, grid_name: str, grid: GridConfig) -> list[Step]:
    """The grid's steps and all that they build on, in their order, without reports."""
    steps = [step for step in config.steps if step.stage != "report"]
    if not grid.steps:
        return steps
    there = {step.name for step in steps}
    if unknown := set(grid.steps) - there:
        name = min(unknown)
        raise ConfigError(
            f"ablate.grids.{grid_name}.steps: run {config.name!r} has no step {name!r}{hint(name, sorted(there))}"
        )
    wanted = set(grid.steps)
    for step in reversed(steps):
        if step.name in wanted:
            wanted |= {name for name in (step.policy, *step.data, probed(config, step)) if name}
    return [step for step in steps if step.name in wanted]


def _does(config: Config, step: Step, copy: Step) -> str:
    """The same for two copies of a step that differ at most in settings that are the run's own anyway, or in what their
    learners are probed with, which changes no policy."""
    run = flatten(config)
    changed = {name: value for name, value in copy.overrides.items() if name not in run or run[name] != value}
    own = {name: value for name, value in changed.items() if name != PROBE_DATA}
    return fingerprint([step.name, copy.policy, copy.data, sorted(own.items())])


def _typed(config: Config, name: str, value: Any) -> Any:
    """The value as the setting holds it. Raises: ConfigError if it is none, or does not fit."""
    changed = override(config, {name: value})
    if not name.startswith("steps."):
        return flatten(changed)[name]
    _, step, inner = name.split(".", 2)
    return flatten(changed.for_step(step))[inner]


def _reach(steps: Sequence[Step], space: Sequence[str]) -> dict[str, list[str]]:
    """Which varied settings decide each step, by its name: those that it can read, and those that reach its inputs."""
    reach: dict[str, list[str]] = {}
    for step in steps:
        inherited = {name for other in (step.policy, *step.data) if other for name in reach[other]}
        reach[step.name] = [name for name in space if name in inherited or _reads(step, name)]
    return reach


def _reads(step: Step, name: str) -> bool:
    if name.startswith("steps."):
        return name.split(".")[1] == step.name
    return name.split(".")[0] in READS[step.stage] and name not in step.overrides


def _copy(
    step: Step, name: str, names: Mapping[str, str], values: Mapping[str, Any], reach: Sequence[str], probe: str
) -> Step:
    """The step under its new name, with what is varied in it, and the copies of what it builds on and is probed with."""
    probe_data = {PROBE_DATA: names.get(probe, probe)} if probe else {}
    own = {varied: values[varied] for varied in reach if _reads(step, varied)}
    prefix = f"steps.{step.name}."
    return Step(
        name=name,
        stage=step.stage,
        policy=names.get(step.policy, ""),
        data=tuple(names[other] for other in step.data),
        overrides=step.overrides | probe_data | {varied.removeprefix(prefix): value for varied, value in own.items()},
    )


def _labels(name: str, values: Sequence[Any]) -> list[str]:
    """What each value is called in names; where two would be called alike, they are numbered.

    Raises: ConfigError if a value is there twice.
    """
    if any(value in values[:place] for place, value in enumerate(values)):
        raise ConfigError(f"{name} is varied over {list(values)}, in which a value stands twice: name each once")
    texts = [re.sub(r"(?<![\w.])-(?=[\d.])", "minus_", str(value).lower()) for value in values]
    labels = [STEP_NAME_CHARS.sub("_", text).strip("_") for text in texts]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label}_{number}".strip("_") for number, label in enumerate(labels, 1)]


def _slug(start: str, labels: Mapping[str, str]) -> str:
    """A name that says which values it stands for: `sft_num_trajectories_4_seed_0`."""
    parts = [start] if start else []
    for name, label in labels.items():
        parts += [name.rsplit(".", 1)[-1], label]
    return "_".join(part for part in parts if part)
