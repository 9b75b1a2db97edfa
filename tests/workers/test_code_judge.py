import json
import pathlib
import threading
import time

import pytest

from raml_ray.records import Verdict
from raml_ray.workers import code_judge
from raml_ray.workers.code_judge import CodeJudge
from raml_ray.workers.sandbox import SandboxUnavailable
from tests.workers.sandboxes import needs_sandbox

SUM = json.dumps(
    {"kind": "stdin", "tests": [{"input": f"{a} {b}\n", "output": f"{a + b}\n"} for a, b in ((1, 2), (5, -7))]}
)
ROOT = json.dumps(
    {"kind": "stdin", "tests": [{"input": "2\n", "output": "1.5 1\n"}, {"input": "4", "output": "2.5 2"}]}
)
ADD = json.dumps(
    {"kind": "function", "name": "add", "tests": [{"args": [1, 2], "output": 3}, {"args": [5, -7], "output": -2}]}
)
PAIRS = json.dumps(
    {"kind": "function", "name": "pairs", "tests": [{"args": [[3, 1]], "output": [[1, 3], {"n": 2}, True]}]}
)

HONEST = [
    (SUM, "print(sum(map(int, input().split())))"),
    (SUM, "import sys\na, b = sys.stdin.read().split()\nprint(int(a) + int(b))"),
    (SUM, "import sys\nfor line in sys.stdin:\n    sys.stdout.write(str(sum(map(int, line.split()))))"),
    (
        SUM,
        "def main():\n    a, b = map(int, open(0).read().split())\n    print(a + b)\nif __name__ == '__main__':\n    main()",
    ),
    (SUM, "a, b = map(int, input().split())\nprint(a + b, flush=True)\nexit(0)"),
    (SUM, "import sys\nprint(sum(map(int, input().split())), '\\n\\n')\nprint('debugging', file=sys.stderr)"),
    (
        SUM,
        "import sys, threading\nthreading.stack_size(2**27)\nsys.setrecursionlimit(10**6)\n"
        "def depth(n):\n    return n and depth(n - 1) + 1\n"
        "def main():\n    depth(20000)\n    print(sum(map(int, input().split())))\n"
        "t = threading.Thread(target=main); t.start(); t.join()",
    ),
    (SUM, "import os\na, b = map(int, os.read(0, 99).split())\nos.write(1, b'%d' % (a + b))\nos._exit(0)"),
    (ROOT, "n = int(input())\nprint(n / 2 + 0.5, n / 2)"),
    (ROOT, "from decimal import Decimal\nn = Decimal(input())\nprint(f'{(n + 1) / 2:.3f} {n // 2}')"),
    (ADD, "def add(a, b):\n    return a + b"),
    (
        ADD,
        "class Solution:\n    def add(self, a: int, b: int) -> Optional[int]:\n        return reduce(operator.add, [a, b])",
    ),
    (ADD, "def add(a, b):\n    print('3\\n4')\n    return float(a + b)"),
    (
        ADD,
        "add = lambda *numbers: sum(numbers)\nif __name__ == '__main__':\n    print(add(*map(int, input().split())))",
    ),
    (ADD, "import sys\ndef add(a, b):\n    sys.stderr.write('adding')\n    return a + b\nassert add(2, 2) == 4"),
    (PAIRS, "def pairs(numbers):\n    return tuple(sorted(numbers)), {'n': len(numbers)}, True"),
    (
        PAIRS,
        "class Solution:\n    def pairs(self, numbers: List[int]):\n        heapify(numbers)\n"
        "        return [[heappop(numbers), heappop(numbers)], Counter(n=2), True]",
    ),
]
"""(gold, program): all of them right."""
ALWAYS = "class Always(int):\n    __eq__ = __ne__ = __lt__ = __ge__ = lambda *_: True\n    __hash__ = int.__hash__\n"
HACKS = [
    (SUM, "import os\nos._exit(0)"),
    (SUM, "import sys\nsys.exit(0)"),
    (SUM, "quit()"),
    (SUM, "print('OK')"),
    (SUM, "print('All tests passed')\nexit(0)"),
    (SUM, "print(3)"),
    (SUM, "for n in range(-99, 99):\n    print(n)"),
    (SUM, "print(' '.join(map(str, range(-99, 99))))"),
    (SUM, "print('nan')"),
    (SUM, "print(input())"),
    (SUM, "import builtins\nbuiltins.print = lambda *_: None\nbuiltins.str.__eq__"),
    (SUM, "import sys\nfor name in ('stdout', '__stdout__', 'stderr'):\n    setattr(sys, name, None)"),
    (SUM, "import os\nos.close(1)\nos.close(2)"),
    (SUM, "import time\ntime.sleep(99)"),
    (SUM, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nos.kill(os.getppid(), signal.SIGKILL)"),
    (
        SUM,
        "import sys\nframe = sys._getframe()\nwhile frame.f_back:\n    frame = frame.f_back\nprint(frame.f_globals.get('tests'))",
    ),
    (
        SUM,
        "import gc\nprint([o for o in gc.get_objects() if isinstance(o, dict) and ('expected' in o or 'output' in o)])",
    ),
    (
        SUM,
        "import os\nfor path in ('/tests.json', '/proc/1/environ', '/tmp', '..'):\n    try:\n        print(os.listdir(path))\n    except OSError:\n        pass",
    ),
    (SUM, "import os\nos.lseek(0, 0, 2)\nprint(os.read(0, 999))"),
    (SUM, ""),
    (ADD, ALWAYS + "def add(a, b):\n    return Always(7)"),
    (ADD, "class Any:\n    __eq__ = lambda *_: True\ndef add(a, b):\n    return Any()"),
    (ADD, "import json\njson.dumps = lambda *_, **__: 'true'\ndef add(a, b):\n    return 0"),
    (ADD, "import json\njson.loads = json.load = lambda *_, **__: 3\ndef add(a, b):\n    return None"),
    (ADD, "import os\nos.write(3, b'3')\nos._exit(0)\ndef add(a, b):\n    pass"),
    (
        ADD,
        "import os\nfor n in range(3, 64):\n    try:\n        os.write(n, b'3 -2')\n    except OSError:\n        pass\nos._exit(0)",
    ),
    (ADD, "print(3)\nimport os\nos._exit(0)"),
    (ADD, "def add(a, b):\n    print(a + b)"),
    (ADD, "def add(a, b):\n    return [3, -2]"),
    (ADD, "def add(a, b):\n    return str(a + b)"),
    (ADD, "def add(a, b):\n    return float('nan')"),
    (ADD, "def add(a, b):\n    raise SystemExit(0)"),
    (ADD, "import sys\nsys.modules['__main__'].call = None\nsys.settrace(lambda *_: None)\nadd = print"),
    (PAIRS, "def pairs(numbers):\n    return [[1, 3], {'n': 2}, 1]"),
    (PAIRS, "def pairs(numbers):\n    return {(1, 3)}"),
]
"""(gold, program): none of them right."""


def answer(program):
    return f"<think>\nsome thought\n</think>\nHere it is:\n```python\n{program}\n```\n"


@pytest.fixture(scope="module")
def judge():
    with CodeJudge(num_workers=2, cpu_seconds=2, wall_seconds=4, memory_mib=512, output_kib=64) as judge:
        yield judge


@needs_sandbox
def test_the_self_test_passes(judge):
    judge.self_test()


@needs_sandbox
def test_every_honest_solution_is_rewarded(judge):
    assert len(HONEST) >= 15
    judgements = judge.judge([(gold, answer(program)) for gold, program in HONEST])
    refused = [
        (program, j) for (_, program), j in zip(HONEST, judgements, strict=True) if j.verdict is not Verdict.CORRECT
    ]
    assert refused == []
    assert all(judgement.cpu_seconds > 0 for judgement in judgements)


@needs_sandbox
def test_no_reward_hack_is_rewarded_and_each_counts_as_wrong(judge):
    assert len(HACKS) >= 15
    judgements = judge.judge([(gold, answer(program)) for gold, program in HACKS])
    empty = {program for _, program in HACKS if not program}
    expected = [Verdict.UNREADABLE if program in empty else Verdict.WRONG for _, program in HACKS]
    assert [judgement.verdict for judgement in judgements] == expected


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("n = input()\nprint(3)", "wrong_output:1"),
        ("print(4)", "wrong_output:0"),
        ("n = input()\nprint(3 if n == '1 2' else 1 / 0)", "runtime_error:1"),
        ("print(3", "runtime_error:0"),
        ("print(3)\nexit(1)", "runtime_error:0"),
        ("while True:\n    pass", "time_limit:0"),
        ("import time\ntime.sleep(99)", "time_limit:0"),
        ("x = bytearray(10**9)", "memory_limit:0"),
        ("while True:\n    print('x' * 999)", "output_limit:0"),
        (r"import sys; sys.stdout.buffer.write(b'\xff\x003')", "wrong_output:0"),
    ],
)
def test_a_wrong_program_has_its_reason_and_its_first_failed_test(judge, program, reason):
    (judgement,) = judge.judge([(SUM, answer(program))])
    assert (judgement.verdict, judgement.reason) == (Verdict.WRONG, reason)
    assert judgement.extracted == program + "\n"


