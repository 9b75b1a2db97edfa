"""Engines that die, stall or come and go: one bad row costs one row, and every other one is there, the same."""

import json
import threading
import time
from pathlib import Path

import pytest

from raml_ray import records, storage
from raml_ray.config import Config, ConfigError, Step, override, parse_assignments
from raml_ray.miniature import tokenizer as miniature
from raml_ray.stages import generate, rollouts
from raml_ray.stages.context import Context
from raml_ray.stages.ledger import WITHOUT_A_WORD, Care, Ledger, Limits
from raml_ray.stages.shard_sampler import Gate
from tests.stages import contexts

STEP = Step(name="generate", stage="generate")
DIGITS = ("1", "2", "3", "4", "5", "6", "7", "8")
POISON = miniature.build().convert_tokens_to_ids("9")


def ledger(**changes: float) -> Ledger:
    limits = Limits(max_failures=20, max_attempts=2, start_timeout_s=60)._replace(**changes)
    return Ledger(limits, node_is_alive=lambda node: node != "gone")


def lives(book: Ledger, engine: str, actor: str = "a", node: str = "n") -> None:
    assert book.starting(engine, actor, node) == ""
    book.started(engine)


def dies_over(book: Ledger, engine: str, *shards: int, row: str = "", reason: str = "bang") -> None:
    """A life of an engine that ends with these shards in it, or with one row of the first alone."""
    lives(book, engine)
    for shard in shards:
        book.entered(engine, shard, book.order(shard).care)
    if row:
        book.alone(engine, shards[0], row)
    book.failed(engine, reason)


def test_a_shard_is_suspected_step_by_step_until_its_row_is_known() -> None:
    book = ledger()
    dies_over(book, "e1", 0, 1)
    assert book.order(0).care is Care.TOGETHER  # once is no pattern
    dies_over(book, "e2", 0, 1)
    assert [book.order(shard).care for shard in (0, 1, 2)] == [Care.ALONE, Care.ALONE, Care.TOGETHER]
    dies_over(book, "e3", 0)
    assert [book.order(shard).care for shard in (0, 1)] == [Care.ROW_BY_ROW, Care.ALONE]
    dies_over(book, "e4", 0, row="q#1")
    assert book.order(0).set_aside == {}
    dies_over(book, "e5", 0, row="q#1", reason="of this row")
    assert book.order(0).set_aside == {"q#1": "of this row"}
    assert book.report().engine_failures == 5


def test_a_row_that_came_out_is_kept_until_its_shard_is_committed() -> None:
    book, row = ledger(), records.TRAJECTORY.empty_table()
    lives(book, "e1")
    book.entered("e1", 0, Care.ROW_BY_ROW)
    book.alone("e1", 0, "q#0")
    book.keep("e1", 0, "q#0", row)
    book.failed("e1", "later")  # with no row in it: nobody's fault
    book.entered("e1", 1, Care.ALONE)  # its last words
    book.alone("e1", 1, "q#9")
    assert book.order(0).kept == {"q#0": row}
    assert book.order(0).set_aside == {}
    lives(book, "e2")
    book.done("e2", 0)
    assert book.order(0) == (Care.TOGETHER, {}, {}, {})


def test_two_bad_rows_of_a_question_spare_the_others_their_trial_but_not_their_result() -> None:
    book, row = ledger(max_attempts=1), records.TRAJECTORY.empty_table()
    lives(book, "e0")
    book.keep("e0", 0, "q#0", row)
    dies_over(book, "e1", 0, row="q#1")
    assert [book.order(0).against("q", f"q#{index}") for index in range(3)] == [None, "bang", None]
    dies_over(book, "e2", 0, row="q#2", reason="bang again")
    assert [book.order(0).against("q", f"q#{index}") for index in (0, 1, 2)] == [None, "bang", "bang again"]
    assert book.order(0).against("q", "q#63") == "bang again"
    assert book.order(0).against("p", "p#0") is None


