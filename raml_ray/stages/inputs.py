"""Fingerprints of what a step reads from outside its run: a changed file is another input, whatever its name."""

import hashlib
from collections.abc import Sequence

import fsspec

from raml_ray import records
from raml_ray.config import Config, ConfigError, Stage, Step
from raml_ray.policy_source import on_this_node
from raml_ray.settings import DataConfig
from raml_ray.stages import known_rows, sources
from raml_ray.stages.context import READS, Context, probed, reads
from raml_ray.storage import is_url
from raml_ray.text import known_sets
from raml_ray.workers import policy as policies

NAMED_ONLY = (sources.MINIATURE, sources.HUGGING_FACE)
"""Sources whose content their name decides (for a Hugging Face set: with its data.revision)."""
CHUNK = 1 << 22


def fingerprints(context: Context) -> dict[str, str]:
    """Setting -> fingerprint of the file, folder or policy that it names, for what this step's stage reads."""
    config, nodes = context.config, reads(context.config, context.step.stage)
    found = {}
    for name, data in question_sets(config, context.step.stage).items():
        if data.path.startswith(known_sets.PAPER):
            found[name] = _of_known(data)
        elif (path := sources.local_path(data.path)) and not path.startswith(NAMED_ONLY):
            found[name] = content(path)
    named = {}
    if "policy" in nodes and not context.step.policy:
        named["policy.path"] = config.policy.path
    if "shorter" in nodes:
        named["shorter.summary_policy"] = config.shorter.summary_policy
    for name, path in named.items():
        if path:
            try:
                found[name] = policies.policy_id(on_this_node(path) if is_url(path) else path, "policy")
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from None
    return found


def question_sets(config: Config, stage: Stage) -> dict[str, DataConfig]:
    """Setting -> how the question set is read that it names, of all that a step of the stage reads."""
    if stage == "evaluate":
        return {
            f"evaluate.sets.{name}": config.data.model_copy(update={"path": path})
            for name, path in config.evaluate.sets.items()
        }
    return {"data.path": config.data} if "data" in READS[stage] and stage != "verify" else {}


def check(config: Config, steps: Sequence[Step]) -> None:
    """Refuse a run of which a step would not find its question set, or what it probes, before the first one starts.

    Raises: ConfigError that says what is not pinned or not there.
    """
    for step in steps:
        if (probe := probed(config, step)) and probe not in {other.name for other in config.steps}:
            raise ConfigError(f"step {step.name!r}: train.probe_data={probe!r} is no step of run {config.name!r}")
        for name, data in question_sets(config.for_step(step.name), step.stage).items():
            try:
                for part in known_rows.parts_of(data):
                    if part.path.startswith(known_sets.PAPER):
                        known_rows.resolved(part)
            except ConfigError as error:
                raise ConfigError(f"step {step.name!r}, {name}: {error}") from None


def _of_known(data: DataConfig) -> str:
    """Of each part the commit, or the content of its mirror."""
    parts = [known_rows.resolved(part) for part in known_rows.parts_of(data)]
    return records.digest(*(content(part.path) if data.mirror else part.revision for part in parts))


def content(path: str) -> str:
    """Sixteen hex digits of a file's bytes, or of all files of a folder. Raises: ConfigError if there is none."""
    fs, bare = fsspec.core.url_to_fs(path)
    if not fs.exists(bare):
        raise ConfigError(f"{path!r}: no such file or folder")
    total = hashlib.sha256()
    for name in sorted(fs.find(bare)) if fs.isdir(bare) else [bare]:
        with fs.open(name, "rb") as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
    return total.hexdigest()[:16]