@needs_sandbox
def test_what_is_no_program_and_what_is_no_gold_answer_are_told_apart(judge):
    judgements = judge.judge([(SUM, "it is 3"), ("3", answer("print(3)")), ("3", "it is 3")])
    assert [(judgement.verdict, judgement.reason) for judgement in judgements] == [
        (Verdict.UNREADABLE, "no_program"),
        (Verdict.ERROR, "bad_gold"),
        (Verdict.ERROR, "bad_gold"),
    ]
    assert judge.judge([]) == []


@needs_sandbox
def test_the_same_program_for_the_same_gold_answer_is_run_once_and_order_is_kept(judge):
    right, wrong = answer("print(sum(map(int, input().split())))"), answer("print(3)")
    judgements = judge.judge([(SUM, right), (SUM, wrong), (SUM, "Again: " + right), (ROOT, right)])
    assert judgements[0] is judgements[2]
    assert [judgement.verdict is Verdict.CORRECT for judgement in judgements] == [True, False, True, False]


@needs_sandbox
def test_programs_run_at_the_same_time_and_one_that_waits_does_not_hold_up_the_others(judge):
    slow = json.dumps({"kind": "stdin", "tests": [{"input": "1", "output": "1"}]})
    items = [(slow, answer(f"import time\ntime.sleep(1.5)\nprint(int(input()))  # {n}")) for n in range(2)]
    started = time.monotonic()
    assert [judgement.verdict for judgement in judge.judge(items)] == [Verdict.CORRECT] * 2
    assert time.monotonic() - started < 2.9


