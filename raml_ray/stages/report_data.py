"""What a report shows, read from a run's folder: every finished step, and every evaluated policy by its lineage."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from raml_ray import storage
from raml_ray.config import Config
from raml_ray.formulas.metrics import Interval
from raml_ray.metrics_file import read_metrics
from raml_ray.stages.report_lineage import Origin, lineage, lineage_name
from raml_ray.stages.sweep import SWEEP_FILE
from raml_ray.storage import SUMMARY, Folder

METRICS = ("accuracy", "pass_at_k", "mg_pass_at_k")
PROTOCOL = (
    "evaluate.k",
    "evaluate.num_samples",
    "evaluate.temperature",
    "evaluate.top_p",
    "evaluate.top_k",
    "evaluate.min_p",
    "evaluate.max_tokens",
    "evaluate.stop",
    "evaluate.thinking_budget",
    "evaluate.budget_text",
    "evaluate.budget_answer_tokens",
    "engine.max_model_len",
    "verify.judge",
    "verify.answer_pattern",
    "prompt.template",
    "prompt.system",
    "prompt.instruction",
    "prompt.thinking",
    "prompt.response_prefix",
)
"""Settings that two evaluations must share to be compared: how answers were sampled, prompted and read."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """A finished step, as its folder tells it."""

    name: str
    stage: str
    policy: str
    """The step (or path) whose policy it took; empty if none."""
    data: tuple[str, ...]
    fingerprint: str
    counts: Mapping[str, int]
    figures: Mapping[str, Any]
    seconds: float
    versions: Mapping[str, str]
    peak_memory_gib: float | None
    metrics: Sequence[Mapping[str, float]]
    """Lines of metrics.jsonl."""
    settings: Mapping[str, Any]
    """Dotted name -> value, of the settings that decide its result (manifest.json)."""
    folder: Folder

    @property
    def instrument(self) -> str:
        """What an analyze step measured with."""
        return str(self.settings["analyze.instrument"])


class SetResult(NamedTuple):
    """One policy on one question set; all but the tokens are fractions in [0, 1]."""

    num_questions: int
    intervals: Mapping[str, Interval]
    """By metric: accuracy, pass_at_k, g_pass_at_k_0.5, g_pass_at_k_1.0, mg_pass_at_k; without those that no question
    had enough samples for."""
    mean_tokens: float | None
    truncated_fraction: float | None
    unreadable_fraction: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluate step: a policy on its sets."""

    step: str
    policy: str
    lineage: tuple[str, ...]
    """Training stages that made the policy, first to last; empty is the base."""
    label: str
    k: int
    num_samples: int
    temperature: float
    sets: Mapping[str, SetResult]
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Set -> metric -> question id -> value in [0, 1]."""
    protocol: Mapping[str, Any]
    """PROTOCOL's settings."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder, read."""

    config: Config
    steps: tuple[StepResult, ...]
    unfinished: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    is_sweep: bool = False
    varied: frozenset[str] = frozenset()
    """Steps that belong to a sweep's trials at other settings (seeds apart) than the run's own, and to no other trial."""

    def of_stage(self, stage: str) -> list[StepResult]:
        return [step for step in self.steps if step.stage == stage]

    def of_instrument(self, instrument: str) -> list[StepResult]:
        return [step for step in self.of_stage("analyze") if step.instrument == instrument]

    @property
    def origins(self) -> dict[str, Origin]:
        """Every step by name: the finished ones as they were made, the others as they are planned."""
        return _origins(self.config, self.steps)

    def lineage_of(self, step: str) -> tuple[str, ...]:
        """Training stages from the base to the policy that the step makes."""
        return lineage(step, self.origins)

    def label_of(self, step: str) -> str:
        """A training step's name on the page: its lineage where that is known, with the step's own name."""
        name = lineage_name(self.lineage_of(step))
        return name if name == step else f"{name} ({step})"


