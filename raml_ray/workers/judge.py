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
from raml_ray.text import answers
from raml_ray.workers.judge_server import Limits, receive, send

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
CLOSE_SECONDS = 5.0
GOLDEN = [
    ("11", r"\boxed{11}", Verdict.CORRECT),
    ("11", r"\boxed{12}", Verdict.WRONG),
    ("11", "the answer is 11", Verdict.UNREADABLE),
    ("2", r"\boxed{1}. Wait, no: \boxed{2}", Verdict.CORRECT),
    ("4", r"<think>\boxed{4}</think> \boxed{5}", Verdict.WRONG),
    (r"\frac{1}{2}", r"\boxed{0.5}", Verdict.CORRECT),
    ("5", r"\boxed{3=5}", Verdict.WRONG),
    (r"\{1,2\}", r"\boxed{(1,2)}", Verdict.WRONG),
    ("0.1234567", r"\boxed{0.1234569}", Verdict.WRONG),
    (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", Verdict.CORRECT),
    ("x^2-1", r"\boxed{(x-1)(x+1)}", Verdict.CORRECT),
    ("1", r"\boxed{9^{9^{9^{9}}}}", Verdict.WRONG),
    ("", r"\boxed{1}", Verdict.ERROR),
]


class JudgePool:
    """Judges of final answers, at most `num_workers` at once. Any thread may call; calls from several take turns.

    Each answer has `cpu_seconds` of CPU time (then the verdict is `timeout`), `memory_mib` of memory (`error`) and, as
    a guard against a judge that sleeps, `wall_seconds`. The helper ends with the process that owns the pool.
    """

    def __init__(
        self,
        num_workers: int = 2,
        cpu_seconds: float = 2.0,
        wall_seconds: float = 20.0,
        max_answer_chars: int = 2000,
        memory_mib: int = 2048,
    ) -> None:
        for name, value in (("num_workers", num_workers), ("cpu_seconds", cpu_seconds), ("wall_seconds", wall_seconds)):
            if value <= 0:
                raise ValueError(f"verify.{name}={value} must be positive")
        self._limits = Limits(num_workers, cpu_seconds, wall_seconds, max_answer_chars, memory_mib)
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

        The same final answer to the same gold answer is judged once. Texts are searched for their final answer here, in
        the caller's process: the time of a pattern of your own is not bounded.

        Raises: ValueError if the pattern is none or the pool is closed; RuntimeError if the helper keeps dying.
        """
        extracted = [answers.extract_final(text, pattern=pattern) for _, text in items]
        keys = [None if answer is None else (gold, answer) for (gold, _), answer in zip(items, extracted, strict=True)]
        distinct = list(dict.fromkeys(key for key in keys if key is not None))
        with self._lock:
            judged = dict(zip(distinct, self._judge_all(distinct), strict=True))
        unread = Judgement(Verdict.UNREADABLE, "no_answer", "", 0.0)
        return [unread if key is None else judged[key] for key in keys]

    def _judge_all(self, pairs: list[tuple[str, str]]) -> list[Judgement]:
        found: dict[int, Judgement] = {}
        self._alive()
        for _ in range(MAX_RESTARTS + 1):
            if len(found) == len(pairs):
                return [found[index] for index in range(len(pairs))]
            try:
                self._exchange([index for index in range(len(pairs)) if index not in found], pairs, found)
            except (EOFError, BrokenPipeError):
                status = self._end()
                logger.warning(
                    "the judge's helper died with status %s, %d of %d judged", status, len(found), len(pairs)
                )
                self._process = self._start()
        raise RuntimeError(f"the judge's helper died {MAX_RESTARTS + 1} times: its messages are on standard error")

    def _exchange(self, indices: list[int], pairs: list[tuple[str, str]], found: dict[int, Judgement]) -> None:
        """Fill `found` for those indices, with at most two requests per worker on the way: neither pipe can fill up."""
        process = self._alive()
        assert process.stdin is not None and process.stdout is not None
        outbox = iter(indices)
        sent: dict[int, int] = {}
        for index in itertools.islice(outbox, 2 * self._limits.num_workers):
            self._send(process.stdin.fileno(), index, pairs[index], sent)
        while sent:
            number, verdict, reason, extracted, cpu_seconds = receive(process.stdout.fileno())
            assert isinstance(number, int) and isinstance(cpu_seconds, int | float)
            answered = sent.pop(number, None)
            if answered is None:  # of a call that was interrupted
                continue
            found[answered] = Judgement(Verdict(str(verdict)), str(reason), str(extracted), float(cpu_seconds))
            for index in itertools.islice(outbox, 1):
                self._send(process.stdin.fileno(), index, pairs[index], sent)

    def _send(self, descriptor: int, index: int, pair: tuple[str, str], sent: dict[int, int]) -> None:
        number = next(self._numbers)
        send(descriptor, [number, *pair])
        sent[number] = index

    def self_test(self) -> None:
        """Nothing, after judging a dozen answers whose verdicts are known.

        Raises: RuntimeError naming those that were misjudged: the judge's libraries do not do here what they should.
        """
        judgements = self.judge([(gold, text) for gold, text, _ in GOLDEN])
        misjudged = [
            f"{text!r} for {gold!r}: {judgement.verdict} ({judgement.reason}), not {expected}"
            for (gold, text, expected), judgement in zip(GOLDEN, judgements, strict=True)
            if judgement.verdict is not expected
        ]
        if misjudged:
            raise RuntimeError("the judge fails its self-test: " + "; ".join(misjudged))

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
