"""Judging final answers in processes that can be killed: the pool that any thread of any process may own.

math-verify's own time limit needs the main thread, which most of Ray is not. Here the limit is the kernel's, in a
helper process (`judge_server`), so a verdict depends on neither the thread nor the machine's load.
"""

import itertools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import raml_ray
from raml_ray.records import Judgement, Verdict
from raml_ray.text import final_answer
from raml_ray.text.golden import GOLDEN, Kind
from raml_ray.workers.frames import receive, send
from raml_ray.workers.judge_server import Limits

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
CLOSE_SECONDS = 5.0

Reply = str | Judgement | None
"""Of a text the final answer that was read in it, None if there is none; or the judgement, if it came to that."""


class JudgePool:
    """Judges of final answers, at most `num_workers` at once. Any thread may call; calls from several take turns.

    `judge` says by which rules: `strict` and `paper` of mathematics, `choice` of an option's letter (`text/answers.py`,
    `paper_judge.py`, `choices.py`). Each answer has `cpu_seconds` of CPU time (then the verdict is `timeout`),
    `memory_mib` of memory (`error`) and, as a guard against a judge that sleeps, `wall_seconds`. So has the search for
    it by a pattern. The helper ends with the process that owns the pool.
    """

    def __init__(
        self,
        num_workers: int = 2,
        cpu_seconds: float = 0.6,
        wall_seconds: float = 20.0,
        max_answer_chars: int = 2000,
        memory_mib: int = 2048,
        judge: Kind = "strict",
    ) -> None:
        for name, value in (("num_workers", num_workers), ("cpu_seconds", cpu_seconds), ("wall_seconds", wall_seconds)):
            if value <= 0:
                raise ValueError(f"verify.{name}={value} must be positive")
        self._limits = Limits(judge, num_workers, cpu_seconds, wall_seconds, max_answer_chars, memory_mib)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        package_root = str(Path(raml_ray.__file__).parents[1])
        inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "HOME") if name in os.environ}
        # Nothing else of our environment (tokens, keys): the helper reads what models wrote. One thread: it forks.
        environment = inherited | {
            "PYTHONPATH": os.pathsep.join([package_root, *filter(None, sys.path)]),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "raml_ray.workers.judge_server", self._limits.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # an interrupt from the terminal is its owner's, not the helper's
        )

    @property
    def pid(self) -> int:
        """Process id of the helper. Raises: ValueError if the pool is closed."""
        return self._alive().pid

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ValueError("the judge pool is closed")
        return self._process

    def judge(self, items: Sequence[tuple[str, str]], pattern: str = "") -> list[Judgement]:
        """The judgement of each (gold answer, trajectory text), in their order.

        The same final answer to the same gold answer is judged once. With a pattern, `paper` and `choice` are given
        what it reads as the content of a box; without one, the whole text.

        Raises: ValueError if the pattern is none or the pool is closed; RuntimeError if the helper keeps dying.
        """
        texts = [text for _, text in items]
        with self._lock:
            self._alive()
            readings = self._read(texts, pattern) if pattern else self._found(texts)
            keys = [
                (gold, reading) for (gold, _), reading in zip(items, readings, strict=True) if isinstance(reading, str)
            ]
            judged = self._distinct("judge", keys)
        unread = Judgement(Verdict.UNREADABLE, "no_answer", "", 0.0)
        found: list[Judgement] = []
        for (gold, _), reading in zip(items, readings, strict=True):
            reply = judged[gold, reading] if isinstance(reading, str) else reading or unread
            assert isinstance(reply, Judgement)
            found.append(reply)
        return found

    def _found(self, texts: list[str]) -> list[str | None]:
        """What each text is judged by without a pattern: its last box, which takes one pass to find, or all of it."""
        if self._limits.judge != "strict":
            return [text[-final_answer.MOST_CHARS :] for text in texts]
        return [final_answer.extract_final(text) for text in texts]

    def _read(self, texts: list[str], pattern: str) -> list[Reply]:
        final_answer.check_pattern(pattern)
        read = self._distinct("read", [(pattern, text) for text in texts])
        replies = [read[pattern, text] for text in texts]
        if self._limits.judge == "strict":
            return replies
        return [f"\\boxed{{{reply}}}" if isinstance(reply, str) else reply for reply in replies]

    def _distinct(self, task: str, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], Reply]:
        """The reply to every distinct pair of key and text."""
        distinct = list(dict.fromkeys(pairs))
        return dict(zip(distinct, self._perform(task, distinct), strict=True))

    def _perform(self, task: str, pairs: list[tuple[str, str]]) -> list[Reply]:
        found: dict[int, Reply] = {}
        for _ in range(MAX_RESTARTS + 1):
            if len(found) == len(pairs):
                return [found[index] for index in range(len(pairs))]
            try:
                self._exchange(task, [index for index in range(len(pairs)) if index not in found], pairs, found)
            except (EOFError, BrokenPipeError):
                status = self._end()
                logger.warning(
                    "the judge's helper died with status %s, %d of %d judged", status, len(found), len(pairs)
                )
                self._process = self._start()
        raise RuntimeError(f"the judge's helper died {MAX_RESTARTS + 1} times: its messages are on standard error")

    def _exchange(self, task: str, indices: list[int], pairs: list[tuple[str, str]], found: dict[int, Reply]) -> None:
        """Fill `found` for those indices, with at most two requests per worker on the way: neither pipe can fill up."""
        process = self._alive()
        assert process.stdin is not None and process.stdout is not None
        outbox = iter(indices)
        sent: dict[int, int] = {}
        for index in itertools.islice(outbox, 2 * self._limits.num_workers):
            self._send(process.stdin.fileno(), index, [task, *pairs[index]], sent)
        while sent:
            number, *reply = receive(process.stdout.fileno())
            assert isinstance(number, int)
            answered = sent.pop(number, None)
            if answered is None:  # of a call that was interrupted
                continue
            found[answered] = _reply(reply)
            for index in itertools.islice(outbox, 1):
                self._send(process.stdin.fileno(), index, [task, *pairs[index]], sent)

    def _send(self, descriptor: int, index: int, request: list[str], sent: dict[int, int]) -> None:
        number = next(self._numbers)
        send(descriptor, [number, *request])
        sent[number] = index

    def self_test(self) -> None:
        """Nothing, after judging a dozen answers whose verdicts are known.

        Raises: RuntimeError naming those that were misjudged: the judge's libraries do not do here what they should.
        """
        golden = GOLDEN[self._limits.judge]
        judgements = self.judge([(gold, text) for gold, text, _ in golden])
        misjudged = [
            f"{text!r} for {gold!r}: {judgement.verdict} ({judgement.reason}), not {expected}"
            for (gold, text, expected), judgement in zip(golden, judgements, strict=True)
            if judgement.verdict is not expected
        ]
        if misjudged:
            raise RuntimeError(f"the {self._limits.judge} judge fails its self-test: " + "; ".join(misjudged))

    def _end(self) -> int:
        process = self._alive()
        assert process.stdin is not None and process.stdout is not None
        self._process = None
        process.stdin.close()
        try:
            status = process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        process.stdout.close()
        return status

    def close(self) -> None:
        """End the helper and its workers; a closed pool stays closed."""
        with self._lock:
            if self._process is not None:
                self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reply(values: list[object]) -> Reply:
    if len(values) == 1:
        return None if values[0] is None else str(values[0])
    verdict, reason, extracted, cpu_seconds = values
    assert isinstance(cpu_seconds, int | float)
    return Judgement(Verdict(str(verdict)), str(reason), str(extracted), float(cpu_seconds))
