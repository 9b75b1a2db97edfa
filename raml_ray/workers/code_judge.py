"""Judging programs that models wrote: each test is a launch of its own in the sandbox, compared outside of it.

What a test expects never enters the sandbox, and an exit code alone is never success: a program is rewarded for what it
prints or returns, whatever else it does. A program that brings down its own run has failed that test.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from raml_ray.records import Judgement, Verdict
from raml_ray.text.programs import ProgramTests, extract_program, parse_tests
from raml_ray.workers.sandbox import Limits, SandboxUnavailable, Status
from raml_ray.workers.sandbox_probe import checked

logger = logging.getLogger(__name__)

EXTRACTED_CHARS = 500
REASONS: dict[Status, str] = {
    "exit": "runtime_error",
    "cpu": "time_limit",
    "wall": "time_limit",
    "memory": "memory_limit",
    "killed": "memory_limit",
    "output": "output_limit",
}
SUM = '{"kind": "stdin", "tests": [{"input": "1 2\\n", "output": "3\\n"}, {"input": "5 -7\\n", "output": "-2\\n"}]}'
ADD = '{"kind": "function", "name": "add", "tests": [{"args": [1, 2], "output": 3}, {"args": [[1], [2]], "output": [1, 2]}]}'
GOLDEN = [
    (SUM, "```python\nprint(sum(map(int, input().split())))\n```", Verdict.CORRECT, "passed"),
    (SUM, "```\na, b = map(int, input().split())\nprint(f'{a + b}.0')\n```", Verdict.CORRECT, "passed"),
    (SUM, "```python\nprint(3)\n```", Verdict.WRONG, "wrong_output:1"),
    (SUM, "```python\nimport os\nos._exit(0)\n```", Verdict.WRONG, "wrong_output:0"),
    (SUM, "```python\nraise SystemExit(0)\n```", Verdict.WRONG, "wrong_output:0"),
    (SUM, "```python\nprint(3)\n1 / 0\n```", Verdict.WRONG, "runtime_error:0"),
    (SUM, "the sum is 3", Verdict.UNREADABLE, "no_program"),
    (ADD, "```python\nclass Solution:\n    def add(self, a, b):\n        return a + b\n```", Verdict.CORRECT, "passed"),
    (ADD, "```python\ndef add(a, b):\n    print(a)\n    return a + b\n```", Verdict.CORRECT, "passed"),
    (
        ADD,
        "```python\nclass Equal(int):\n    __eq__ = lambda *_: True\ndef add(a, b):\n    return Equal(7)\n```",
        Verdict.WRONG,
        "wrong_output:0",
    ),
    ("3", "```python\nprint(3)\n```", Verdict.ERROR, "bad_gold"),
]


class CodeJudge:
    """Judges of programs, at most `num_workers` at once, in any thread of any process.

    A program has per test `cpu_seconds` of CPU time and, as a guard against one that sleeps, `wall_seconds`; it may
    have `memory_mib` of memory and write `output_kib`. To pass a limit is to fail the test: the verdict `timeout`, which
    spares a program its punishment, would be worth sleeping for.
    Raises: SandboxUnavailable, with the remedy, if no sandbox holds here; ValueError if a limit is not positive.
    """

    def __init__(
        self,
        num_workers: int = 2,
        cpu_seconds: float = 6.0,
        wall_seconds: float = 20.0,
        memory_mib: int = 1024,
        output_kib: int = 1024,
    ) -> None:
        if num_workers <= 0:
            raise ValueError(f"verify.num_workers={num_workers} must be positive")
        self._sandbox = checked(Limits(cpu_seconds, wall_seconds, memory_mib, output_kib))
        self._workers = ThreadPoolExecutor(num_workers, thread_name_prefix="code_judge")
        self._is_closed = False

    def judge(self, items: Sequence[tuple[str, str]], pattern: str = "") -> list[Judgement]:
        """The judgement of each (gold answer, trajectory text), in their order.

        Reasons: `passed`; `no_program`; `bad_gold`; or why the first test that failed did, and its index, counted from
        0: `wrong_output:2`, `runtime_error:0`, `time_limit:1`, `memory_limit:0`, `output_limit:0`. Later tests are not
        run. The same program for the same gold answer is judged once. A sandbox that no longer comes up is
        `sandbox_died`, which says nothing of the program.

        Raises: ValueError if the judge is closed or a pattern is given, which programs have no use for.
        """
        if pattern:
            raise ValueError("verify.answer_pattern finds final answers; programs are read from their last code block")
        if self._is_closed:
            raise ValueError("the code judge is closed")
        tests: dict[str, ProgramTests | None] = {gold: _read(gold) for gold, _ in items}
        keys = [(gold, extract_program(text)) for gold, text in items]
        distinct = list(dict.fromkeys(keys))
        judged = self._workers.map(lambda key: self._judge_one(tests[key[0]], key[1]), distinct)
        found = dict(zip(distinct, judged, strict=True))
        return [found[key] for key in keys]

    def _judge_one(self, tests: ProgramTests | None, program: str | None) -> Judgement:
        shown = (program or "")[:EXTRACTED_CHARS]
        if tests is None:
            return Judgement(Verdict.ERROR, "bad_gold", shown, 0.0)
        if program is None:
            return Judgement(Verdict.UNREADABLE, "no_program", "", 0.0)
        cpu_seconds = 0.0
        for index in range(len(tests.tests)):
            try:
                run = self._sandbox.run(program, tests.stdin(index), tests.kind)
            except SandboxUnavailable as error:  # it did before: the machine's trouble, not the program's
                logger.warning("%s", error)
                return Judgement(Verdict.ERROR, "sandbox_died", shown, cpu_seconds)
            cpu_seconds += run.cpu_seconds
            if run.status != "ok":
                return Judgement(Verdict.WRONG, f"{REASONS[run.status]}:{index}", shown, cpu_seconds)
            if not tests.is_passed(index, run.stdout):
                return Judgement(Verdict.WRONG, f"wrong_output:{index}", shown, cpu_seconds)
        return Judgement(Verdict.CORRECT, "passed", shown, cpu_seconds)

    def self_test(self) -> None:
        """Nothing, after judging a dozen programs whose verdicts are known, honest ones and others.

        Raises: RuntimeError naming those that were misjudged.
        """
        judgements = self.judge([(gold, text) for gold, text, _, _ in GOLDEN])
        misjudged = [
            f"{text!r}: {judgement.verdict} ({judgement.reason}), not {verdict} ({reason})"
            for (_, text, verdict, reason), judgement in zip(GOLDEN, judgements, strict=True)
            if judgement.verdict is not verdict or judgement.reason != reason
        ]
        if misjudged:
            raise RuntimeError("the code judge fails its self-test: " + "; ".join(misjudged))

    def close(self) -> None:
        """Wait for the programs that run and end the threads; a closed judge stays closed."""
        self._is_closed = True
        self._workers.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(gold: str) -> ProgramTests | None:
    try:
        return parse_tests(gold)
    except ValueError:
        return None
