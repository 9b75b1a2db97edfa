"""How far a step is: lines on a terminal, `progress.json` for `raml status`, and metrics that MLflow shows live.

Stages that map rows count them on a `Progress`; training stages are followed through what they append to metrics.jsonl.
"""

import collections
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from raml_ray import progress_file
from raml_ray.metrics_file import MetricsFile, MetricsTail
from raml_ray.stages.context import Context
from raml_ray.storage import Folder, is_url

logger = logging.getLogger(__name__)

TICK_S = 2.0
REMOTE_TICK_S = 15.0
"""Between two writes of progress.json; an object store is written to less often."""
REPORT_S = 10.0
"""Between two lines on the terminal and in metrics.jsonl."""
WINDOW_S = 60.0
"""Rates are those of the last so many seconds."""
SHOWN = {"base": "base/loss", "sft": "sft/loss", "grpo": "grpo/reward"}
"""Stage -> the metric that says how it goes."""


class _Sample(NamedTuple):
    time: float
    done: int
    tokens: int


class Progress:
    """Rows that a mapped stage has finished, told while the block runs:

        with Progress(folder, "generate", "generate", unit="trajectories", total=640_000, done=1_024) as progress:
            progress.add(rows=64, tokens=81_920)

    `done` rows were there before. Any thread may add; a thread of its own tells.
    """

    def __init__(
        self, folder: Folder, step: str, stage: str, *, unit: str, total: int, done: int = 0, in_metrics: bool = True
    ) -> None:
        """`in_metrics` is false for what is not the step's own kind of row: the file and the terminal alone are told."""
        self._folder, self._step, self._stage, self._unit, self._total = folder, step, stage, unit, total
        self._in_metrics = in_metrics
        self._lock = threading.Lock()
        self._done, self._tokens = done, 0
        self._samples = collections.deque([_Sample(time.monotonic(), done, 0)])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)

    def add(self, rows: int, tokens: int = 0) -> None:
        """Count rows that are committed, and the tokens that were sampled for them."""
        with self._lock:
            self._done += rows
            self._tokens += tokens

    def figures(self) -> dict[str, int | float]:
        """Rows done and in all, tokens of this attempt, rates over the last WINDOW_S seconds, seconds that are left (or
        -1 where nothing was finished yet)."""
        with self._lock:
            newest = _Sample(time.monotonic(), self._done, self._tokens)
            self._samples.append(newest)
            while len(self._samples) > 2 and newest.time - self._samples[1].time >= WINDOW_S:
                self._samples.popleft()
            oldest = self._samples[0]
        seconds = max(newest.time - oldest.time, 1e-9)
        rate = (newest.done - oldest.done) / seconds
        return {
            "done": newest.done,
            "total": self._total,
            "tokens": newest.tokens,
            "rows_per_s": round(rate, 4),
            "tokens_per_s": round((newest.tokens - oldest.tokens) / seconds, 2),
            "seconds_left": round((self._total - newest.done) / rate, 1) if rate else -1.0,
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _tell(self) -> None:
        tick = REMOTE_TICK_S if is_url(self._folder.path) else TICK_S
        reported, last = time.monotonic(), -1
        with MetricsFile(self._folder) as metrics:
            while True:
                ended = self._ended.wait(tick)
                figures = self.figures()
                progress_file.write(self._folder, self._step, self._stage, self._unit, figures)
                due = ended or time.monotonic() - reported >= REPORT_S
                if due and figures["done"] != last:
                    reported, last = time.monotonic(), int(figures["done"])
                    self._report(metrics, figures)
                if ended:
                    return

    def _report(self, metrics: MetricsFile, figures: dict[str, int | float]) -> None:
        if on_terminal():
            logger.info("%s: %s", self._step, progress_file.line({"unit": self._unit} | figures))
        if not self._in_metrics:
            return
        values = {
            "progress/rows": figures["done"],
            "progress/rows_per_s": figures["rows_per_s"],
            "progress/tokens_per_s": figures["tokens_per_s"],
            "progress/seconds_left": figures["seconds_left"],
        }
        with contextlib.suppress(OSError):  # that it cannot be written is said of progress.json already
            # The line's step is the row count: a resumed attempt goes on where the one before it stopped.
            metrics.append(int(figures["done"]), values)


def on_terminal() -> bool:
    """Whether somebody watches; a file or a pipe is spared the lines that only tell how far something is."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def shown(context: Context) -> Iterator[None]:
    """For the block, progress.json is kept fresh; of a training stage it, and a terminal, get the newest metrics."""
    progress_file.write(context.folder, context.step.name, context.step.stage, "", {})
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(context, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(context: Context, ended: threading.Event) -> None:
    metric = SHOWN.get(context.step.stage)
    tail, began = MetricsTail(context.folder), time.monotonic()
    first: tuple[int, float] | None = None
    while not ended.wait(REPORT_S):
        rows = [row for row in tail.read() if metric in row] if metric else []
        if not metric or not rows:
            progress_file.beat(context.folder)
            continue
        tail.advance()
        step, now = int(rows[-1]["step"]), time.monotonic() - began
        first = first or (step, now)
        rate, total = (step - first[0]) / max(now - first[1], 1e-9), _total(context)
        figures = {
            "done": step,
            "total": total,
            "rows_per_s": round(rate, 4),
            "seconds_left": round((total - step) / rate, 1) if rate and total else -1.0,
            "metric": metric,
            "value": rows[-1][metric],
        }
        progress_file.write(context.folder, context.step.name, context.step.stage, "steps", figures)
        if on_terminal():
            logger.info("%s: %s", context.step.name, progress_file.line({"unit": "steps"} | figures))


def _total(context: Context) -> int:
    """Steps that there will be; 0 where only the stage knows."""
    config = context.config
    return {"base": config.base.num_steps, "grpo": config.grpo.num_steps}.get(context.step.stage, config.sft.max_steps)
