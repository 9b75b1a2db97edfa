"""SIGTERM, as `ray job stop`, an evicted pod or `kill` send it: what is under way is brought to a point it can go on from.

Where learners train, they are told (by a file that all of them see) to save a checkpoint at the next step's end and to
leave; everything else commits shard by shard and is left at once. Either way the driver leaves with exit status 143.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from raml_ray.storage import Folder

logger = logging.getLogger(__name__)

REQUEST = "stop"
"""The file in a step's folder that asks its learners to leave."""


class Stopped(SystemExit):
    """The run is to end here, and can go on another time."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


_asked: Folder | None = None
"""The folder to leave a request in, instead of leaving at once; None where nobody is to be told."""


@contextlib.contextmanager
def on_sigterm(patience_s: float) -> Iterator[None]:
    """For the block SIGTERM raises Stopped in the main thread: at once, or in `told_to_learners` blocks when they are
    through, or after so many seconds, or at the second signal. In another thread it changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timer = threading.Timer(patience_s, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    is_told = is_left = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_told, is_left
        if _asked is None or is_told:
            is_left = True
            raise Stopped
        is_told = True
        logger.warning("SIGTERM: a checkpoint at the step's end, or the end after %g s", patience_s)
        # The signal may have come in the middle of a write to the same store: not in this thread.
        threading.Thread(target=_asked.write_text, args=(REQUEST, ""), daemon=True).start()
        timer.start()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit:
        if is_left:  # `ray.get` makes a status of its own of it
            raise Stopped from None
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def told_to_learners(folder: str) -> Iterator[None]:
    """For the block SIGTERM is handed on to the learners of that step's folder. An earlier request is forgotten.

    Raises: KeyboardInterrupt for Ctrl-C, in whose place Ray Train's own handler leaves with status 0, and stays.
    """
    global _asked
    request, interrupted = Folder(folder) / REQUEST, signal.getsignal(signal.SIGINT)
    request.remove()
    _asked = Folder(folder)
    try:
        yield
    except SystemExit as left:
        if left.code:
            raise
        raise KeyboardInterrupt from None
    finally:
        _asked = None
        request.remove()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupted)


def is_requested(folder: str) -> bool:
    """Whether the learners of that step are to leave."""
    return Folder(folder).exists(REQUEST)
