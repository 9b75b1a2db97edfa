import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from raml_ray.records import Verdict
from raml_ray.text import golden
from raml_ray.workers import frames
from raml_ray.workers.judge import JudgePool

ROOT = pathlib.Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "data" / "verifier_cases.jsonl"
GSM8K = ROOT / "tests" / "data" / "gsm8k"
MODELS = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
HANGING = ("(x+y+z+w)^{30}", r"\boxed{(x+y+z+w)^{29}(x+y+z+w+0.0000001)}")
UNBOXED_CASES = {"markdown_bold"}  # correct without a box: by our rule unreadable


@pytest.fixture(scope="module")
def pool():
    with JudgePool(num_workers=2, cpu_seconds=1) as pool:
        yield pool


def children(pid):
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def is_gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def paper():
    with JudgePool(num_workers=2, cpu_seconds=1, judge="paper") as pool:
        yield pool


@pytest.fixture(scope="module")
def choice():
    with JudgePool(num_workers=1, cpu_seconds=1, judge="choice") as pool:
        yield pool


@pytest.mark.parametrize("judge", ["pool", "paper", "choice"])
def test_the_self_test_passes(judge, request):
    request.getfixturevalue(judge).self_test()


def test_what_warms_the_judges_up_is_judged_as_any_answer_is(pool):
    items = [(gold, rf"\boxed{{{answer}}}") for gold, answer in golden.WARM_UP]
    wrong = [
        gold for (gold, _), judged in zip(items, pool.judge(items), strict=True) if not judged.verdict.is_judgement
    ]
    assert wrong == []


def test_a_judge_that_misjudges_a_golden_pair_is_refused(pool, monkeypatch):
    monkeypatch.setitem(golden.GOLDEN, "strict", [("5", r"\boxed{6}", Verdict.CORRECT)])
    with pytest.raises(RuntimeError, match=r"strict judge fails its self-test: '.*6.*' for '5': wrong \(different\)"):
        pool.self_test()


def test_a_pattern_that_never_ends_is_stopped_by_its_cpu_time(pool):
    judgements = pool.judge([("1", "a" * 40), ("1", "a1"), ("1", "none")], pattern=r"(?:a+)+(1)$")
    assert [(judgement.verdict, judgement.reason) for judgement in judgements] == [
        (Verdict.TIMEOUT, "cpu_deadline"),
        (Verdict.CORRECT, "exact"),
        (Verdict.UNREADABLE, "no_answer"),
    ]


def test_answers_that_no_pipe_could_hold_are_judged(pool):
    items = [(str(n), "\u221e" * 150_000 + str(n)) for n in range(12)]
    judgements = pool.judge(items, pattern=r"(?s)^(.*)$")
    assert {judgement.reason for judgement in judgements} == {"too_complex"}


@pytest.mark.parametrize("pattern", ["A: (", "A: .+"])
def test_a_pattern_that_cannot_work_is_refused_before_it_is_used(pool, pattern):
    with pytest.raises(ValueError, match=r"verify\.answer_pattern"):
        pool.judge([("1", "A: 1")], pattern=pattern)


# Where the two judges differ: what the paper's evaluation rewards or refuses against the rules of the strict one.
ONLY_PAPER_REWARDS = [
    ("42", r"\boxed{1=2=42}"),
    ("x^2=-1", r"\boxed{x=x+1}"),
    ("(1,2)", r"\boxed{\{1,2\}}"),
    (r"\{1,2\}", r"\boxed{(1,2)}"),
    ("0.1234567", r"\boxed{0.1234569}"),
    ("0.0000003", r"\boxed{0.0000001}"),
    ("10^{-20}", r"\boxed{2\cdot10^{-20}}"),
    (r"\frac13", r"\boxed{0.333333}"),
    ("0.5", r"\boxed{50\%}"),
    (r"5\text{ cm}", r"\boxed{5\text{ km}}"),
    ("1:2", r"\boxed{2:4}"),
    ("5", "answer: $5$"),
    ("5", r"\boxed{5} <think> and then it breaks off"),
]
ONLY_PAPER_REFUSES = [
    ("2", r"\boxed{1}. Wait, no: \boxed{2}"),
    ("5", r"<think>maybe \boxed{4}</think> \boxed{5}"),
    ("1000000", r"\boxed{1\,000\,000}"),
    (r"\frac13", r"\boxed{0.\overline{3}}"),
]


