"""Which judged trajectories become examples, and that none is counted twice or lost."""

import statistics
from pathlib import Path

import pyarrow as pa
import pytest

from raml_ray import records
from raml_ray.config import ConfigError, Step
from raml_ray.settings import SftConfig
from raml_ray.stages import example_shards, training_set, verify
from raml_ray.stages.context import Context
from raml_ray.text import support
from raml_ray.text.batches import Examples, encode, table
from raml_ray.workers import policy as policies
from tests.stages import contexts
from tests.stages.test_verify import oracle, verifying


def student(root: Path, *data: str, **settings: object) -> Context:
    defaults = {"sft__num_trajectories": 2, "sft__pad_to": 3}
    return contexts.context(root, Step(name="sft", stage="sft", data=data), **(defaults | settings))


@pytest.mark.ray
def test_every_judged_trajectory_is_chosen_filtered_or_too_long(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    made = oracle(root)
    for name in ("verify", "other"):
        context = verifying(root, "long", name=name)
        contexts.finish(context, verify.run(context))
    counts, figures = training_set.write(student(root, "verify"))
    # Two of three trajectories of both questions; the examples repeat them up to three a question.
    assert (counts.rows_in, counts.rows_out, counts.rejected, counts.filtered) == (6, 4, 0, 2)
    assert (figures["examples"], figures["distinct_trajectories"], figures["questions"]) == (6, 4, 2)
    with pytest.raises(ConfigError, match=r"sft.max_length=8 has room for none of 4"):
        training_set.write(student(root, "verify", sft__max_length=8))
    with pytest.raises(ConfigError, match=r"6 trajectories of .* are there more than once"):
        training_set.write(student(root, "verify", "other"))
    shards = made.folder / "trajectories"
    name = shards.names()[0]
    shards.write_table(name, shards.read_table(name).slice(1))  # a row is lost
    counts, _ = training_set.write(student(root, "verify"))
    with pytest.raises(RuntimeError, match="6 rows went in"):
        counts.check()


def all_examples(context: Context) -> tuple[list[int], pa.Table]:
    """Rows of each shard, and the set in its order."""
    folder = context.folder / training_set.EXAMPLES
    index = example_shards.read_index(folder)
    assert folder.names() == [example_shards.INDEX_FILE, *index.names]
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
    _, figures = training_set.write(one)
    assert "lengths" not in figures
    shape, whole = all_examples(one)
    assert shape == [9]
    # The very examples that the rule chooses, one after the other.
    chosen = support.choose([[True] * 3] * 3, one.config.sft, records.seed_of(one.config.seed, "sft", "support"))
    rows, questions = training_set.judged(one)
    tokenizer = policies.load_tokenizer(one.policy_path)
    expected = [
        encode(tokenizer, questions[rows[3 * q + t]["question_id"]].problem, rows[3 * q + t]["text"], one.config.prompt)
        for q, t in chosen
    ]
    assert whole.equals(table(expected))
    (one.folder / example_shards.PIECES).write_text("piece-000009.parquet", "of an attempt that was killed")
    (one.folder / training_set.EXAMPLES).write_text("shard-000009.parquet", "of the same")
    small = student(root, "verify", sft__examples_per_shard=4)
    assert training_set.write(small) == training_set.write(one)
    counts, again = training_set.write(small)  # as many tasks as shards now
    assert (counts.rows_in, counts.rows_out, counts.filtered) == (9, 6, 3)
    assert again == figures
    shape, cut = all_examples(small)
    assert shape == [4, 4, 1]
    assert cut.equals(whole)
    assert not small.folder.exists(example_shards.PIECES)


@pytest.mark.ray
def test_sets_of_one_length_tell_how_long_their_trajectories_are(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    made = oracle(root, generate__num_samples=4)
    context = verifying(root, "long")
    contexts.finish(context, verify.run(context))
    rows, _ = training_set.judged(student(root, "verify"))
    chars = [sorted(len(row["text"]) for row in rows[start : start + 4]) for start in (0, 4)]
    for length, places in (("short", [0]), ("medium", [1, 2]), ("long", [3])):
        settings = {"sft__length": length, "sft__match_length": True, "sft__pad_to": 4}
        _, figures = training_set.write(student(root, "verify", **settings))
        # floor(4 / 3) distinct ones of four correct ones, whatever sft.num_trajectories=2.
        assert (figures["examples"], figures["distinct_trajectories"], figures["questions_kept"]) == (8, 2, 2)
        found = figures["lengths"]
        assert found["unit"] == "characters"  # the oracle gives no tokens
        expected = [question[place] for question in chars for place in places]
        assert found[length] == {
            "trajectories": len(expected),
            "mean": pytest.approx(sum(expected) / len(expected)),
            "median": statistics.median(expected),
        }
    # With token ids on every row, their number is the length: the first sample has the most, though all texts stay.
    shards = made.folder / "trajectories"
    for name in shards.names():
        made_rows = shards.read_table(name).to_pylist()
        marked = [row | {"token_ids": [1] * (9 - row["sample_index"])} for row in made_rows]
        shards.write_table(name, records.table(marked, records.TRAJECTORY))
    _, figures = training_set.write(student(root, "verify", sft__length="long", sft__pad_to=4))
    assert figures["lengths"]["unit"] == "tokens"
    assert figures["lengths"]["medium"] == {"trajectories": 4, "mean": 7.5, "median": 7.5}
    assert figures["lengths"]["long"] == {"trajectories": 2, "mean": 9.0, "median": 9.0}
    _, whole = all_examples(student(root, "verify"))
    texts = {row["text"] for row in rows if row["sample_index"] == 0}
    assert whole.num_rows == 8
    assert len(set(map(str, whole.to_pylist()))) == len(texts) == 2


@pytest.mark.ray
def test_what_leaves_no_match_is_refused(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root, generate__num_samples=2, miniature__reflection_probability=0.5)
    context = verifying(root, "long")
    contexts.finish(context, verify.run(context))
    with pytest.raises(ConfigError, match=r"sft.match_length=True .* three correct trajectories"):
        training_set.write(student(root, "verify", sft__match_length=True))
    _, figures = training_set.write(student(root, "verify", sft__selection="diverse", sft__num_trajectories=1))
    assert (figures["examples"], figures["distinct_trajectories"]) == (4, 2)
    training_set.write(student(root, "verify"))
    _, whole = all_examples(student(root, "verify"))
    lengths = [len(example) for example in Examples(whole)]
    limit = student(root, "verify", sft__max_length=max(lengths) - 1, sft__examples_per_shard=1)
    counts, _ = training_set.write(limit)
    assert (counts.rows_in, counts.rows_out, counts.rejected, counts.filtered) == (4, 3, 1, 0)
    shape, left = all_examples(limit)
    # Shards are cut before an example is set aside: those without any left are not there.
    assert shape == [1, 1, 1]
    assert left.equals(whole.filter(pa.array([length < max(lengths) for length in lengths])))
    [rejected] = (limit.folder / "rejected").names()
    assert (limit.folder / "rejected").read_table(rejected).num_rows == counts.rejected


def test_matched_sets_want_room_for_every_trajectory() -> None:
    settings = SftConfig(match_length=True, max_length=20)
    training_set._check_room(9, 0, 4, settings)
    with pytest.raises(ConfigError, match=r"sft.max_length=20 has no room for 1 of 4 .* sft.match_length=false"):
        training_set._check_room(8, 1, 4, settings)


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
