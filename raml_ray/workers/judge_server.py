"""The judge's helper process: it forks workers, hands each one task at a time, and replaces those that die.

A task is to find the final answer in a text by a pattern of the user's (`read`), or to compare an answer with the gold
answer. Both may take for ever: what patterns and sympy do with a model's text is anybody's guess.

It is started by `judge.JudgePool` and talks over its standard input and output, in frames of a length and JSON. It has
one thread, so that forking it is safe, and has imported the judge once, so that a worker is there within milliseconds.
The kernel bounds a worker: CPU time per task (SIGPROF), address space; the helper bounds its wall time.
Linux only: prctl and /proc.
"""

import collections
import ctypes
import json
import logging
import os
import resource
import select
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

from raml_ray.records import Judgement, Verdict
from raml_ray.text import answers, choices, final_answer, paper_judge
from raml_ray.text.golden import WARM_UP, Kind
from raml_ray.workers.frames import frame, receive, send

PR_SET_PDEATHSIG = 1
OUT_OF_MEMORY_STATUS, CRASH_STATUS = 97, 98
ITEMS_PER_WORKER = 1000
"""A worker is replaced then: sympy's caches grow."""
POLL_SECONDS = 1.0
MAX_IDLE_DEATHS = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """What the helper is started with: `Limits("strict", 2, 2.0, 20.0, 2000, 2048)`."""

    judge: Kind

    num_workers: int
    cpu_seconds: float
    wall_seconds: float
    max_answer_chars: int
    memory_mib: int
    """Address space that a worker may add to what it starts with."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Request(NamedTuple):
    """One task: `read` has a pattern and a text, the others a gold answer and a final answer or whole text."""

    number: int
    task: Literal["read", "judge"]
    key: str
    text: str
    is_retry: bool = False


@dataclass(slots=True)
class Worker:
    """A forked process, and what it is judging."""

    pid: int
    requests: int
    replies: int
    request: Request | None = None
    started: float = 0.0
    num_judged: int = field(default=0)


def perform(limits: Limits, task: str, key: str, text: str) -> list[object]:
    """The reply to a task: of `read` the final answer or None alone, else a judgement. May take for ever.

    Strict judges are given final answers, the others whole texts.
    """
    if task == "read":
        return [final_answer.extract_final(text, pattern=key)]
    match limits.judge:
        case "strict":
            return list(answers.judge_extracted(key, text, max_chars=limits.max_answer_chars))
        case "paper":
            return list(paper_judge.judge_text(key, text))
        case "choice":
            return list(choices.judge_text(key, text))


def warm_up(limits: Limits) -> None:
    """Fills the caches that a forked worker is born with: its first answers would cost seconds, of their own deadline."""
    for gold, answer in WARM_UP:
        perform(limits, "judge", gold, answer if limits.judge == "strict" else f"\\boxed{{{answer}}}")


def _work(limits: Limits, requests: int, replies: int, server: int) -> None:
    """A worker's whole life: it never returns into the helper's code."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            return
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        low, high = sorted((requests, replies))
        os.closerange(3, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, 4096)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        used = _peak_bytes()
        allowed = used + limits.memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        while True:
            task, key, text = receive(requests)
            signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
            reply = perform(limits, str(task), str(key), str(text))
            signal.setitimer(signal.ITIMER_PROF, 0)
            if _peak_bytes() > used + (allowed - used) / 2:
                os._exit(OUT_OF_MEMORY_STATUS)
            send(replies, reply)
    except EOFError:
        os._exit(0)
    except MemoryError:
        os._exit(OUT_OF_MEMORY_STATUS)
    finally:
        # Without the error's message: it may hold a sympy object whose text never ends.
        traceback.print_tb(sys.exc_info()[2])
        os._exit(CRASH_STATUS)


