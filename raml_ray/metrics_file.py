"""`metrics.jsonl`: every metric of a step, one line per training step. MLflow and the report show what it holds.

A line is `{"step": 3, "time": 1760000000.0, "grpo/reward": 0.5, ...}`; what is not finite is a string (`"nan"`,
`"inf"`), so that every line is strict JSON.
"""

import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from raml_ray.storage import Folder, is_url

METRICS = "metrics.jsonl"
REWRITE_S = 10.0
"""Least time between two uploads of a remote file, seconds: an object store cannot append."""


class MetricsFile:
    """Appends lines to a folder's metrics.jsonl. A local line is in the file when `append` returns.

    In a remote folder the whole file is written anew, at most every `rewrite_s` seconds, and on `close`.
    """

    def __init__(self, folder: Folder, *, rewrite_s: float = REWRITE_S) -> None:
        self._folder = folder
        self._rewrite_s = rewrite_s
        self._lock = threading.Lock()
        self._written = time.monotonic()
        self._unsaved = False
        self._is_remote = is_url(folder.path)
        self._lines: list[str] = []  # of a remote file only
        if self._is_remote:
            self._lines = _whole_lines(folder)
        else:
            _drop_torn_line(Path(folder.file(METRICS)))

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line for `step`, stamped with the present time."""
        stamp = {"step": step, "time": round(time.time(), 3)}
        line = json.dumps(stamp | {name: _strict(value) for name, value in values.items()})
        with self._lock:
            if self._is_remote:
                self._lines.append(line)
                self._unsaved = True
                if time.monotonic() - self._written >= self._rewrite_s:
                    self._save()
                return
            path = Path(self._folder.file(METRICS))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(line + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps: a resumed loop makes them again."""
        with self._lock:
            lines = self._lines if self._is_remote else _whole_lines(self._folder)
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            if len(kept) < len(lines):
                self._folder.write_text(METRICS, "".join(f"{line}\n" for line in kept))
                self._unsaved = False
            if self._is_remote:
                self._lines = kept

    def close(self) -> None:
        """Write what a remote file still lacks."""
        with self._lock:
            if self._unsaved:
                self._save()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _save(self) -> None:
        self._folder.write_text(METRICS, "".join(f"{line}\n" for line in self._lines))
        self._written = time.monotonic()
        self._unsaved = False


class MetricsTail:
    """What others append to a folder's metrics.jsonl, read from where the last `advance` left off."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._offset = 0
        self._inode = 0
        self._next = (0, 0)

    def read(self) -> list[dict[str, float]]:
        """The complete lines since the last `advance`, oldest first; all of them again after the file was truncated."""
        if is_url(self._folder.path):
            return read_metrics(self._folder)
        try:
            with open(self._folder.file(METRICS), "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                offset = self._offset if inode == self._inode and self._is_line_start(file.fileno()) else 0
                file.seek(offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._next = (offset + len(whole), inode)
        return list(_rows(whole.decode().splitlines()))

    def advance(self) -> None:
        """Count what `read` returned last as done."""
        self._offset, self._inode = self._next

    def _is_line_start(self, descriptor: int) -> bool:
        return self._offset == 0 or os.pread(descriptor, 1, self._offset - 1) == b"\n"


def read_metrics(folder: Folder) -> list[dict[str, float]]:
    """A step's metrics, one mapping per line, in the file's order; none if there is no file."""
    return list(_rows(_whole_lines(folder)))


def progress_table(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """The lines that speak of progress as columns: time (seconds since the epoch) and what follows `progress/`."""
    told = [row for row in rows if "progress/rows" in row]
    names = sorted({name for row in told for name in row if name.startswith("progress/")})
    columns = {name.removeprefix("progress/"): [row.get(name, math.nan) for row in told] for name in names}
    return {"time": [row["time"] for row in told]} | columns if told else {}


def _rows(lines: list[str]) -> Iterator[dict[str, float]]:
    for line in lines:
        yield {name: float(value) for name, value in json.loads(line).items()}


def _strict(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _whole_lines(folder: Folder) -> list[str]:
    """The file's lines without a last one that a kill cut off."""
    if not folder.exists(METRICS):
        return []
    text = folder.read_text(METRICS)
    return text[: text.rfind("\n") + 1].splitlines()


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
