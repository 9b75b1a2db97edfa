"""Which judged trajectories become examples, and that none is counted twice or lost."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raml_ray import records
from raml_ray.cluster import Patience
from raml_ray.config import ConfigError, Step
from raml_ray.stages import example_shards, training_set, verify
from raml_ray.stages.context import Context, Counts
from raml_ray.storage import SUMMARY, Folder
from raml_ray.text import support
from raml_ray.text.batches import Examples, encode, table
from raml_ray.workers import policy as policies
from tests.stages import contexts
from tests.stages.test_verify import oracle, verifying


def student(root: Path, *data: str, **settings: object) -> Context:
    defaults = {"sft__num_trajectories": 2, "sft__pad_to": 3}
    return contexts.context(root, Step(name="sft", stage="sft", data=data), **(defaults | settings))


def written(context: Context) -> tuple[Counts, dict[str, Any]]:
    """The set written anew, as by --redo."""
    context.folder.remove()
    return training_set.write(context)


Row = tuple[str, int, str, str]
"""Question, sample, text, verdict."""


def teacher(root: Path, name: str, rows: Sequence[Row], policy: str = "") -> None:
    """A finished step of these trajectories, of a policy of that name or of its own."""
    policy_id = f"{policy or name}@1"
    made = [records.Trajectory(f"{name}-{q}-{n}", q, n, text, "imported", policy_id, "", 0) for q, n, text, _ in rows]
    folder = Folder(str(root / name))
    (folder / "trajectories").write_table("shard-000000.parquet", records.table(made, records.TRAJECTORY))
    questions = [records.Question(q, "Sum: _ 3 8", "11", "here") for q in dict.fromkeys(row[0] for row in rows)]
    folder.write_table("questions.parquet", records.table(questions, records.QUESTION))
    folder.write_json(SUMMARY, {"data": [], "counts": {"rows_in": len(rows), "rows_out": len(rows)}})


def verdicts(root: Path, name: str, *teachers: tuple[str, Sequence[Row]]) -> None:
    """A finished step of the verdicts of those teachers' trajectories, in that order."""
    judged = [
        {"trajectory_id": f"{of}-{q}-{n}", "verdict": verdict, "reason": "", "extracted": "", "cpu_seconds": 0.0}
        for of, rows in teachers
        for q, n, _, verdict in rows
    ]
    folder = Folder(str(root / name))
    (folder / "verdicts").write_table("shard-000000.parquet", records.table(judged, records.VERDICT))
    folder.write_json(SUMMARY, {"data": [of for of, _ in teachers], "counts": {}})