def test_the_papers_judge_has_its_known_errors_and_the_strict_one_has_none_of_them(pool, paper):
    for cases, rewards in ((ONLY_PAPER_REWARDS, True), (ONLY_PAPER_REFUSES, False)):
        by_paper = [judgement.verdict is Verdict.CORRECT for judgement in paper.judge(cases)]
        by_strict = [judgement.verdict is Verdict.CORRECT for judgement in pool.judge(cases)]
        assert by_paper == [rewards] * len(cases)
        assert by_strict == [not rewards] * len(cases)


def test_numbers_outside_of_latex_and_chains_that_end_elsewhere_earn_nothing_from_either_judge(pool, paper):
    cases = [
        ("42", "The answer is not 42"),
        ("42", "I saw 42 in the text but cannot answer"),
        ("1", "answer: 1((((("),
        ("5", r"\boxed{3=5}"),
        ("42", r"\boxed{x+y+17=42}"),
    ]
    for judge in (pool, paper):
        assert Verdict.CORRECT not in [judgement.verdict for judgement in judge.judge(cases)]


def test_the_papers_judge_leaves_out_what_has_no_gold_answer_and_stops_what_hangs(paper):
    judgements = paper.judge([("", r"\boxed{1}"), HANGING, ("1", r"\[ \boxed{" * 3000)])
    assert [(judgement.verdict, judgement.reason) for judgement in judgements] == [
        (Verdict.ERROR, "bad_gold"),
        (Verdict.TIMEOUT, "cpu_deadline"),
        (Verdict.TIMEOUT, "cpu_deadline"),
    ]
    assert {judgement.extracted for judgement in judgements} == {""}


def test_what_a_pattern_reads_goes_to_the_other_judges_in_a_box(paper, choice):
    pattern = r"(?m)^A:\s*(.+)$"
    assert paper.judge([(r"\frac12", "A: 0.5")], pattern=pattern)[0].verdict is Verdict.CORRECT
    assert choice.judge([("C", "Answer: B\nA: (c)")], pattern=pattern)[0].verdict is Verdict.CORRECT


def test_judgements_come_in_the_order_of_their_items(pool):
    items = [(str(n), rf"\boxed{{{n + n % 2}}}") for n in range(60)]
    judgements = pool.judge(items)
    assert [judgement.verdict is Verdict.CORRECT for judgement in judgements] == [n % 2 == 0 for n in range(60)]
    assert [judgement.extracted for judgement in judgements] == [str(n + n % 2) for n in range(60)]


def test_no_items_have_no_judgements(pool):
    assert pool.judge([]) == []


def test_a_hanging_answer_is_stopped_by_its_cpu_time_and_the_others_are_judged(pool):
    judgements = pool.judge([("1", r"\boxed{1}"), HANGING, HANGING, ("2", r"\boxed{3}")])
    assert [judgement.verdict for judgement in judgements] == [
        Verdict.CORRECT,
        Verdict.TIMEOUT,
        Verdict.TIMEOUT,
        Verdict.WRONG,
    ]
    assert judgements[1].reason == "cpu_deadline"
    assert judgements[1] is judgements[2], "the same answer is judged once"


def test_the_known_cases_are_judged_as_they_should_be(pool):
    if not CASES.exists():
        pytest.skip("the shared collection of verifier cases is not beside this checkout")
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    judgements = pool.judge([(case["gold"], case["answer"]) for case in cases])
    misjudged = {
        case["id"]
        for case, judgement in zip(cases, judgements, strict=True)
        if case["expected"] is not None and case["expected"] != (judgement.verdict is Verdict.CORRECT)
    }
    assert misjudged == UNBOXED_CASES


def test_published_solutions_are_judged_as_their_authors_did(pool):
    golds = [json.loads(line)["answer"] for line in (GSM8K / "test.jsonl").read_text().splitlines()]
    solutions = [json.loads(line) for line in (GSM8K / "example_model_solutions.jsonl").read_text().splitlines()]
    items, labels = [], []
    for gold, solution in zip(golds, solutions, strict=True):
        for model in MODELS:
            items.append((gold.rpartition("####")[2].strip(), solution[model]["solution"]))
            labels.append(solution[model]["is_correct"])
    judgements = pool.judge(items, pattern=r"(?m)^A:\s*(.+)$")
    assert [judgement.verdict is Verdict.CORRECT for judgement in judgements] == labels


