"""The configuration tree: frozen, two levels deep, one dotted name per setting.

A setting's dotted name (`grpo.num_updated`) is the same on the command line, in a Tune search space, in MLflow's
parameters and in errors. Importing this module costs pydantic alone, so that `--help` and errors answer at once.
"""

import contextlib
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from raml_ray import checks, checks_instruments
from raml_ray.published import PUBLISHED
from raml_ray.settings import (
    AblateConfig,
    AnalyzeConfig,
    AnswersConfig,
    BaseConfig,
    ClusterConfig,
    DataConfig,
    DrillConfig,
    EngineConfig,
    EvaluateConfig,
    FeaturesConfig,
    GenerateConfig,
    GrpoConfig,
    InterventionsConfig,
    LandscapeConfig,
    LhatConfig,
    MiniatureConfig,
    ModesConfig,
    PolicyConfig,
    PromptConfig,
    PseudoUpdateConfig,
    RealUpdatesConfig,
    ReportConfig,
    RolesConfig,
    Settings,
    SftConfig,
    ShorterConfig,
    TrackingConfig,
    TrainConfig,
    VerifyConfig,
)

Stage = Literal["base", "generate", "verify", "sft", "grpo", "evaluate", "analyze", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)
PAIR = re.compile(r"\(?\s*(\d+)\s*,\s*(\d+)\s*\)?")
"""The fewest and the most engines, as `(1,4)` or `1,4`."""


class ConfigError(ValueError):
    """A setting, preset or step that a person can correct; the message says how."""


class Step(Settings):
    """One named step of a run: a stage, the earlier steps it builds on, and what it sets differently."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    stage: Stage
    policy: str = ""
    """The step whose policy this one takes; empty is `policy.path`."""
    data: tuple[str, ...] = ()
    """The steps whose tables this one takes; empty is the question set `data.path`."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted settings that hold in this step only."""


class Config(Settings):
    """Everything that decides what a run does."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's name: its folder under `root`."""
    root: str = "runs"
    """Where runs are kept: a local folder or an fsspec URL."""
    seed: int = Field(0, ge=0)
    steps: tuple[Step, ...] = ()

    miniature: MiniatureConfig = MiniatureConfig()
    base: BaseConfig = BaseConfig()
    data: DataConfig = DataConfig()
    policy: PolicyConfig = PolicyConfig()
    prompt: PromptConfig = PromptConfig()
    engine: EngineConfig = EngineConfig()
    generate: GenerateConfig = GenerateConfig()
    verify: VerifyConfig = VerifyConfig()
    train: TrainConfig = TrainConfig()
    sft: SftConfig = SftConfig()
    grpo: GrpoConfig = GrpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    analyze: AnalyzeConfig = AnalyzeConfig()
    lhat: LhatConfig = LhatConfig()
    pseudo_update: PseudoUpdateConfig = PseudoUpdateConfig()
    real_updates: RealUpdatesConfig = RealUpdatesConfig()
    roles: RolesConfig = RolesConfig()
    landscape: LandscapeConfig = LandscapeConfig()
    interventions: InterventionsConfig = InterventionsConfig()
    answers: AnswersConfig = AnswersConfig()
    modes: ModesConfig = ModesConfig()
    shorter: ShorterConfig = ShorterConfig()
    features: FeaturesConfig = FeaturesConfig()
    report: ReportConfig = ReportConfig()
    ablate: AblateConfig = AblateConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    drill: DrillConfig = DrillConfig()

    @model_validator(mode="after")
    def _check_settings_that_depend_on_each_other(self) -> Self:
        checks.counts(self.grpo, self.evaluate, self.sft)
        checks.policy_gradient(self.grpo, self.data)
        checks.miniature(self.miniature, self.base, self.steps)
        checks.pattern("data.answer_pattern", self.data.answer_pattern)
        checks.pattern("verify.answer_pattern", self.verify.answer_pattern)
        checks.outer_loss(self.sft)
        checks.adapters(self.train)
        checks.parallel_sizes(self.engine)
        checks.learners(self.train)
        checks.response_ends(self.generate, self.evaluate, self.engine)
        checks.set_names(self.evaluate)
        checks.learner_probe(self.train)
        checks.asynchrony(self.grpo)
        checks.weight_sync(self.grpo, self.engine, self.train)
        checks_instruments.instrument(self.analyze)
        checks_instruments.spread(self.analyze, self.landscape)
        checks.published(self.evaluate, PUBLISHED.get(self.evaluate.published))
        checks_instruments.categories(self.roles)
        checks_instruments.interventions(self.analyze, self.interventions, self.roles)
        checks_instruments.landscape(self.landscape)
        checks_instruments.modes(self.analyze, self.modes, self.prompt)
        checks_instruments.shorter(self.shorter)
        checks_instruments.features(self.features)
        checks.engines("generate", self.generate.num_engines)
        checks.engines("evaluate", self.evaluate.num_engines)
        checks.engines("answers", self.answers.num_engines)
        checks.drill(self.drill)
        self._check_steps()
        return self

    def _check_steps(self) -> None:
        seen: set[str] = set()
        for step in self.steps:
            if step.name in seen:
                raise ValueError(f"steps: two are named {step.name!r}; a step's name is its folder")
            for other in (step.policy, *step.data):
                if other and other not in seen:
                    raise ValueError(
                        f"steps: {step.name!r} builds on {other!r}, which is no earlier step"
                        + hint(other, sorted(seen))
                    )
            seen.add(step.name)

    def step(self, name: str) -> Step:
        """The step of that name. Raises: ConfigError with the nearest name."""
        for step in self.steps:
            if step.name == name:
                return step
        names = [step.name for step in self.steps]
        raise ConfigError(f"no step {name!r} in run {self.name!r}{hint(name, names)}; it has: {', '.join(names)}")

    def for_step(self, name: str) -> "Config":
        """The configuration that holds inside a step: this one with the step's overrides, and without steps, since what
        holds in one says nothing of another."""
        try:
            return override(self.model_copy(update={"steps": ()}), self.step(name).overrides)
        except ConfigError as error:
            raise ConfigError(f"in step {name!r}: {error}") from None


def hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def flatten(config: Settings, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of every setting (a mapping or a list is one leaf)."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Settings):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy with dotted settings changed, validated as a whole.

    One entry of a mapping is `data.columns.problem`; a setting in one step only is `steps.sft.data.limit`.

    Raises: ConfigError that names each unknown setting with the nearest known one, or each value that does not fit.
    """
    tree = config.model_dump(mode="python")
    tree["steps"] = [step | {"overrides": dict(step["overrides"])} for step in tree["steps"]]
    known = flatten(config)
    for name, value in changes.items():
        parts = name.split(".")
        entry = ".".join(parts[:2])
        if parts[0] == "steps" and len(parts) > 2:
            place = config.steps.index(config.step(parts[1]))
            tree["steps"][place]["overrides"][".".join(parts[2:])] = value
            continue
        if name in known:
            path = parts
        elif len(parts) > 2 and isinstance(known.get(entry), dict):
            path = [*parts[:2], ".".join(parts[2:])]
        elif name in type(config).model_fields:
            raise ConfigError(f"{name!r} is a group of settings, not one: set {name}.SETTING=VALUE")
        else:
            raise ConfigError(f"no setting {name!r}{hint(name, list(known))}")
        node = tree
        for part in path[:-1]:
            node[part] = dict(node[part])
            node = node[part]
        node[path[-1]] = value
    changed = validated(tree)
    for step in changed.steps:
        if step.overrides:
            changed.for_step(step.name)  # for its errors: a step must not fail hours later over a typo
    return changed


def validated(tree: Mapping[str, Any]) -> Config:
    """The tree as a Config. Raises: ConfigError with one line per value that does not fit."""
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list(flatten(Config()))
        return f"no setting {name!r}{hint(name, known)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}={problem['input']!r}: {message}" if name else message


def parse_assignments(arguments: Sequence[str]) -> dict[str, Any]:
    """`name=value` words as a mapping. A value that starts like JSON (`[`, `{`, a quote, `null`) and is JSON is read as JSON.

    Numbers of engines may be written `(1,4)` or `1,4`, too.
    """
    changes: dict[str, Any] = {}
    for argument in arguments:
        name, sign, text = argument.partition("=")
        if not sign or not name:
            raise ConfigError(f"{argument!r} is not of the form name=value (for example grpo.num_updated=4)")
        changes[name] = text
        if text == "null" or text[:1] in ("[", "{", '"'):
            # What is no JSON after all (a prompt that begins with {problem}) is text; its setting's type has the last word.
            with contextlib.suppress(json.JSONDecodeError):
                changes[name] = json.loads(text)
        elif name.endswith(".num_engines") and (pair := PAIR.fullmatch(text)):
            changes[name] = [int(number) for number in pair.groups()]
    return changes


def dump(config: Settings) -> str:
    """The configuration as JSON, usable as a preset."""
    return config.model_dump_json(indent=2)


def load(text: str, source: str) -> Config:
    """The Config of a config.json. Raises: ConfigError if it is none."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} holds no configuration: expected an object, got {type(tree).__name__}")
    return override(validated(tree), {})  # its steps' overrides are checked too


def fingerprint(values: Any) -> str:
    """Twelve hex digits of the values' canonical JSON."""
    text = json.dumps(values, sort_keys=True, default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _jsonable(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    raise TypeError(f"{value!r} has no canonical JSON")


def differences(old: Config, new: Config) -> Iterator[str]:
    """One line per setting that differs, `name: old -> new`."""
    was, now = flatten(old), flatten(new)
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            yield f"{name}: {was.get(name)!r} -> {now.get(name)!r}"