def _peak_bytes() -> int:
    """The most address space that this process ever had.

    math-verify takes a MemoryError for an answer that it cannot read. So a worker that came to need half of what it may
    add, a hundred times what answers need, is out of memory, whatever the verdict.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmPeak:"))


def _fork(limits: Limits) -> Worker:
    assert len(os.listdir("/proc/self/task")) == 1, "the judge's helper must not have threads: it forks"
    request_reader, request_writer = os.pipe()
    reply_reader, reply_writer = os.pipe()
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        _work(limits, request_reader, reply_writer, server)
    os.close(request_reader)
    os.close(reply_writer)
    return Worker(pid, request_writer, reply_reader)


def _bury(worker: Worker) -> int:
    """Kill the worker if it still lives, and return its wait status."""
    os.kill(worker.pid, signal.SIGKILL)  # it is not reaped yet, so the pid is its own
    os.close(worker.requests)
    os.close(worker.replies)
    return os.waitpid(worker.pid, 0)[1]


def _extracted(request: Request, limits: Limits) -> str:
    """The final answer, if that is what the task was given."""
    return request.text[: answers.EXTRACTED_CHARS] if (request.task, limits.judge) == ("judge", "strict") else ""


def _obituary(status: int, request: Request, limits: Limits) -> Judgement:
    """The verdict on the trajectory over which a worker died."""
    extracted = _extracted(request, limits)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return Judgement(Verdict.TIMEOUT, "cpu_deadline", extracted, limits.cpu_seconds)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == OUT_OF_MEMORY_STATUS:
        return Judgement(Verdict.ERROR, "oom", extracted, 0.0)
    return Judgement(Verdict.ERROR, "crash", extracted, 0.0)


class Server:
    """The helper's state: its workers, the requests that wait, and the pipes to whoever asked."""

    def __init__(self, limits: Limits, incoming: int, outgoing: int) -> None:
        self.limits, self.incoming, self.outgoing = limits, incoming, outgoing
        self.parent = os.getppid()
        self.waiting: collections.deque[Request] = collections.deque()
        # What the asker has not taken yet. Waiting for it could take for ever: it may be writing to us, who do not read.
        self.unsent = bytearray()
        os.set_blocking(outgoing, False)
        self.num_idle_deaths = 0
        warm_up(limits)
        self.workers = [_fork(limits) for _ in range(limits.num_workers)]

    def serve(self) -> None:
        """Judge until the asker closes its end or dies."""
        try:
            while os.getppid() == self.parent:
                self._dispatch()
                waiting_on = [self.incoming, *(worker.replies for worker in self.workers)]
                writable = [self.outgoing] if self.unsent else []
                readable, writable, _ = select.select(waiting_on, writable, [], self._patience())
                if writable:
                    del self.unsent[: os.write(self.outgoing, self.unsent)]
                ready = set(readable)
                if self.incoming in ready:
                    number, task, key, text = receive(self.incoming)
                    assert isinstance(number, int) and (task == "read" or task == "judge")
                    self.waiting.append(Request(number, task, str(key), str(text)))
                for index, worker in enumerate(self.workers):
                    if worker.replies in ready:
                        self._collect(index)
                    elif worker.request and time.monotonic() - worker.started > self.limits.wall_seconds:
                        self._expire(index)
        except (EOFError, BrokenPipeError):
            return
        finally:
            for worker in self.workers:
                _bury(worker)

    def _patience(self) -> float:
        busy = [worker.started for worker in self.workers if worker.request]
        if not busy:
            return POLL_SECONDS
        return min(max(min(busy) + self.limits.wall_seconds - time.monotonic(), 0.0), POLL_SECONDS)

    def _dispatch(self) -> None:
        for index, worker in enumerate(self.workers):
            if worker.request or not self.waiting:
                continue
            if worker.num_judged >= ITEMS_PER_WORKER:
                _bury(worker)
                worker = self.workers[index] = _fork(self.limits)
            request = self.waiting.popleft()
            worker.request, worker.started = request, time.monotonic()
            try:
                send(worker.requests, [request.task, request.key, request.text])
            except BrokenPipeError:  # it died just now: the end of its replies will say so
                worker.request = None
                self.waiting.appendleft(request)

    def _collect(self, index: int) -> None:
        worker = self.workers[index]
        try:
            reply = receive(worker.replies)
        except EOFError:
            self._replace(index)
            return
        assert worker.request is not None
        self.unsent += frame([worker.request.number, *reply])
        worker.request = None
        worker.num_judged += 1

    def _replace(self, index: int) -> None:
        worker = self.workers[index]
        # Its end of the pipe closes a moment before it can be reaped: SIGKILL would hide what it died of.
        status = os.waitpid(worker.pid, 0)[1]
        os.close(worker.requests)
        os.close(worker.replies)
        self.workers[index] = _fork(self.limits)
        if worker.request:
            self.num_idle_deaths = 0
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not worker.request.is_retry:
                # Not its doing: a person's, or the machine's memory. Once more, in a fresh process.
                self.waiting.appendleft(worker.request._replace(is_retry=True))
                return
            self.unsent += frame([worker.request.number, *_obituary(status, worker.request, self.limits)])
            return
        self.num_idle_deaths += 1
        if self.num_idle_deaths > MAX_IDLE_DEATHS:
            raise RuntimeError(f"the judge's workers die without work, last with wait status {status}")

    def _expire(self, index: int) -> None:
        worker = self.workers[index]
        assert worker.request is not None
        _bury(worker)
        self.workers[index] = _fork(self.limits)
        judgement = Judgement(Verdict.TIMEOUT, "wall_deadline", _extracted(worker.request, self.limits), 0.0)
        self.unsent += frame([worker.request.number, *judgement])


def main() -> None:
    for library in (
        "math_verify",
        "latex2sympy2_extended",
    ):  # timeouts that are off (ours are the kernel's), old options
        logging.getLogger(library).setLevel(logging.ERROR)
    outgoing = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not end up between the frames
    Server(Limits(**json.loads(sys.argv[1])), 0, outgoing).serve()


if __name__ == "__main__":
    main()