def test_another_thread_gets_the_same_verdicts(pool):
    items = [("1", r"\boxed{1}"), (r"2\sqrt{2}", r"\boxed{\sqrt{8}}"), ("5", r"\boxed{3=5}"), ("5", "5")]
    found = {}

    def judge(name):
        found[name] = [judgement[:3] for judgement in pool.judge(items)]

    threads = [threading.Thread(target=judge, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    here = [judgement[:3] for judgement in pool.judge(items)]
    assert found == {0: here, 1: here, 2: here}


def test_a_killed_worker_is_replaced_and_its_answer_tried_once_more():
    with JudgePool(num_workers=1, cpu_seconds=30.0) as pool:
        pool.self_test()
        killed = []

        def kill_two():
            for _ in range(2):
                until(lambda: children(pool.pid) and children(pool.pid)[0] not in killed)
                time.sleep(0.3)
                killed.append(children(pool.pid)[0])
                os.kill(killed[-1], signal.SIGKILL)

        killer = threading.Thread(target=kill_two)
        killer.start()
        judgement = pool.judge([HANGING])[0]
        killer.join()
        assert (judgement.verdict, judgement.reason) == (Verdict.ERROR, "crash")
        pool.self_test()
        assert children(pool.pid)[0] not in killed
        assert len(set(killed)) == 2


def test_a_worker_that_dies_idle_costs_no_answer():
    with JudgePool(num_workers=1) as pool:
        pool.self_test()
        (worker,) = children(pool.pid)
        os.kill(worker, signal.SIGKILL)
        assert pool.judge([("1", r"\boxed{1}")])[0].verdict is Verdict.CORRECT


def test_a_judge_that_takes_too_long_on_the_wall_is_stopped():
    with JudgePool(num_workers=1, cpu_seconds=30.0, wall_seconds=0.3) as pool:
        judgement = pool.judge([HANGING])[0]
        assert (judgement.verdict, judgement.reason) == (Verdict.TIMEOUT, "wall_deadline")
        assert pool.judge([("1", r"\boxed{1}")])[0].verdict is Verdict.CORRECT


def test_an_answer_that_needs_more_memory_than_it_may_have_is_the_judges_error_and_the_next_one_is_judged():
    with JudgePool(num_workers=1, cpu_seconds=30, wall_seconds=300, memory_mib=8) as pool:
        judgements = pool.judge([HANGING, ("x^2-1", r"\boxed{(x-1)(x+1)}")])
    assert [(judgement.verdict, judgement.reason) for judgement in judgements] == [
        (Verdict.ERROR, "oom"),
        (Verdict.CORRECT, "equal"),
    ]


def test_a_killed_helper_is_started_again():
    with JudgePool(num_workers=1) as pool:
        pool.self_test()
        first = pool.pid
        (worker,) = children(first)
        os.kill(first, signal.SIGKILL)
        pool.self_test()
        assert pool.pid != first
        until(lambda: is_gone(worker))


def test_closing_leaves_no_process_behind():
    pool = JudgePool(num_workers=2)
    pool.self_test()
    helper, workers = pool.pid, children(pool.pid)
    assert len(workers) == 2
    pool.close()
    pool.close()
    until(lambda: all(is_gone(pid) for pid in [helper, *workers]))
    with pytest.raises(ValueError, match="closed"):
        pool.judge([("1", r"\boxed{1}")])


def test_the_helper_dies_with_its_owner():
    owner = "\n".join(
        [
            "import os",
            "from raml_ray.workers.judge import JudgePool",
            "pool = JudgePool(num_workers=1)",
            "pool.self_test()",
            "print(pool.pid, flush=True)",
            "os.kill(os.getpid(), 9)",
        ]
    )
    result = subprocess.run(
        [sys.executable, "-c", owner], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert result.returncode == -signal.SIGKILL
    helper = int(result.stdout)
    until(lambda: is_gone(helper))


def test_the_helper_sees_nothing_of_our_environment(monkeypatch):
    monkeypatch.setenv("RAML_TEST_SECRET", "hunter2")
    with JudgePool(num_workers=1) as pool:
        pool.self_test()
        assert b"hunter2" not in pathlib.Path(f"/proc/{pool.pid}/environ").read_bytes()


@pytest.mark.parametrize("setting", ["num_workers", "cpu_seconds", "wall_seconds"])
def test_limits_that_let_nothing_through_are_refused(setting):
    with pytest.raises(ValueError, match=rf"verify\.{setting}"):
        JudgePool(**{setting: 0})


def test_frames_survive_a_pipe_and_its_end_is_an_error():
    reader, writer = os.pipe()
    frames.send(writer, [1, "\u221e", r"\frac12"])
    assert frames.receive(reader) == [1, "\u221e", r"\frac12"]
    os.close(writer)
    with pytest.raises(EOFError):
        frames.receive(reader)
    os.close(reader)
