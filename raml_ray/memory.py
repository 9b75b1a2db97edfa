"""How much memory a block of the program takes: this process, its descendants, and what else runs in their session.

Linux: from /proc. A local Ray's raylet and workers are descendants of the driver.
"""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

PERIOD_S = 5.0
_PROC = Path("/proc")


class _Process(NamedTuple):
    """What /proc/PID/stat says of a process."""

    parent: int
    session: int
    is_mine: bool


class PeakMemory:
    """The largest sum, over the block, of the memory of this process, its descendants and their session, GiB.

    Memory that processes share is counted once (PSS; where it cannot be read, RSS stands in). Looked at when the block
    begins, every PERIOD_S seconds (a look costs the kernel about 0.1 CPU seconds), and when it ends: what comes and goes between two looks is not seen.

        with PeakMemory() as peak:
            ...
        peak.gib
    """

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._largest = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    @property
    def gib(self) -> float:
        """The peak so far; 0 where there is no /proc."""
        return self._largest / 2**30

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._period_s):
            self._look()

    def _look(self) -> None:
        self._largest = max(self._largest, sum(_bytes_of(pid) for pid in family()))


def family() -> set[int]:
    """This process, its descendants, and every process of this user in a session that one of its descendants leads.

    The last are those whose parent has died since: they hang on init, but keep their session.
    """
    root = os.getpid()
    processes = {pid: process for pid in _pids() if (process := _process(pid)) is not None and process.is_mine}
    if root not in processes:
        return set()
    found, waiting = {root}, [root]
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    while waiting:
        new = [pid for pid in children.get(waiting.pop(), []) if pid not in found]
        found.update(new)
        waiting += new
    # Of a session that began above this process (a shell's), only what descends from it is this program's.
    sessions = {pid for pid in found if processes[pid].session == pid}
    return found | {pid for pid, process in processes.items() if process.session in sessions}


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()] if _PROC.is_dir() else []


def _process(pid: int) -> _Process | None:
    """None for a process that has ended."""
    folder = _PROC / str(pid)
    try:
        # The name, in parentheses, may hold spaces and parentheses of its own.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        return _Process(int(fields[1]), int(fields[3]), folder.stat().st_uid == os.getuid())
    except (OSError, IndexError):
        return None


def _bytes_of(pid: int) -> int:
    """Proportional set size of a process, or its resident set size where that cannot be read; 0 if it has ended."""
    folder = _PROC / str(pid)
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    except (OSError, StopIteration):
        pass
    try:
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
