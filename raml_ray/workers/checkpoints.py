"""Checkpoints that are whole or do not count: every file's hash in a manifest, and a COMMIT that is written last.

`<folder>/step-00000010/` holds torch.distributed.checkpoint's files (another number of ranks can read them),
`manifest.json` (step, what the loop wants to remember, SHA-256 of every file) and `COMMIT` (the manifest's own).
All ranks must see the folder: a shared file system when they are on several machines, or a URL, to which files go by
way of a folder of each rank's own.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from raml_ray import faults
from raml_ray.storage import Folder, is_url
from raml_ray.workers.arrival import Refused

logger = logging.getLogger(__name__)

MANIFEST, COMMIT = "manifest.json", "COMMIT"


class Restored(NamedTuple):
    """What was found: the step that the checkpoint was saved after, and what was saved with it."""

    step: int
    extra: Mapping[str, Any]


class CannotSave(RuntimeError):
    """A checkpoint could not be written, on no rank; those before it are untouched."""


def save(folder: str, step: int, tensors: Mapping[str, Tensor], extra: Mapping[str, Any], *, keep: int) -> None:
    """Write the checkpoint of a step, then remove all but the newest `keep` and whatever was left half-written.

    A collective. Raises: CannotSave, on all ranks alike, if one cannot write (a full disk), or rank 0 does not see what
    another rank wrote; nothing of it is left then.
    """
    target, rank = Folder(folder) / f"step-{step:08d}", dist.get_rank()

    def write_files() -> dict[str, str]:
        faults.reach("checkpoint", rank, step)
        with target.filled() as files:
            state_dict_saver.save(dict(tensors), checkpoint_id=files)
            mine = [path for path in Path(files).iterdir() if path.name.startswith(f"__{rank}_")]
            if rank == 0:
                mine.append(Path(files, ".metadata"))
            hashes = {path.name: _synced_hash(path) for path in mine}
        faults.reach("commit", rank, step)
        return hashes

    def commit() -> dict[str, str]:
        missing = [name for name in hashes if not target.exists(name)]
        if missing:
            raise OSError(
                f"{missing}, which other ranks wrote, are not there: `root` must be a file system that all share"
            )
        manifest = json.dumps({"step": step, "extra": dict(extra), "files": hashes}, indent=2)
        target.write_text(MANIFEST, manifest)
        target.write_text(COMMIT, hashlib.sha256(manifest.encode()).hexdigest())
        return {}

    try:
        _together(lambda: _discard(target) if rank == 0 else {})
        hashes = _together(write_files)
        _together(lambda: commit() if rank == 0 else {})
    except CannotSave as error:
        if rank == 0:
            _discard(target)
        raise CannotSave(
            f"checkpoint {target.path} cannot be written{_room(Folder(folder))}: {error}; those before it are whole: make room, and"
            " give the same command again"
        ) from None
    if rank == 0:
        _retain(Folder(folder), keep)
    dist.barrier()


def _room(folder: Folder) -> str:
    """What torch does not say of a full disk: how much is free there."""
    if is_url(folder.path):
        return ""
    return f" ({shutil.disk_usage(folder.path).free / 2**20:.0f} MiB are free there)"


def _together(work: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What the ranks' work returns, all of it on every rank. Raises: CannotSave, on every rank, if it failed on one."""
    try:
        mine, failed = work(), ""
    except CheckpointException as error:  # which rank failed is known to all of them
        mine, failed = {}, "; ".join(_told(cause) for cause, _ in error.failures.values())
    except OSError as error:
        mine, failed = {}, _told(error)
    parts: list[tuple[dict[str, str], str]] = [({}, "")] * dist.get_world_size()
    dist.all_gather_object(parts, (mine, failed))
    if failures := dict.fromkeys(failed for _, failed in parts if failed):
        raise CannotSave("; ".join(failures))
    return {key: value for part, _ in parts for key, value in part.items()}


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def load(folder: str, tensors: Mapping[str, Tensor]) -> Restored | None:
    """Fill the tensors in place from the newest checkpoint that is whole; None if none was ever committed.

    A collective. A checkpoint that fails its manifest is passed over, with a warning, for the one before.

    Raises: Refused, on all ranks, if checkpoints were committed and every one of them is damaged.
    """
    damaged: list[str] = []
    names: list[str] = _from_rank_0(_committed(Folder(folder)) if dist.get_rank() == 0 else [])
    for name in reversed(names):
        checkpoint = Folder(folder) / name
        with checkpoint.at_hand() as files:
            # A rank that has fetched its own copy looks at all of it.
            found = _problems(Path(files), shared=not is_url(folder))
            problems = sorted(_gathered(dict.fromkeys(found, "")))
            if not problems:
                state_dict_loader.load(dict(tensors), checkpoint_id=files)
                manifest = json.loads(Path(files, MANIFEST).read_text())
                return Restored(int(manifest["step"]), manifest["extra"])
        damaged.append(f"{checkpoint.path}: {'; '.join(problems)}")
        logger.warning("checkpoint passed over, %s", damaged[-1])
    if damaged:
        raise Refused(
            f"every checkpoint is damaged; restore one or start the step anew with --redo. {' | '.join(damaged)}"
        )
    return None


def _problems(path: Path, *, shared: bool = True) -> list[str]:
    """What is wrong with a committed checkpoint, as far as this rank looks: ranks share the files among them."""
    try:
        text = (path / MANIFEST).read_text()
        if hashlib.sha256(text.encode()).hexdigest() != (path / COMMIT).read_text():
            return [f"{MANIFEST} is not what was committed"]
        files = sorted(json.loads(text)["files"].items())
        return [
            f"{name} is not what was committed"
            for name, expected in (files[dist.get_rank() :: dist.get_world_size()] if shared else files)
            if _hash(path / name) != expected
        ]
    except (OSError, UnicodeDecodeError) as error:
        return [str(error)]


def _committed(folder: Folder) -> list[str]:
    return [name for name in folder.names("step-") if (folder / name).exists(COMMIT)]


def _retain(folder: Folder, keep: int) -> None:
    kept = set(_committed(folder)[-keep:])
    for name in folder.names("step-"):
        if name not in kept:
            _discard(folder / name)


def _discard(checkpoint: Folder) -> dict[str, str]:
    (checkpoint / COMMIT).remove()  # first of all: what is half gone does not count
    with contextlib.suppress(OSError):
        checkpoint.remove()
    return {}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synced_hash(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _gathered(mine: dict[str, str]) -> dict[str, str]:
    parts: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return {key: value for part in parts for key, value in part.items()}


def _from_rank_0(names: list[str]) -> list[str]:
    box = [names]
    dist.broadcast_object_list(box, src=0)
    return box[0]
