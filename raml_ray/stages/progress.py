"""How far a training step is, on a terminal: a line every few seconds from what it appends to metrics.jsonl."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator

from raml_ray.metrics_file import MetricsTail
from raml_ray.stages.context import Context

logger = logging.getLogger(__name__)

EVERY_S = 10.0
SHOWN = {"base": "base/loss", "sft": "sft/loss", "grpo": "grpo/reward"}
"""Stage -> the metric that says how it goes."""


def on_terminal() -> bool:
    """Whether somebody watches; a file or a pipe is spared the lines that only tell how far something is."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def shown(context: Context) -> Iterator[None]:
    """For the block, a line about the newest metrics every EVERY_S seconds, if somebody watches."""
    metric = SHOWN.get(context.step.stage)
    if metric is None or not on_terminal():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(context, metric, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(context: Context, metric: str, ended: threading.Event) -> None:
    tail, began, first = MetricsTail(context.folder), time.monotonic(), None
    total = _total(context)
    while not ended.wait(EVERY_S):
        rows = [row for row in tail.read() if metric in row]
        if not rows:
            continue
        tail.advance()
        step = int(rows[-1]["step"])
        first = first or (step, time.monotonic() - began)
        rate = (time.monotonic() - began - first[1]) / max(step - first[0], 1)
        left = f", {rate * (total - step):.0f} s left" if total and step > first[0] else ""
        logger.info(
            "%s: %d%s, %s %.4g%s",
            context.step.name,
            step,
            f" of {total}" if total else "",
            metric,
            rows[-1][metric],
            left,
        )


def _total(context: Context) -> int:
    """Steps that there will be; 0 where only the stage knows."""
    config = context.config
    return {"base": config.base.num_steps, "grpo": config.grpo.num_steps}.get(context.step.stage, config.sft.max_steps)
