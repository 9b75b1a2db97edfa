"""SIGTERM: left at once, or handed on to learners that get their time and no more."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from raml_ray import stopping
from tests.faults.hosts import waited_for


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)  # `os.kill` may wake another thread, and return before the handler has run


def test_where_no_learner_trains_the_run_is_left_at_once_with_143() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stopping.Stopped) as left, stopping.on_sigterm(patience_s=30):
        terminate()
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_library_that_leaves_in_its_own_way_when_it_meets_the_signal_still_leaves_with_143() -> None:
    with pytest.raises(stopping.Stopped), stopping.on_sigterm(patience_s=30):
        try:
            terminate()
        except SystemExit:
            raise SystemExit(1) from None  # as `ray.get` does
    with pytest.raises(SystemExit) as left, stopping.on_sigterm(patience_s=30):
        raise SystemExit(1)
    assert left.value.code == 1


def test_learners_are_told_and_a_second_signal_leaves(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()  # of an attempt before
    with (
        pytest.raises(stopping.Stopped),
        stopping.on_sigterm(patience_s=30),
        stopping.told_to_learners(str(tmp_path)),
    ):
        assert not stopping.is_requested(str(tmp_path))
        terminate()
        # Written by a thread of its own.
        waited_for("the request", lambda: stopping.is_requested(str(tmp_path)), 20)
        terminate()
    assert not stopping.is_requested(str(tmp_path))


def test_learners_that_take_too_long_are_left(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        pytest.raises(stopping.Stopped),
        stopping.on_sigterm(patience_s=0.2),
        stopping.told_to_learners(str(tmp_path)),
    ):
        terminate()
        time.sleep(30)
    assert 0.2 <= time.monotonic() - began < 10


def test_learners_that_leave_in_time_are_waited_for_no_longer(tmp_path: Path) -> None:
    with stopping.on_sigterm(patience_s=0.1), stopping.told_to_learners(str(tmp_path)):
        terminate()
    time.sleep(0.3)  # a signal that came now would end this process


def test_another_thread_than_the_main_one_changes_no_handler() -> None:
    found = []

    def run() -> None:
        with stopping.on_sigterm(patience_s=1):
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


def test_ctrl_c_is_an_interrupt_whatever_a_library_makes_of_it(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stopping.told_to_learners(str(tmp_path)):
        signal.signal(signal.SIGINT, lambda number, frame: sys.exit(0))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGINT) is before
