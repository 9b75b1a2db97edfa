"""Engines that die, stall or come and go: one bad row costs one row, and every other one is there, the same."""

import io
import json
import threading
import time
from collections.abc import Container, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raml_ray import records, storage
from raml_ray.config import Config, ConfigError, Step, override, parse_assignments
from raml_ray.miniature import tokenizer as miniature
from raml_ray.records import Rejected
from raml_ray.stages import generate, rollouts, shards
from raml_ray.stages.context import Context
from raml_ray.stages.ledger import WITHOUT_A_WORD, Ledger, Limits, Part
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
    assert book.started(engine)


def part(*rejected: Rejected) -> Part:
    return Part(records.TRAJECTORY.empty_table(), list(rejected))


def keys(*questions: str, num: int = 8) -> list[str]:
    return [f"{question}#{index}" for question in questions for index in range(num)]


def sampled(book: Ledger, rows: Sequence[str], poison: Container[str], most: int = 1000) -> tuple[int, dict[str, str]]:
    """Lives of an engine that makes shard 0 and dies of every batch with poison in it, up to so many of them.

    Returns the deaths, and what was set aside. Every row is there once when the shard is made.
    """
    for death in range(most):
        engine = f"e{death}"
        if book.starting(engine, "a", "n"):
            break
        assert book.started(engine)
        order = book.order(0, rows)
        for batch in [None] if order.batches is None else order.batches:
            book.entered(engine, 0, batch)
            if any(key in poison for key in batch or rows):
                book.failed(engine, "bang")
                break
            book.left(engine, 0, part(*(records.rejected(key, "test", "came out", "") for key in batch or ())))
        else:
            came_out = [row.row_key for one in book.order(0, rows).kept for row in one.rejected]
            assert sorted([*came_out, *order.set_aside]) == sorted(rows)
            return death, order.set_aside
    return most, {}


def test_a_shard_is_sampled_with_care_and_halved_until_its_row_is_known() -> None:
    book, rows = ledger(), keys("p", "q", num=4)
    for engine in ("e1", "e2"):
        assert book.order(0, rows) == (None, [], {})  # once is no pattern
        lives(book, engine)
        book.entered(engine, 0, None)
        book.failed(engine, "bang")
    whole = tuple(rows)
    assert book.order(0, rows).batches == [whole]
    assert book.order(1, rows).batches is None
    expected = [
        (whole, [whole[:4], whole[4:]]),
        (whole[4:], [whole[:4], whole[4:6], whole[6:]]),
        (whole[4:6], [whole[:4], whole[4:5], whole[5:6], whole[6:]]),
        (whole[5:6], [whole[:4], whole[4:5], whole[5:6], whole[6:]]),  # once may be chance
        (whole[5:6], [whole[:4], whole[4:5], whole[6:]]),
    ]
    for number, (batch, left) in enumerate(expected):
        lives(book, f"f{number}")
        book.entered(f"f{number}", 0, batch)
        book.failed(f"f{number}", f"bang {number}")
        assert book.order(0, rows).batches == left
    assert book.order(0, rows).set_aside == {"q#1": "bang 4"}


def test_a_batch_that_came_out_is_kept_until_its_shard_is_committed() -> None:
    book, rows = ledger(), keys("q", num=2)
    for engine in ("e1", "e2"):
        lives(book, engine)
        book.entered(engine, 0, None)
        book.failed(engine, "bang")
    lives(book, "e3")
    [batch] = book.order(0, rows).batches or []
    book.entered("e3", 0, batch)
    book.left("e3", 0, part())
    book.failed("e3", "while it was written")  # with nothing in it: nobody's fault
    book.entered("e3", 0, batch)  # its last words
    assert book.order(0, rows) == ([], [part()], {})
    book.done(0)
    assert book.order(0, rows) == (None, [], {})


def test_a_shard_that_left_the_engine_is_not_blamed_for_what_dies_next() -> None:
    book, rows = ledger(), keys("q")
    for engine in ("e1", "e2"):
        lives(book, engine)
        book.entered(engine, 0, None)
        book.left(engine, 0, None)
        book.entered(engine, 1, None)
        book.failed(engine, "bang")
    assert (book.order(0, rows).batches, book.order(1, rows).batches) == (None, [tuple(rows)])


@pytest.mark.parametrize("place", [0, 77, 127])
def test_one_bad_row_of_many_is_found_by_halving(place: int) -> None:
    rows = keys("p", "q", num=64)
    # Twice in company, over 128, 64, 32, 16, 8, 4 and 2 rows, and twice over the row alone.
    assert sampled(ledger(), rows, {rows[place]}) == (11, {rows[place]: "bang"})


def test_two_bad_rows_of_a_question_spare_the_others_their_trial_but_not_their_result() -> None:
    rows = keys("o", "p", "q")
    bad = {key for key in rows if key.startswith("p#")}
    deaths, set_aside = sampled(ledger(max_attempts=1), rows, bad)
    assert set(set_aside) == bad
    assert deaths < 12
    one_good = bad - {"p#0"}
    assert set(sampled(ledger(max_attempts=1), rows, one_good)[1]) == one_good


def test_any_number_of_bad_rows_is_survived_if_each_is_found_and_something_comes_out_in_between() -> None:
    rows = keys(*(f"q{number}" for number in range(16)))
    deaths, set_aside = sampled(ledger(max_failures=12), rows, set(rows[3::16]))
    assert set(set_aside) == set(rows[3::16])
    assert deaths > 40


def test_engines_that_die_of_every_row_end_the_step_soon() -> None:
    rows, book = keys(*(f"q{number}" for number in range(16))), ledger()
    lifetimes = 0
    while not book.report().stop:
        sampled(book, rows, rows, most=1)
        lifetimes += 1
    assert lifetimes < 45
    assert book.report().stop == (
        "21 engines died and nothing came out in between, more than engine.max_failures=20 allows, the last of: bang"
    )
    with pytest.raises(RuntimeError, match=r"more than engine.max_failures=20"):
        book.order(5, rows)