def test_an_engine_that_vanished_is_noticed_when_its_actor_starts_anew_and_a_lost_node_is_nobodys_fault() -> None:
    book = ledger(max_failures=1)
    lives(book, "e1", actor="a", node="n")
    book.entered("e1", 0, Care.ALONE)
    assert book.starting("e2", "a", "gone") == ""
    assert book.report()[2:4] == (1, 0)
    book.started("e2")
    book.entered("e2", 1, Care.ALONE)
    assert book.starting("e3", "a", "n") == ""
    assert book.report()[2:4] == (1, 1)
    assert book.order(1).care is Care.TOGETHER
    stop = book.starting("e4", "a", "n")
    assert stop == (f"2 engines died, more than generate.max_engine_failures=1 allows, the last of: {WITHOUT_A_WORD}")
    with pytest.raises(RuntimeError, match=r"more than generate.max_engine_failures=1"):
        book.order(5)


def test_engines_that_never_start_end_the_step_before_the_limit_of_deaths() -> None:
    book = ledger()
    for number in range(3):
        assert book.starting(f"e{number}", "a", "n") == ""
        book.failed(f"e{number}", "OSError: no space")
    assert book.starting("e3", "a", "n") == ""
    book.failed("e3", "OSError: no space")
    assert book.report().stop == "4 engines in a row died while they started, the last of: OSError: no space"
    slow = ledger(start_timeout_s=0)
    slow.starting("e0", "a", "n")
    time.sleep(0.001)
    assert "engine.start_timeout_s=0" in slow.report().stop


def test_one_who_is_alone_waits_for_those_inside_and_goes_before_those_who_come_later() -> None:
    gate, seen, leave = Gate(), [], threading.Event()

    def together(name: str) -> None:
        with gate.together():
            seen.append(name)
            assert leave.wait(10)

    def alone() -> None:
        with gate.alone():
            seen.append("alone")

    first = [threading.Thread(target=together, args=(name,)) for name in ("a", "b")]
    for thread in first:
        thread.start()
    while len(seen) < 2:
        time.sleep(0.001)
    later = [threading.Thread(target=alone), threading.Thread(target=together, args=("c",))]
    for thread in later:
        thread.start()
        time.sleep(0.05)
    assert sorted(seen) == ["a", "b"]
    leave.set()
    for thread in first + later:
        thread.join(10)
    assert seen[2:] == ["alone", "c"]


@pytest.mark.parametrize("text", ["(2,5)", "2,5", "[2,5]", "( 2, 5 )"])
def test_the_fewest_and_the_most_engines_may_be_written_in_several_ways(text: str) -> None:
    assert override(Config(), parse_assignments([f"evaluate.num_engines={text}"])).evaluate.num_engines == (2, 5)


@pytest.mark.parametrize("text", ["0", "5,2", "(0,2)"])
def test_engines_that_cannot_be_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"generate.num_engines=.*: give a number from 1, or the fewest and the most"):
        override(Config(), parse_assignments([f"generate.num_engines={text}"]))


@pytest.mark.parametrize(
    ("max_num_seqs", "shard_rows", "num_shards", "num_engines", "expected"),
    [
        (256, 128, 1000, 4, 4),  # 512 requests
        (256, 1000, 1000, 4, 2),  # never fewer than two
        (256, 100, 1000, 4, 6),  # rounded up
        (256, 128, 6, 2, 3),  # its share
        (256, 1, 10_000, 1, rollouts.MOST_AT_ONCE),
        (8, 8, 1, 1, 1),
    ],
)
def test_an_engine_makes_as_many_shards_at_once_as_keep_it_busy(
    max_num_seqs: int, shard_rows: int, num_shards: int, num_engines: int, expected: int
) -> None:
    assert rollouts.shards_at_once(max_num_seqs, shard_rows, num_shards, num_engines) == expected


