"""Where a policy's files are: for every node alike, and on the node that asks."""

import fcntl
import os
import re
import shutil
from pathlib import Path

from raml_ray import records
from raml_ray.config import ConfigError
from raml_ray.storage import Folder, absolute, is_url

HUB_NAME = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")
HUB = "hf://"
"""Before NAME@REVISION: a policy of the Hugging Face hub, as any node can fetch it."""


def portable(path: str, revision: str = "") -> str:
    """How any node names this policy folder: a URL as it is, a local folder by its absolute path, what can only be a
    name of the Hugging Face hub with its revision.

    Raises: ConfigError if there is no such folder.
    """
    if is_url(path):
        return path
    if Folder(path).exists():
        return absolute(path)
    if not HUB_NAME.fullmatch(path):
        raise ConfigError(f"{path!r}: no such folder, and no Hugging Face name (OWNER/NAME) either")
    return f"{HUB}{path}@{revision}"


def on_this_node(source: str) -> str:
    """A path of this machine with the files that `portable` names.

    A remote folder is copied once for all processes of the node, and again when its files change; what the hub has is
    kept in the hub's own cache.

    Raises: ConfigError if there is no such folder.
    """
    if not is_url(source):
        return source
    if source.startswith(HUB):
        return _from_hub(*source.removeprefix(HUB).rsplit("@", 1))
    folder = Folder(source)
    files = folder.state()
    if not files:
        raise ConfigError(f"{source}: no such folder, or it is empty")
    cache = Path(os.environ.get("RAML_CACHE", "~/.cache/raml_ray")).expanduser()
    target = cache / records.digest(source, files)
    cache.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait for the one that copies
        if not target.exists():
            partial = target.with_name(f"{target.name}.tmp")
            shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
            folder.download(str(partial))
            os.replace(partial, target)
    return str(target)


def _from_hub(name: str, revision: str) -> str:
    """A Hugging Face model's files in the local cache: safetensors and settings, nothing that could run."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model"]
    try:
        return str(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(f"{name!r} is no folder here, and the Hugging Face hub did not give it: {error}") from None
