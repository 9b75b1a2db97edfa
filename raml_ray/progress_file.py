"""`progress.json`: how far a step was when its driver last said so, for whoever sees the step's folder."""

import logging
import os
import platform
import threading
import time
from collections.abc import Mapping
from typing import Any

from raml_ray.storage import Folder

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
BEAT_S = 10.0
_WRITING = threading.Lock()
"""Held from reading to writing: what a step says in between would be lost to its own beat."""
STALE_S = 60.0
"""A driver on another host that has said nothing for so long counts as gone."""


def write(folder: Folder, step: str, stage: str, unit: str, figures: Mapping[str, Any]) -> None:
    """Put the figures, and who says them when, into the step's progress.json. A folder that is full costs a warning."""
    process = {"host": platform.node(), "pid": os.getpid(), "started": _started(os.getpid())}
    with _WRITING:
        _put(folder, {"step": step, "stage": stage, "unit": unit, **figures, **process})


def beat(folder: Folder) -> None:
    """Say that the driver is still there, where nothing else has been said for BEAT_S seconds."""
    with _WRITING:
        told = read(folder)
        if told and time.time() - float(told["updated"]) >= BEAT_S:
            _put(folder, told)


def _put(folder: Folder, told: Mapping[str, Any]) -> None:
    try:
        folder.write_json(PROGRESS, {**told, "updated": round(time.time(), 3)})
    except OSError as error:
        logger.warning("%s: progress.json cannot be written: %s", told["step"], error)


def _started(pid: int) -> str:
    """When the process began, in the kernel's ticks: with the pid it names one process. Empty if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def read(folder: Folder) -> dict[str, Any]:
    """What was written last; empty if nothing was."""
    return dict(folder.read_json(PROGRESS)) if folder.exists(PROGRESS) else {}


def is_alive(progress: Mapping[str, Any]) -> bool:
    """Whether the driver that wrote it is there: by its process on this host, by the file's age on another."""
    if not progress:
        return False
    if progress["host"] == platform.node() and os.path.isdir("/proc/self"):
        return bool(progress["started"]) and _started(int(progress["pid"])) == progress["started"]
    return time.time() - float(progress["updated"]) < STALE_S


def line(progress: Mapping[str, Any]) -> str:
    """How far it is, in words: `1024 of 8192 trajectories, 31.5/s, 4120 tokens/s, 228 s left`."""
    if not progress.get("unit"):
        return "starting"
    total = f" of {progress['total']}" if progress.get("total") else ""
    parts = [f"{progress['done']}{total} {progress['unit']}"]
    if progress.get("rows_per_s"):
        parts.append(f"{progress['rows_per_s']:.3g}/s")
    if progress.get("tokens_per_s"):
        parts.append(f"{progress['tokens_per_s']:.0f} tokens/s")
    if progress.get("seconds_left", -1) >= 0:
        parts.append(f"{progress['seconds_left']:.0f} s left")
    if progress.get("metric"):
        parts.append(f"{progress['metric']} {progress['value']:.4g}")
    return ", ".join(parts)
