"""Steps that do not build on one another, at the same time while the cluster has room for them.

Each runs in a thread of its own, but for those of learners: they bring their work to a point that they can go on from when
they are told to stop, which only the main thread hears. So they run in it, one at a time, and nothing else is begun meanwhile.
"""

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from queue import SimpleQueue

from raml_ray.config import Stage, Step

logger = logging.getLogger(__name__)

IN_MAIN_THREAD: frozenset[Stage] = frozenset({"sft", "grpo"})
Before = Callable[[Step], Collection[str]]
Ended = tuple[Step, BaseException | None]


def run(
    steps: Sequence[Step],
    most: int,
    fits: Callable[[Sequence[Step]], bool],
    do: Callable[[Step], None],
    left: threading.Event,
    before: Before,
) -> None:
    """`do` every step when those have ended that are `before` it (a report: between those before it and those behind it), `most` at once
    while `fits` says that the cluster holds them all; in their order where that is free.

    `left` is set when this is left before the steps under way have ended: their threads end with the process.

    Raises: what the first step that fails raised, after those under way have ended; no further one is begun then.
    """
    waiting, running, failed = list(steps), list[Step](), list[BaseException]()
    ended: SimpleQueue[Ended] = SimpleQueue()
    try:
        while running or (waiting and not failed):
            while not failed and (step := _next(waiting, running, most, fits, before)):
                waiting.remove(step)
                if most == 1 or step.stage in IN_MAIN_THREAD:
                    do(step)
                else:
                    running.append(step)
                    threading.Thread(target=_end, args=(do, step, ended), name=step.name, daemon=True).start()
            if running:
                step, error = ended.get()
                running.remove(step)
                failed += [error] if error else []
    except BaseException:
        left.set()
        for step in running:
            logger.info("%s: stopped; the same command goes on from here", step.name)
        raise
    if failed:
        raise failed[0]


def _next(
    waiting: Sequence[Step],
    running: Sequence[Step],
    most: int,
    fits: Callable[[Sequence[Step]], bool],
    before: Before,
) -> Step | None:
    """The first that may begin, learners behind all others. What fits nowhere begins alone, and says itself what it lacks."""
    if len(running) == most:
        return None
    not_ended, ready = {step.name for step in running}, list[Step]()
    for step in waiting:
        if step.stage == "report":  # of what is before it in the run, so that it is the same page every time
            ready += [] if not_ended else [step]
            break
        if not_ended.isdisjoint(before(step)) and (not running or fits([*running, step])):
            ready.append(step)
        not_ended.add(step.name)
    if most > 1:
        ready.sort(key=lambda step: step.stage in IN_MAIN_THREAD)
    return ready[0] if ready else None


def _end(do: Callable[[Step], None], step: Step, ended: SimpleQueue[Ended]) -> None:
    try:
        do(step)
    except BaseException as error:  # whatever it is, the main thread raises it
        ended.put((step, error))
    else:
        ended.put((step, None))
