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
from raml_ray.workers import judge_server
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


def test_the_self_test_passes(pool):
    pool.self_test()


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
    judge_server.send(writer, [1, "\u221e", r"\frac12"])
    assert judge_server.receive(reader) == [1, "\u221e", r"\frac12"]
    os.close(writer)
    with pytest.raises(EOFError):
        judge_server.receive(reader)
    os.close(reader)
