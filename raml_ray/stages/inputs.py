"""Fingerprints of what a step reads from outside its run: a changed file is another input, whatever its name."""

import hashlib

import fsspec

from raml_ray.config import ConfigError
from raml_ray.stages import sources
from raml_ray.stages.context import Context, reads
from raml_ray.text import known_sets
from raml_ray.workers import policy as policies

NAMED_ONLY = (sources.MINIATURE, sources.HUGGING_FACE, known_sets.PAPER)
"""Sources whose content their name decides (for a Hugging Face set: with its data.revision)."""
CHUNK = 1 << 22


def fingerprints(context: Context) -> dict[str, str]:
    """Setting -> fingerprint of the file, folder or policy that it names, for what this step's stage reads."""
    config, nodes = context.config, reads(context.config, context.step.stage)
    paths: dict[str, str] = {}
    if context.step.stage == "evaluate":
        paths |= {f"evaluate.sets.{name}": path for name, path in config.evaluate.sets.items()}
    elif "data" in nodes and context.step.stage != "verify":
        paths["data.path"] = config.data.path
    local = {name: sources.local_path(path) for name, path in paths.items()}
    found = {name: content(path) for name, path in local.items() if path and not path.startswith(NAMED_ONLY)}
    if "policy" in nodes and not context.step.policy and config.policy.path:
        path = config.policy.path
        try:
            found["policy.path"] = policies.policy_id(path, "policy")
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return found


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
