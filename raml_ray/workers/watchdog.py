"""A rank that hangs is ended: nothing else ends one that no other waits for, and Ray Train waits for it for ever.

A process has one watchdog. Whoever does what may take long says so (`reached`, `passed`); if then nothing more is said for
train.step_timeout_s, the process says on standard error where it stood, with the stacks of all threads, and ends. A thread
does that: it needs the interpreter's lock, which no collective, kernel or file access keeps.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

HUNG = 70
"""The exit status of a process that was ended."""


class _Watchdog:
    def __init__(self, rank: int, timeout_s: float) -> None:
        self._rank, self._timeout_s = rank, timeout_s
        self._ended = threading.Event()
        self.reached("its start", 0.0)
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def reached(self, what: str, more_s: float) -> None:
        # One assignment: the thread never sees half of it.
        self._now = what, self._timeout_s + more_s, time.monotonic()

    def passed(self) -> None:
        self._now = (*self._now[:2], time.monotonic())

    def end(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while True:
            what, patience_s, since = self._now
            if not self._ended.wait(max(0.0, since + patience_s - time.monotonic())):
                if self._now[2] == since:
                    self._bite(what, patience_s)
                continue
            return

    def _bite(self, what: str, patience_s: float) -> None:
        sys.stderr.write(
            f"learner {self._rank} has not come on with {what} for {patience_s:g} s (train.step_timeout_s={self._timeout_s:g}):"
            " it hangs, and its process ends here; raise the limit if that takes so long\n"
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        os._exit(HUNG)


_watchdog: _Watchdog | None = None


@contextlib.contextmanager
def watching(rank: int, timeout_s: float) -> Iterator[None]:
    """For the block this process is ended if it says nothing for so many seconds."""
    global _watchdog
    _watchdog = _Watchdog(rank, timeout_s)
    try:
        yield
    finally:
        _watchdog.end()
        _watchdog = None


def reached(what: str, more_s: float = 0.0) -> None:
    """Says what this process begins now (`the update of step 3`), and that it may take so much more than the limit.

    Nothing where nobody watches.
    """
    if _watchdog is not None:
        _watchdog.reached(what, more_s)


def passed() -> None:
    """Says that what was begun goes on: an update of many passes may take longer than any one of them."""
    if _watchdog is not None:
        _watchdog.passed()