def read(run_folder: Folder, config: Config) -> Run:
    """Everything that the run's finished steps say of themselves; unfinished ones by name."""
    known = [step.name for step in config.steps if step.stage != "report"]
    others = [name for name in run_folder.names() if name not in known and (run_folder / name).exists(SUMMARY)]
    steps = [_step(run_folder / name) for name in (*known, *others) if (run_folder / name).exists(SUMMARY)]
    steps = [step for step in steps if step.stage != "report"]
    finished = {step.name for step in steps}
    unfinished = tuple(name for name in known if name not in finished)
    origins = _origins(config, steps)
    evaluations = [_evaluation(step, lineage(step.policy, origins)) for step in steps if step.stage == "evaluate"]
    trials = run_folder.read_json(SWEEP_FILE)["trials"] if run_folder.exists(SWEEP_FILE) else []
    own = {step for trial in trials if set(trial["values"]) <= {"seed"} for step in trial["steps"].values()}
    varied = frozenset(step for trial in trials for step in trial["steps"].values()) - own
    return Run(config, tuple(steps), unfinished, tuple(labelled(evaluations)), bool(trials), varied)


def interval(value: Any) -> Interval | None:
    """An Interval out of JSON, which holds it as a mapping or as a list of three; None stays None."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return Interval(float(value["mean"]), float(value["low"]), float(value["high"]))
    mean, low, high = value
    return Interval(float(mean), float(low), float(high))


def _origins(config: Config, steps: Sequence[StepResult]) -> dict[str, Origin]:
    planned = {step.name: Origin(str(step.stage), step.policy, step.data, {}) for step in config.steps}
    return planned | {step.name: Origin(step.stage, step.policy, step.data, step.settings) for step in steps}


def _step(folder: Folder) -> StepResult:
    summary = storage.summary(folder)
    peak = summary.get("peak_memory_gib")
    manifest = folder.read_json("manifest.json") if folder.exists("manifest.json") else {}
    return StepResult(
        name=folder.name,
        stage=str(summary["stage"]),
        policy=str(summary.get("policy") or ""),
        data=tuple(summary.get("data") or ()),
        fingerprint=str(summary["fingerprint"]),
        counts={name: int(count) for name, count in summary["counts"].items()},
        figures=summary["figures"],
        seconds=float(summary["seconds"]["total"]),
        versions=summary.get("versions") or {},
        peak_memory_gib=None if peak is None else float(peak),
        metrics=read_metrics(folder),
        settings=manifest.get("settings") or {},
        folder=folder,
    )


def _evaluation(step: StepResult, stages: tuple[str, ...]) -> Evaluation:
    figures = step.figures
    values: dict[str, dict[str, dict[str, float]]] = {}
    if step.folder.exists("per_question.parquet"):
        columns = ["set", "question_id", *METRICS]
        for row in step.folder.read_table("per_question.parquet", columns).to_pylist():
            by_metric = values.setdefault(row["set"], {metric: {} for metric in METRICS})
            for metric in METRICS:
                by_metric[metric][row["question_id"]] = float(row[metric])
    return Evaluation(
        step=step.name,
        policy=step.policy,
        lineage=stages,
        label=lineage_name(stages),
        k=int(figures["k"]),
        num_samples=int(figures["num_samples"]),
        temperature=float(figures["temperature"]),
        sets={name: _set_result(entry) for name, entry in figures["sets"].items()},
        values=values,
        protocol={name: step.settings.get(name) for name in PROTOCOL},
    )


def _set_result(entry: Mapping[str, Any]) -> SetResult:
    found = {name: interval(value) for name, value in entry.items() if isinstance(value, Mapping | list)}
    return SetResult(
        num_questions=int(entry["num_questions"]),
        intervals={name: value for name, value in found.items() if value is not None},
        mean_tokens=entry.get("mean_tokens"),
        truncated_fraction=entry.get("truncated_fraction"),
        unreadable_fraction=entry.get("unreadable_fraction"),
    )


def labelled(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations with labels that no two share: the lineage, if need be with the policy's step, or the evaluate step."""
    evaluations = [replace(evaluation, label=lineage_name(evaluation.lineage)) for evaluation in evaluations]
    for part in ("policy", "step"):
        times = Counter(evaluation.label for evaluation in evaluations)
        evaluations = [
            evaluation
            if times[evaluation.label] == 1
            else replace(
                evaluation, label=f"{evaluation.label} ({evaluation.policy if part == 'policy' else evaluation.step})"
            )
            for evaluation in evaluations
        ]
    return list(evaluations)
