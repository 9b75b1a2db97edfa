"""What a stage is given and what it gives back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raml_ray import policy_source, records, storage
from raml_ray.config import Config, ConfigError, Stage, Step, flatten
from raml_ray.records import Rejected
from raml_ray.settings import Instrument
from raml_ray.storage import Folder

# The nodes that decide a stage's result. A stage is given the others at their defaults, so that what is listed here is
# what it can read, and a step stays valid when a setting changes that it does not know.
READS: dict[Stage, tuple[str, ...]] = {
    "base": ("seed", "miniature", "base", "data"),
    "generate": ("seed", "miniature", "data", "policy", "prompt", "engine", "generate"),
    "verify": ("verify", "data"),
    "sft": ("seed", "policy", "prompt", "train", "sft"),
    "grpo": ("seed", "miniature", "data", "policy", "prompt", "engine", "verify", "train", "grpo"),
    "evaluate": ("seed", "miniature", "data", "policy", "prompt", "engine", "verify", "evaluate"),
    "analyze": ("seed", "policy", "prompt", "analyze"),
    "report": ("seed", "evaluate", "report"),
}
INSTRUMENT_READS: dict[Instrument, tuple[str, ...]] = {
    "lhat": ("lhat",),
    "pseudo_update": ("pseudo_update",),
    "real_updates": ("real_updates",),
    "roles": ("roles",),
    "landscape": ("landscape",),
    "interventions": ("interventions", "roles"),
    "modes": ("modes",),
    "shorter": ("shorter",),
    # The judge of what is answered without a subspace is that of `verify`.
    "features": ("features", "verify", "data"),
}
"""The nodes that an instrument of `analyze` reads beside those of its stage."""
ANSWER_READS = ("answers", "engine", "verify", "data")
"""And those of an instrument that has engines answer."""
LIMITS = frozenset(
    {
        "analyze.num_workers",
        "analyze.probe_memory_mib",
        "answers.num_engines",
        "base.timeout_s",
        "data.max_rejected_fraction",
        "data.mirror",
        "data.revisions",
        "engine.gpu_memory_utilization",
        "engine.kv_cache_gib",
        "engine.max_attempts",
        "engine.max_failures",
        "engine.max_num_seqs",
        "engine.node_labels",
        "engine.placement",
        "engine.request_timeout_s",
        "engine.stall_timeout_s",
        "engine.start_timeout_s",
        "evaluate.num_engines",
        "generate.num_engines",
        "grpo.gradient_variance_draws",
        "grpo.gradient_variance_every",
        "grpo.max_engine_failures",
        "grpo.num_engines",
        "grpo.sample_timeout_s",
        "grpo.sync_bucket_mib",
        "grpo.sync_check_every",
        "grpo.weight_sync",
        "train.checkpoint_every",
        "train.collective_timeout_s",
        "train.keep_checkpoints",
        "train.max_failures",
        "train.memory_gib",
        "train.node_labels",
        "train.peak_tflops",
        "train.placement",
        "train.max_skipped_fraction",
        "train.max_skipped_in_a_row",
        "train.probe_data",
        "train.probe_every",
        "train.probe_suffix",
        "train.probe_trajectories",
        "train.probe_until",
        "train.start_timeout_s",
        "train.step_timeout_s",
        "verify.max_failed_fraction",
        "verify.num_workers",
        "verify.wall_seconds",
    }
)
"""Settings that decide whether a step comes through and how fast, never what comes out: free to change on a resume."""
SITE = ("name", "root", "ablate", "cluster", "tracking", "drill")
"""Where a run happens and what befalls it there, which decides no result."""


@dataclass(frozen=True, slots=True)
class Counts:
    """A stage's rows. `rows_in == rows_out + rejected + filtered`, or the stage has lost some."""

    rows_in: int
    rows_out: int
    rejected: int = 0
    filtered: int = 0

    def check(self) -> None:
        """Raises: RuntimeError if rows were lost or invented."""
        if self.rows_in != self.rows_out + self.rejected + self.filtered:
            raise RuntimeError(
                f"{self.rows_in} rows went in, but {self.rows_out} out + {self.rejected} rejected"
                f" + {self.filtered} filtered came out"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage has to say of itself; becomes its summary.json."""

    counts: Counts
    figures: dict[str, Any] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()
    """Files inside the step's folder that MLflow gets a copy of."""


@dataclass(frozen=True, slots=True)
class Context:
    """One step about to run."""

    config: Config
    """With the step's overrides; nodes that the stage does not read are at their defaults."""
    step: Step
    run: Folder
    whole: Config
    """The run's configuration as it was given, for the report's sake."""
    part: str = ""
    """What of the step's work this is, where it has several parts that each have a folder inside its own."""

    @property
    def step_folder(self) -> Folder:
        return self.run / self.step.name

    @property
    def folder(self) -> Folder:
        """Where this part of the step's work is kept."""
        return self.step_folder / self.part if self.part else self.step_folder

    @property
    def sources(self) -> list[Folder]:
        """The folders whose tables this step takes. Raises: ConfigError if one is not finished."""
        folders = [self.run / name for name in self.step.data]
        for folder in folders:
            storage.summary(folder)
        return folders

    @property
    def policy_source(self) -> str:
        """The policy that this step starts from, as any node can fetch it (`policy_source.on_this_node`).

        Raises: ConfigError if the step that makes it is not finished, or no policy is named, or it is nowhere.
        """
        if self.step.policy:
            storage.summary(self.run / self.step.policy)
            return policy_source.portable((self.run / self.step.policy / "policy").path)
        if not self.config.policy.path:
            raise ConfigError(f"step {self.step.name!r} builds on no policy: set policy.path, or its `policy` step")
        return policy_source.portable(self.config.policy.path, self.config.policy.revision)

    @property
    def policy_path(self) -> str:
        """A local folder of that policy, on the driver's node. Raises: as `policy_source`."""
        return policy_source.on_this_node(self.policy_source)

    @property
    def policy_name(self) -> str:
        return self.step.policy or self.config.policy.path.rstrip("/").rsplit("/", 1)[-1]

    def reject(self, rows: list[Rejected], name: str) -> None:
        """Keep the rows that were set aside, under rejected/."""
        if rows:
            (self.folder / "rejected").write_table(f"{name}.parquet", records.table(rows, records.REJECTED))


def samples_answers(config: Config) -> bool:
    """Whether the instrument of `analyze` has engines answer."""
    instrument = config.analyze.instrument
    return instrument in ("modes", "shorter") or (
        instrument == "interventions" and config.interventions.num_samples > 0
    )


def reads(config: Config, stage: Stage) -> tuple[str, ...]:
    """The nodes that decide the stage's result."""
    if stage != "analyze":
        return READS[stage]
    own = INSTRUMENT_READS[config.analyze.instrument]
    return READS[stage] + own + (ANSWER_READS if samples_answers(config) else ())


def probed(config: Config, step: Step) -> str:
    """The step along whose trajectories the learner of this one is probed (train.probe_data); empty if it is not."""
    return config.for_step(step.name).train.probe_data if "train" in READS[step.stage] else ""


def narrowed(config: Config, stage: Stage) -> Config:
    """The configuration with every node that the stage does not read at its default."""
    kept = {name: config.model_dump(mode="python")[name] for name in (*reads(config, stage), *SITE)}
    return Config.model_validate(kept)


def deciding(config: Config, stage: Stage) -> dict[str, Any]:
    """The settings that decide what comes out of a stage, by dotted name."""
    nodes = reads(config, stage)
    return {
        name: value for name, value in flatten(config).items() if name.split(".")[0] in nodes and name not in LIMITS
    }


def manifest(context: Context, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What decides a step's result: its stage, its settings, and the fingerprints of all that it builds on."""
    stage = context.step.stage
    # As it comes back from the file that it is compared with.
    written: dict[str, Any] = json.loads(
        json.dumps({"stage": stage, "settings": deciding(context.config, stage), "inputs": dict(inputs)})
    )
    return written


def changes(was: Any, now: Any, name: str = "") -> list[str]:
    """One line per value that two manifests do not share, `sft.batch_size: 64 -> 32`."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        return [
            line
            for key in sorted(was.keys() | now.keys())
            for line in changes(was.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if was == now else [f"{name.removeprefix('settings.')}: {was!r} -> {now!r}"]