def sampling(root: Path, problems: tuple[str, ...], **settings: object) -> Context:
    root.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"problem": problem, "answer": "1"} for problem in problems]
    (root.parent / "set.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    defaults: dict[str, object] = {
        "data__path": str(root.parent / "set.jsonl"),
        "generate__shard_questions": 2,
        "generate__num_samples": 2,
        "data__max_rejected_fraction": 0.5,
    }
    return contexts.context(root, STEP, **(defaults | settings))


def rows(context: Context) -> dict[str, tuple[list[int], str, int]]:
    table = storage.trajectories(context.folder)
    columns = (table[name].to_pylist() for name in ("trajectory_id", "token_ids", "text", "seed"))
    return {row[0]: row[1:] for row in zip(*columns, strict=True)}


def rejected(context: Context) -> list[tuple[str, str]]:
    table = (context.folder / "rejected").read_tables("shard-", records.REJECTED)
    return sorted(zip(table["row_key"].to_pylist(), table["reason"].to_pylist(), strict=True))


@pytest.mark.ray
@pytest.mark.slow
def test_a_row_that_kills_every_engine_and_one_that_is_too_long_cost_themselves_alone(
    cluster: None, tmp_path: Path
) -> None:
    clean = sampling(tmp_path / "clean" / "run", DIGITS, generate__num_engines=(1, 2), generate__num_samples=1)
    assert generate.run(clean).counts.rows_out == 8
    # Between the others, in shards of two questions.
    problems = (*DIGITS[:3], "9", *DIGITS[3:], "1" * 80)
    context = sampling(tmp_path / "run", problems, generate__max_attempts=1, generate__num_samples=1)
    (tmp_path / "policy" / f"poison-die-{POISON}").touch()
    outcome = generate.run(context)
    assert rows(context) == rows(clean)
    assert (outcome.counts.rows_in, outcome.counts.rows_out, outcome.counts.rejected) == (10, 8, 2)
    questions = storage.questions(context.folder)
    problem_of = {key: questions[key.split("#")[0]].problem for key, _ in rejected(context)}
    assert [(problem_of[key], reason) for key, reason in rejected(context) if "engine_died" in reason] == [
        ("9", f"engine_died:{WITHOUT_A_WORD}")
    ]
    assert sum(problem_of[key] == "1" * 80 for key, _ in rejected(context)) == 1
    # Twice in company, once over the shard alone, and once over the row alone.
    assert outcome.figures["engine_failures"] == 4
    assert generate.run(context).counts == outcome.counts


@pytest.mark.ray
@pytest.mark.slow
def test_an_engine_that_stalls_is_replaced_and_nothing_is_lost(cluster: None, tmp_path: Path) -> None:
    context = sampling(tmp_path / "run", DIGITS, engine__stall_timeout_s=1)
    (tmp_path / "policy" / "fault-generate-hang-1").touch()
    outcome = generate.run(context)
    assert (outcome.counts.rows_out, outcome.counts.rejected) == (16, 0)
    assert outcome.figures["engine_failures"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_engines_that_always_fail_end_the_step_with_what_they_died_of(cluster: None, tmp_path: Path) -> None:
    context = sampling(tmp_path / "run", ("9", "99", "999"), generate__max_engine_failures=1)
    (tmp_path / "policy" / f"poison-raise-{POISON}").touch()
    began = time.monotonic()
    with pytest.raises(
        RuntimeError,
        match=r"step 'generate': 2 engines died, more than generate.max_engine_failures=1 allows, the last of:"
        rf" RuntimeError: a scripted engine came by poison-raise-{POISON}",
    ):
        generate.run(context)
    assert time.monotonic() - began < 60


@pytest.mark.ray
def test_labels_that_no_node_carries_are_refused(cluster: None, tmp_path: Path) -> None:
    context = sampling(tmp_path / "run", DIGITS, engine__node_labels={"zone": "nowhere"})
    with pytest.raises(ConfigError, match=r"no node carries engine.node_labels=\{'zone': 'nowhere'\}"):
        generate.run(context)
