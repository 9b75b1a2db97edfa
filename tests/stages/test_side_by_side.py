"""Which steps run at the same time, what waits for what, and what becomes of the others when one fails."""

import threading
from collections.abc import Callable, Sequence

import pytest

from raml_ray.config import Stage, Step
from raml_ray.stages import side_by_side

PATIENCE_S = 20.0


def step(name: str, stage: Stage = "analyze", policy: str = "", data: Sequence[str] = ()) -> Step:
    return Step(name=name, stage=stage, policy=policy, data=tuple(data))


class Doing:
    """Notes what begins and ends; a step ends when it is told to, or at once if nobody holds it."""

    def __init__(self, *held: str) -> None:
        self.notes: list[str] = []
        self._may_end = {name: threading.Event() for name in held}
        self._changed = threading.Condition()

    def __call__(self, step: Step) -> None:
        self._note(f"+{step.name}")
        if step.name in self._may_end and not self._may_end[step.name].wait(PATIENCE_S):
            raise AssertionError(f"{step.name} was never told to end")
        self._note(f"-{step.name}")

    def end(self, name: str) -> None:
        self._may_end[name].set()

    def seen(self, *notes: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(notes) <= set(self.notes), PATIENCE_S), self.notes

    def _note(self, note: str) -> None:
        with self._changed:
            self.notes.append(note)
            self._changed.notify_all()


def before(step: Step) -> set[str]:
    return {step.policy, *step.data}


def begun(steps: Sequence[Step], most: int, do: Callable[[Step], None], room: int = 99) -> threading.Thread:
    """All of it, in a thread, with room for so many at once."""
    fits: Callable[[Sequence[Step]], bool] = lambda together: len(together) <= room  # noqa: E731
    thread = threading.Thread(
        target=side_by_side.run, args=(steps, most, fits, do, threading.Event(), before), daemon=True
    )
    thread.start()
    return thread


def test_one_at_a_time_is_their_order_in_the_thread_that_asks() -> None:
    threads = set()

    def do(step: Step) -> None:
        threads.add(threading.current_thread())
        notes.append(step.name)

    notes: list[str] = []
    side_by_side.run([step("a"), step("b", "sft"), step("c")], 1, lambda steps: True, do, threading.Event(), before)
    assert (notes, threads) == (["a", "b", "c"], {threading.current_thread()})


@pytest.mark.parametrize("most", [1, 2])
def test_a_step_that_builds_on_a_later_one_begins_in_its_turn_and_says_itself_what_it_lacks(most: int) -> None:
    do = Doing()
    thread = begun([step("a", data=["b"]), step("b", data=["a"])], most, do)
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and do.notes == ["+a", "-a", "+b", "-b"]


def test_a_step_begins_when_what_it_builds_on_has_ended_and_a_later_one_may_overtake_it() -> None:
    do = Doing("a", "c")
    thread = begun([step("a"), step("b", data=["a"]), step("c"), step("d", policy="b")], 2, do)
    do.seen("+a", "+c")
    assert do.notes == ["+a", "+c"]
    do.end("a")
    do.seen("-d")
    assert do.notes == ["+a", "+c", "-a", "+b", "-b", "+d", "-d"]
    do.end("c")
    thread.join(PATIENCE_S)
    assert do.notes[-1] == "-c"


def test_what_has_no_room_beside_the_others_waits_and_what_has_room_nowhere_begins_alone() -> None:
    do = Doing("a")
    thread = begun([step("a"), step("b")], 2, do, room=1)
    do.seen("+a")
    assert not threading.Event().wait(0.1) and do.notes == ["+a"]
    do.end("a")
    thread.join(PATIENCE_S)
    assert do.notes == ["+a", "-a", "+b", "-b"]
    nowhere = Doing()
    begun([step("a"), step("b")], 2, nowhere, room=0).join(PATIENCE_S)
    assert nowhere.notes == ["+a", "-a", "+b", "-b"]


def test_a_report_stands_between_what_is_before_it_and_what_is_behind_it() -> None:
    do = Doing("a")
    thread = begun([step("a"), step("r", "report"), step("c")], 3, do)
    do.seen("+a")
    assert not threading.Event().wait(0.1) and do.notes == ["+a"]
    do.end("a")
    thread.join(PATIENCE_S)
    assert do.notes == ["+a", "-a", "+r", "-r", "+c", "-c"]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_learners_run_in_the_asking_thread_beside_what_was_begun_before_them(stage: Stage) -> None:
    do, threads = Doing("a", "l"), {}

    def doing(step: Step) -> None:
        threads[step.name] = threading.current_thread()
        do(step)

    thread = begun([step("l", stage), step("a"), step("c", data=["a"])], 2, doing)
    do.seen("+a", "+l")
    do.end("a")
    do.seen("-a")
    assert not threading.Event().wait(0.1) and do.notes[2:] == ["-a"]
    do.end("l")
    thread.join(PATIENCE_S)
    assert do.notes[2:] == ["-a", "-l", "+c", "-c"]
    assert threads["l"] is thread and threads["a"] is not thread


def test_a_step_that_fails_waits_for_those_beside_it_and_nothing_begins_after_it() -> None:
    do, failed = Doing("a"), threading.Event()

    def doing(step: Step) -> None:
        if step.name == "b":
            failed.set()
            raise ValueError("b cannot")
        do(step)

    def end() -> None:
        failed.wait(PATIENCE_S)
        do.end("a")

    threading.Thread(target=end, daemon=True).start()
    left = threading.Event()
    with pytest.raises(ValueError, match="b cannot"):
        side_by_side.run([step("a"), step("b"), step("c")], 2, lambda steps: True, doing, left, before)
    assert do.notes == ["+a", "-a"] and not left.is_set()