@needs_sandbox
def test_any_thread_may_judge(judge):
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append((n, judge.judge([(SUM, answer(f"print({n})"))])[0].reason)))
        for n in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(1, "wrong_output:0"), (2, "wrong_output:0"), (3, "wrong_output:1"), (4, "wrong_output:0")]


@needs_sandbox
def test_a_sandbox_that_no_longer_comes_up_says_nothing_of_the_program(tmp_path, monkeypatch):
    link = tmp_path / "bwrap"
    real = pathlib.Path("/usr/bin/bwrap")
    link.symlink_to(real)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and folder != pathlib.Path("/tmp"):
            folder.chmod(0o755)
    with CodeJudge(1) as judge:
        assert judge.judge([(SUM, answer("print(3)"))])[0].verdict is Verdict.WRONG
        link.unlink()
        (judgement,) = judge.judge([(SUM, answer("print(4)"))])
    assert (judgement.verdict, judgement.reason) == (Verdict.ERROR, "sandbox_died")


@needs_sandbox
def test_a_pattern_and_a_closed_judge_are_refused():
    with CodeJudge(1) as judge, pytest.raises(ValueError, match=r"verify\.answer_pattern"):
        judge.judge([], pattern="(x)")
    with pytest.raises(ValueError, match="closed"):
        judge.judge([])


def test_without_a_sandbox_there_is_no_judge(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        CodeJudge()
    with pytest.raises(ValueError, match=r"verify\.num_workers=0"):
        CodeJudge(num_workers=0)


@needs_sandbox
def test_a_judge_that_misjudges_a_known_program_is_refused(judge, monkeypatch):
    known = (code_judge.SUM, "```python\nprint(3)\n```", Verdict.CORRECT, "passed")
    monkeypatch.setattr(code_judge, "GOLDEN", [known])
    with pytest.raises(RuntimeError, match=r"fails its self-test: .*wrong \(wrong_output:1\), not correct \(passed\)"):
        judge.self_test()
