"""One engine that many threads ask at once."""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

from raml_ray.workers.sampling import Completion, Failure, Request, Sampling, SteppedEngine

Found = TypeVar("Found")
Stepped = TypeVar("Stepped", bound=SteppedEngine)

LOOKS_PER_STALL = 10
"""How often within stall_timeout_s the watchdog looks: a stall is told at most so much of it too late."""


class EngineFailure(RuntimeError):
    """The engine has failed, or its loop was closed; every request that had no answer then has this one."""


class Together(NamedTuple):
    """Requests that are to enter the engine before one step: `Together("version 3", num=32)`."""

    name: Hashable
    num: int


class Asked(NamedTuple):
    """A request on its way to the engine."""

    request: Request
    sampling: Sampling
    answer: Future[Completion | Failure]


class Called(NamedTuple):
    """Something to be done with the engine between two steps."""

    function: Callable[[], Any]
    holds: bool | None
    """Whether requests have to wait from then on; None leaves that as it is."""
    answer: Future[Any]


class EngineLoop(Generic[Stepped]):
    """One engine that many threads ask at once.

    A thread of its own starts the engine and steps it while there is work, so that finished requests leave and new ones
    enter without draining; between steps the engine is nobody else's. A second thread watches that steps come to an end.
    """

    def __init__(
        self, start: Callable[[], Stepped], *, stall_timeout_s: float, on_failure: Callable[[str], None]
    ) -> None:
        """Waits for the engine that `start` returns; it stays the caller's to close.

        `start` is called in the thread that steps: one that had computed elsewhere would leave OpenMP a second team of
        threads, more than there are cores, and OpenMP has threads sleep at every barrier then (a tenth of the speed).

        `on_failure` is called once, before any request is told: with the type and first line of what the engine
        raised, or when there is work and no step has finished for stall_timeout_s seconds. A call counts as a step.

        Raises: what `start` raises.
        """
        self._stall_timeout_s, self._on_failure = stall_timeout_s, on_failure
        self._changed = threading.Condition()  # guards everything below
        self._arrived: list[Asked] = []
        self._called: list[Called] = []
        self._is_held = False
        """Requests wait, until a call lets them go on."""
        self._gathered: dict[Hashable, list[Asked]] = {}
        """What is to enter together, by name, until all of it is there."""
        self._inside: dict[int, Future[Completion | Failure]] = {}
        self._next_number = 0
        self._busy_since: float | None = None
        """When the last step finished, or work came to an idle engine; None while it is idle."""
        self._ended: str | None = None
        """Why the loop takes no more requests."""
        self._over = threading.Event()
        started: Future[Stepped] = Future()
        self._thread = threading.Thread(target=self._live, args=(start, started), name="engine loop", daemon=True)
        self._thread.start()
        self.engine: Stepped = started.result()
        self._watchdog = threading.Thread(target=self._watch, name="engine watchdog", daemon=True)
        self._watchdog.start()

    @property
    def num_tokens(self) -> int:
        """Tokens of all finished responses since the engine's start."""
        return self.engine.num_tokens

    def submit(
        self, request: Request, sampling: Sampling, together: Together | None = None
    ) -> Future[Completion | Failure]:
        """Asks, from any thread. The future's exception is EngineFailure once the engine has failed.

        Requests that are `together` enter before one step, ordered by their seeds, when all of them are there: so how an engine
        that was idle batches them, and rounds, does not hang on when each of them came.
        """
        answer: Future[Completion | Failure] = Future()
        with self._changed:
            if self._ended is None:
                asked = Asked(request, sampling, answer)
                self._arrived += [asked] if together is None else self._complete(asked, together)
                self._changed.notify()
                return answer
            reason = self._ended
        answer.set_exception(EngineFailure(reason))
        return answer

    def _complete(self, asked: Asked, together: Together) -> list[Asked]:
        """All that are together, with the last of them; before, none."""
        gathered = self._gathered.setdefault(together.name, [])
        gathered.append(asked)
        if len(gathered) < together.num:
            return []
        return sorted(self._gathered.pop(together.name), key=lambda one: one.request.seed)

    def call(self, function: Callable[[], Found], *, holds: bool | None = None) -> Future[Found]:
        """Has the function called in the engine's own thread, before its next step; calls are made in their order.

        With `holds` no request goes on, or enters, until a call that says False; calls are made all the same.

        What it raises fails the engine. The future's exception is EngineFailure then, as it is for every request.
        """
        called = Called(function, holds, Future())
        called.answer.set_running_or_notify_cancel()  # nobody can cancel it from now on
        with self._changed:
            if self._ended is None:
                self._called.append(called)
                self._changed.notify()
                return called.answer
            reason = self._ended
        called.answer.set_exception(EngineFailure(reason))
        return called.answer

    def close(self) -> None:
        """Ends both threads. Waits for the step that is under way, but no longer than stall_timeout_s seconds."""
        reason = "the engine's loop was closed"
        if self._ends(reason):
            self._tell(reason)
        self._thread.join(self._stall_timeout_s)
        self._watchdog.join(self._stall_timeout_s)

    def _live(self, start: Callable[[], Stepped], started: Future[Stepped]) -> None:
        try:
            engine = start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(engine)
        self._run(engine)

    def _run(self, engine: Stepped) -> None:
        try:
            while self._waits_for_work():
                self._does_what_was_called_for()
                if self._is_held or not self._takes_in_what_arrived(engine):
                    continue
                finished = engine.step()
                with self._changed:
                    self._busy_since = time.monotonic()
                    answers = [(self._inside.pop(number, None), completion) for number, completion in finished]
                for answer, completion in answers:
                    if answer is not None:  # None: told of a failure before
                        answer.set_result(completion)
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            self._fail(f"{type(error).__name__}: {first_line}")

    def _waits_for_work(self) -> bool:
        """False once the loop has ended."""
        with self._changed:
            while self._ended is None and not self._called:
                can_step = bool(self._arrived or self._inside)
                has_requests = can_step or bool(self._gathered)
                if can_step and not self._is_held:
                    break
                if not has_requests:
                    self._busy_since = None
                elif self._busy_since is None:
                    self._busy_since = time.monotonic()
                self._changed.wait()
            if self._busy_since is None:
                self._busy_since = time.monotonic()
            return self._ended is None

    def _does_what_was_called_for(self) -> None:
        while self._called:
            called = self._called[0]  # which stays there until it has an answer: a failure tells it, too
            found = called.function()
            with self._changed:
                self._busy_since = time.monotonic()
                self._is_held = self._is_held if called.holds is None else called.holds
                is_waited_for = bool(self._called)
                self._called = self._called[1:]
            if is_waited_for:
                called.answer.set_result(found)

    def _takes_in_what_arrived(self, engine: Stepped) -> bool:
        """Hands what is new to the engine; False if there is nothing to step for."""
        with self._changed:
            arrived, self._arrived = self._arrived, []
            numbered = {}
            for asked in arrived:
                if asked.answer.set_running_or_notify_cancel():
                    numbered[self._next_number] = asked
                    self._inside[self._next_number] = asked.answer
                    self._next_number += 1
        for number, asked in numbered.items():
            refused = engine.add(number, asked.request, asked.sampling)
            if refused is not None:
                with self._changed:
                    answer = self._inside.pop(number, None)
                if answer is not None:
                    answer.set_result(refused)
        return bool(self._inside)

    def _watch(self) -> None:
        timeout = self._stall_timeout_s
        while not self._over.wait(timeout / LOOKS_PER_STALL):
            busy_since = self._busy_since
            if busy_since is not None and time.monotonic() - busy_since >= timeout:
                self._fail(f"no step of the engine has finished for engine.stall_timeout_s={timeout:g} s of work")
                return

    def _fail(self, reason: str) -> None:
        if self._ends(reason):
            try:
                self._on_failure(reason)
            finally:
                self._tell(reason)

    def _ends(self, reason: str) -> bool:
        """Whether this reason is the one that ends the loop: the first."""
        with self._changed:
            if self._ended is None:
                self._ended = reason
                return True
            return False

    def _tell(self, reason: str) -> None:
        """Everyone who still waits is told, and both threads end."""
        with self._changed:
            waiting = [*self._arrived, *(asked for gathered in self._gathered.values() for asked in gathered)]
            left = [asked.answer for asked in waiting if asked.answer.set_running_or_notify_cancel()]
            left += self._inside.values()
            calls = [called.answer for called in self._called]
            self._arrived, self._gathered, self._inside, self._called = [], {}, {}, []
            self._changed.notify()
        self._over.set()
        for answer in (*left, *calls):
            answer.set_exception(EngineFailure(reason))