@pytest.mark.ray
def test_every_judged_trajectory_is_chosen_filtered_or_too_long(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    made = oracle(root)
    for name in ("verify", "other"):
        context = verifying(root, "long", name=name)
        contexts.finish(context, verify.run(context))
    counts, figures = written(student(root, "verify"))
    # Two of three trajectories of both questions; the examples repeat them up to three a question.
    assert (counts.rows_in, counts.rows_out, counts.rejected, counts.filtered) == (6, 4, 0, 2)
    assert (figures["examples"], figures["distinct_trajectories"], figures["questions"]) == (6, 4, 2)
    with pytest.raises(ConfigError, match=r"sft.max_length=8 has room for none of 6"):
        written(student(root, "verify", sft__max_length=8))
    with pytest.raises(ConfigError, match=r"6 trajectories of .* are there more than once"):
        written(student(root, "verify", "other"))
    with pytest.raises(ConfigError, match=r"sft.policies: .* is of human, teacher; there are oracle$"):
        written(student(root, "verify", sft__policies=["teacher", "oracle", "human"]))
    shards = made.folder / "trajectories"
    name = shards.names()[0]
    shards.write_table(name, shards.read_table(name).slice(1))  # a row is lost
    counts, _ = written(student(root, "verify"))
    with pytest.raises(RuntimeError, match="6 rows went in"):
        counts.check()


def all_examples(context: Context) -> tuple[list[int], pa.Table]:
    """Rows of each shard, and the set in its order."""
    folder = context.folder / training_set.EXAMPLES
    index = example_shards.read_index(folder)
    assert folder.names() == [example_shards.FIGURES_FILE, example_shards.INDEX_FILE, *index.names]
    tables = [folder.read_table(name) for name in index.names]
    rows = pa.concat_tables(tables)
    assert index.lengths.tolist() == [len(example) for example in Examples(rows)]
    assert tuple(table.num_rows for table in tables) == index.rows
    return list(index.rows), rows


@pytest.mark.ray
def test_the_set_is_the_same_however_it_is_cut_and_by_how_many_tasks(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root, data__limit=3)  # a shard of trajectories per question
    context = verifying(root, "long")
    contexts.finish(context, verify.run(context))
    one = student(root, "verify")
    _, figures = written(one)
    assert "lengths" not in figures
    shape, whole = all_examples(one)
    assert shape == [9]
    # The very examples that the rule chooses, one after the other.
    seed = records.seed_of(one.config.seed, "sft", "support")
    chosen = support.choose(["a", "b", "c"], [[True] * 3] * 3, [[0] * 3] * 3, one.config.sft, seed, lambda groups: [])
    rows, questions = training_set.judged(one)
    tokenizer = policies.load_tokenizer(one.policy_path)
    expected = [
        encode(tokenizer, questions[rows[3 * q + t]["question_id"]].problem, rows[3 * q + t]["text"], one.config.prompt)
        for q, t in chosen
    ]
    assert whole.equals(table(expected))
    (one.folder / example_shards.PIECES).write_text("piece-000009.parquet", "of an attempt that was killed")
    examples = one.folder / training_set.EXAMPLES
    examples.write_text("shard-000009.parquet", "of the same")
    (examples / example_shards.INDEX_FILE).remove()  # which that attempt had not written yet
    small = student(root, "verify", sft__examples_per_shard=4)
    counts, again = training_set.write(small)  # as many tasks as shards now
    assert (counts.rows_in, counts.rows_out, counts.filtered) == (9, 6, 3)
    assert again == figures
    shape, cut = all_examples(small)
    assert shape == [4, 4, 1]
    assert cut.equals(whole)
    assert not small.folder.exists(example_shards.PIECES)
    # Now that it is whole, the same step begun again takes it as it is.
    before = {
        name: (small.folder / training_set.EXAMPLES).read_bytes(name) for name in ("index.parquet", "figures.json")
    }
    (root / "long" / "trajectories" / "shard-000000.parquet").unlink()
    assert training_set.write(small) == (counts, again)
    assert before == {name: (small.folder / training_set.EXAMPLES).read_bytes(name) for name in before}


@pytest.mark.ray
def test_where_answers_alone_are_learned_rows_without_one_are_set_aside_and_counted(
    cluster: None, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    rows = [
        ("q1", 0, "<think>\n 3 8\n</think>\n\n**Final Answer**\n\\boxed{11}", "correct"),
        ("q1", 1, "<think>\n 3 8\n</think>\n\nIt is 11", "correct"),
        ("q1", 2, "<think>\n 3 8\\boxed{11}", "correct"),
    ]
    teacher(root, "long", rows)
    verdicts(root, "verify", ("long", rows))
    context = student(root, "verify", sft__outer_loss="answer_only")
    counts, figures = written(context)
    assert (counts.rows_in, counts.rows_out, counts.rejected, counts.filtered) == (3, 1, 2, 0)
    assert figures["rejected_reasons"] == {"no_answer": 2}
    _, whole = all_examples(context)
    tokenizer = policies.load_tokenizer(context.policy_path)
    (example,) = Examples(whole)
    marked = [i for i, mark in zip(example.response_token_ids, example.fields["answer"], strict=True) if mark]
    assert tokenizer.decode(marked) == "11"
    pattern = student(root, "verify", sft__outer_loss="answer_only", sft__answer_pattern=r"It is (\d+)")
    assert written(pattern)[1]["rejected_reasons"] == {"no_answer": 2}
    nowhere = student(root, "verify", sft__outer_loss="answer_only", sft__answer_pattern="####(.*)")
    with pytest.raises(ConfigError, match="finds no answer in 3 of 3 trajectories"):
        written(nowhere)


def lengths_of(q: str, *lengths: int, verdict: str = "correct") -> list[Row]:
    """Trajectories of so many tokens for the student: a digit is one, the end is one."""
    return [(q, n, str(n) * (length - 1), verdict) for n, length in enumerate(lengths)]


PROMPT_TOKENS = 12
ROWS = [
    *lengths_of("qa", 4, 9, 5, 20, 6, 7),
    *lengths_of("qb", 20, 21, 3),
    *lengths_of("qc", 30, 30, 30),
    *lengths_of("qd", 4, 5, 6, verdict="wrong"),
]


def shape(context: Context) -> tuple[Counter[int], int]:
    """Examples by the tokens of their responses, and how many shards there are."""
    rows, table = all_examples(context)
    return Counter(len(ids) for ids in table["response_token_ids"].to_pylist()), len(rows)


@pytest.mark.ray
def test_trajectories_that_are_too_long_cannot_be_chosen_so_that_every_n_has_one_size(
    cluster: None, tmp_path: Path
) -> None:
    teacher(tmp_path, "human", ROWS)
    verdicts(tmp_path, "verify", ("human", ROWS))
    found = {}
    for n in (1, 2, 6):
        context = student(
            tmp_path, "verify", sft__num_trajectories=n, sft__pad_to=6, sft__max_length=PROMPT_TOKENS + 19
        )
        counts, figures = written(context)
        counts.check()
        # Of qa the trajectory of 20 tokens, of qb two, of qc all three have no room; those of qd are wrong.
        assert counts.rejected == 6
        assert (context.folder / "rejected").read_table("trajectories.parquet")["row_key"].to_pylist() == [
            *("human-qa-3", "human-qb-0", "human-qb-1"),
            *(f"human-qc-{sample}" for sample in range(3)),
        ]
        assert (figures["examples"], figures["questions"], figures["questions_kept"]) == (5 + 1, 3, 2)
        found[n], _ = shape(context)
        assert figures["distinct_trajectories"] == counts.rows_out == len(found[n])
    assert found[1] == {4: 5, 3: 1}
    assert set(found[2]) == {4, 9, 3}
    assert found[6] == {4: 1, 9: 1, 5: 1, 6: 1, 7: 1, 3: 1}


@pytest.mark.ray
def test_what_was_put_into_a_trajectory_by_force_is_not_trained_on(cluster: None, tmp_path: Path) -> None:
    teacher(tmp_path, "human", ROWS)
    verdicts(tmp_path, "verify", ("human", ROWS))
    shards = Folder(str(tmp_path / "human" / "trajectories"))
    rows = shards.read_table("shard-000000.parquet").to_pylist()
    rows[0]["forced"] = [{"start": 2, "end": 4}]
    shards.write_table("shard-000000.parquet", records.table(rows, records.TRAJECTORY))
    context = student(tmp_path, "verify", sft__num_trajectories=6, sft__pad_to=6)
    counts, figures = written(context)
    counts.check()
    (rejected,) = (context.folder / "rejected").read_table("trajectories.parquet").to_pylist()
    assert (rejected["row_key"], rejected["reason"]) == (
        "human-qa-0",
        "forced_text:tokens 2 to 4 are not the policy's own",
    )
    assert figures["rejected_reasons"] == {"forced_text": 1}


@pytest.mark.ray
def test_lengths_are_those_of_the_students_tokens(cluster: None, tmp_path: Path) -> None:
    teacher(tmp_path, "human", ROWS)
    verdicts(tmp_path, "verify", ("human", ROWS))
    # Of qa 4, 9, 5, 6, 7 have room (short 4 and 5, medium 6, long 9 and 7); of qb too few are left to match.
    settings = {"sft__pad_to": 6, "sft__max_length": PROMPT_TOKENS + 19, "sft__match_length": True}
    for length, tokens in (("short", 4), ("medium", 6), ("long", 9)):
        context = student(tmp_path, "verify", sft__length=length, **settings)
        _, figures = written(context)
        assert (figures["examples"], figures["distinct_trajectories"], figures["questions_kept"]) == (5, 1, 1)
        assert figures["lengths"] == {
            "short": {"trajectories": 2, "mean": 4.5, "median": 4.5},
            "medium": {"trajectories": 1, "mean": 6.0, "median": 6},
            "long": {"trajectories": 2, "mean": 8.0, "median": 8.0},
        }
        assert shape(context) == ({tokens: 5}, 1)
    longest = student(tmp_path, "verify", sft__selection="longest", sft__num_trajectories=1, sft__max_length=512)
    written(longest)
    assert shape(longest)[0] == {9: 3, 21: 3, 30: 3}  # of the first sft.pad_to=3 each
    with pytest.raises(ConfigError, match=r"none of 2 correct .* sft.match_length=True.* three correct trajectories"):
        written(student(tmp_path, "verify", sft__match_length=True, sft__max_length=PROMPT_TOKENS + 4))
    with pytest.raises(ConfigError, match=r"none of 3 judged trajectories is correct.*sft.policies=\(\)"):
        teacher(tmp_path, "human", ROWS[-3:])
        verdicts(tmp_path, "verify", ("human", ROWS[-3:]))
        written(student(tmp_path, "verify"))


@pytest.mark.ray
def test_the_order_of_the_steps_that_teachers_come_from_does_not_matter(cluster: None, tmp_path: Path) -> None:
    # Two teachers with the same questions in other orders and the same samples, of lengths that tell whose they are.
    ants = [*lengths_of("qa", 10, 11, 12), *lengths_of("qb", 13, 14)]
    bees = [*lengths_of("qb", 20, 21), *lengths_of("qa", 22, 23, 24), *lengths_of("qc", 25)]
    teacher(tmp_path, "ant", ants, "second")
    teacher(tmp_path, "bee", bees, "first")
    tables = []
    for order in ((("bee", bees), ("ant", ants)), (("ant", ants), ("bee", bees))):
        verdicts(tmp_path, "together", *order)
        context = student(tmp_path, "together", sft__num_trajectories=3)
        _, figures = written(context)
        assert figures["examples"] == 3 + 3 + 1
        tables.append(all_examples(context)[1])
        # By sample, then by policy: the bee's first, the ant's first, the bee's second.
        assert shape(context)[0] == Counter([22, 10, 23, 20, 13, 21, 25])
    verdicts(tmp_path, "of_ant", ("ant", ants))
    verdicts(tmp_path, "of_bee", ("bee", bees))
    for data in (("of_bee", "of_ant"), ("of_ant", "of_bee")):
        context = student(tmp_path, *data, sft__num_trajectories=3)
        written(context)
        tables.append(all_examples(context)[1])
    assert tables[0].equals(tables[1])
    assert tables[2].equals(tables[3])


@pytest.mark.ray
def test_the_most_different_trajectories_are_those_of_the_rule(cluster: None, tmp_path: Path) -> None:
    # Sample 1 repeats sample 0, sample 2 shares half of its bigrams, sample 3 none; alike for more questions than a task.
    texts = ("1 2 3 4", "1 2 3 4", "1 2 3 4 5 6", "7 8 9")
    names = [f"q{number:02d}" for number in range(training_set.QUESTIONS_PER_TASK + 1)]
    rows = [(name, sample, text, "correct") for name in names for sample, text in enumerate(texts)]
    teacher(tmp_path, "human", rows)
    verdicts(tmp_path, "verify", ("human", rows))
    expected = {1: {5}, 2: {5, 4}, 3: {5, 4, 7}}  # tokens: words and the end
    for n, tokens in expected.items():
        settings = {"sft__selection": "diverse", "sft__num_trajectories": n, "sft__pad_to": 4}
        context = student(tmp_path, "verify", **settings)
        _, figures = written(context)
        assert (figures["examples"], figures["distinct_trajectories"]) == (4 * len(names), n * len(names))
        assert set(shape(context)[0]) == tokens


@pytest.mark.ray
def test_two_questions_of_one_id_are_refused(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root)
    short = oracle(root, "short", generate__oracle_length="short")
    context = verifying(root, "long", "short")
    contexts.finish(context, verify.run(context))
    rows = short.folder.read_table("questions.parquet").to_pylist()
    rows[0]["answer"] = "another"
    short.folder.write_table("questions.parquet", records.table(rows, records.QUESTION))
    with pytest.raises(ConfigError, match="is another one than that of an earlier step"):
        training_set.judged(student(root, "verify"))


@pytest.mark.ray
def test_a_task_that_hangs_is_named_with_the_setting_that_bounds_it(cluster: None) -> None:
    def deal(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    assert list(example_shards.over(deal, [(0,), (0.1,)], example_shards.Spread(2, Patience(300, "")))) == [0, 0.1]
    spread = example_shards.Spread(2, Patience(1, "train.step_timeout_s=1"))
    with pytest.raises(
        TimeoutError, match=r"training set \(deal\) has not ended within 1 s.*train.step_timeout_s=1 is"
    ):
        list(example_shards.over(deal, [(600,)], spread))