def test_an_engine_that_vanished_is_noticed_when_its_actor_starts_anew_and_a_lost_node_is_nobodys_fault() -> None:
    book, rows = ledger(), keys("q")
    for engine, node, counts in (("e1", "gone", (0, 1)), ("e2", "gone", (0, 2)), ("e3", "n", (1, 2))):
        lives(book, engine, actor=engine, node=node)
        book.entered(engine, 0, None)
        assert book.starting(f"{engine} anew", engine, "n") == ""
        assert book.report()[2:4] == counts
    assert book.report().last_reason == WITHOUT_A_WORD
    assert book.order(0, rows).batches is None  # which engines died with once, and twice with their nodes
    lives(book, "e4", actor="e4", node="gone")
    assert book.report()[2:4] == (1, 3)  # without waiting for what takes its place
    assert not book.started("e4")


def test_engines_that_never_start_end_the_step_unless_another_one_works() -> None:
    book, working = ledger(max_failures=0), ledger(max_failures=0)
    lives(working, "w", actor="w")
    for number in range(4):
        assert book.report().stop == ""
        for one in (book, working):
            assert one.starting(f"e{number}", "a", "n") == ""
            one.failed(f"e{number}", "OSError: no space")
    assert book.report().stop == "4 engines in a row died while they started, the last of: OSError: no space"
    assert working.report().stop == ""
    assert working.report().engine_failures == 4
    working.starting("w2", "w", "n")  # in the place of the one that worked
    assert "died while they started" in working.starting("e9", "w", "n")


def test_an_engine_that_is_late_ends_the_step_only_if_none_ever_started() -> None:
    alone, beside = ledger(start_timeout_s=0.05), ledger(start_timeout_s=0.05)
    lives(beside, "w", actor="w")
    for book in (alone, beside):
        book.starting("late", "a", "n")
        assert book.report().stop == ""
    time.sleep(0.06)
    assert alone.report().stop.startswith("no engine has started: not started within engine.start_timeout_s=0.05")
    assert (beside.report().stop, beside.report().engine_failures) == ("", 1)
    assert not beside.started("late")


def test_a_shard_carries_the_rows_that_were_set_aside() -> None:
    rows = [records.rejected("q#1", "generate", "too_long", "'"), records.rejected("q#2", "generate", "é", "")]
    table = records.TRAJECTORY.empty_table()
    sink = io.BytesIO()
    pq.write_table(shards.with_rejected(table, rows), sink)
    assert shards.rejected_of(pq.read_table(sink)) == rows
    assert shards.rejected_of(pq.read_table(sink, columns=["question_id"])) == rows
    assert shards.rejected_of(shards.with_rejected(table, [])) == []


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
        (256, 128, 1000, 4, 17),  # one, and 2048 requests
        (8, 1000, 1000, 4, 2),  # never fewer than two
        (256, 1000, 1000, 4, 4),  # rounded up
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
@pytest.mark.faults
def test_a_row_that_kills_every_engine_and_one_that_is_too_long_cost_themselves_alone(
    cluster: None, tmp_path: Path
) -> None:
    clean = sampling(tmp_path / "clean" / "run", DIGITS, generate__num_engines=(1, 2), generate__num_samples=1)
    assert generate.run(clean).counts.rows_out == 8
    # Between the others, in shards of two questions.
    problems = (*DIGITS[:3], "9", *DIGITS[3:], "1" * 80)
    context = sampling(tmp_path / "run", problems, engine__max_attempts=1, generate__num_samples=1)
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
    strict = sampling(tmp_path / "run", problems, generate__num_samples=1, data__max_rejected_fraction=0.1)
    with pytest.raises(ConfigError, match=r"2 of 10 .* \(1 engine_died:.*\), more than data.max_rejected_fraction=0.1"):
        generate.run(strict)


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
@pytest.mark.faults
def test_an_engine_that_hangs_in_its_start_is_ended_while_another_makes_the_shards(
    cluster: None, tmp_path: Path
) -> None:
    context = sampling(tmp_path / "run", DIGITS, engine__start_timeout_s=5, generate__num_engines=(2, 2))
    (tmp_path / "policy" / "scripted.json").write_text('{"seconds_per_step": 0.4, "tokens": [16, 16]}')
    (tmp_path / "policy" / "fault-start-hang-1").touch()
    outcome = generate.run(context)
    assert (outcome.counts.rows_out, outcome.counts.rejected) == (16, 0)
    assert outcome.figures["engine_failures"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_engines_that_always_fail_end_the_step_with_what_they_died_of(cluster: None, tmp_path: Path) -> None:
    context = sampling(tmp_path / "run", ("9", "99", "999"), engine__max_failures=1)
    (tmp_path / "policy" / f"poison-raise-{POISON}").touch()
    began = time.monotonic()
    with pytest.raises(
        RuntimeError,
        match=r"step 'generate': 2 engines died and nothing came out in between, more than engine.max_failures=1 allows, the last of:"
        rf" RuntimeError: a scripted engine came by poison-raise-{POISON}",
    ):
        generate.run(context)
    assert time.monotonic() - began < 60


@pytest.mark.ray
def test_labels_that_no_node_carries_are_refused(cluster: None, tmp_path: Path) -> None:
    context = sampling(tmp_path / "run", DIGITS, engine__node_labels={"zone": "nowhere"})
    with pytest.raises(
        ConfigError, match=r"engine.cpus_per_engine=1\), but Ray has 0 on nodes that carry zone=nowhere"
    ):
        generate.run(context)
