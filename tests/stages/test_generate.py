"""Trajectories: taken over from tables with nothing lost on the way, and sampled through kills to the same rows."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raml_ray import records, storage
from raml_ray.cluster import Patience
from raml_ray.config import ConfigError, Step, dump
from raml_ray.stages import generate, mapping, sources
from raml_ray.stages.context import Context
from raml_ray.storage import Folder
from tests.stages import bad_workers, contexts

ROOT = Path(__file__).parents[2]
STEP = Step(name="generate", stage="generate")
ROWS = [
    {"problem": f"{i} + 1?", "answer": str(i + 1), "small": [f"a {i}", f"b {i}"], "ok": [True, 0]} for i in range(4)
]


def importing(tmp_path: Path, rows: list[object], **settings: object) -> Context:
    (tmp_path / "set.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    defaults: dict[str, object] = {
        "generate__source": "import",
        "data__path": str(tmp_path / "set.jsonl"),
        "data__texts": {"small": "small"},
        "data__max_rejected_fraction": 0.9,
    }
    return contexts.context(tmp_path / "run", STEP, **(defaults | settings))


def reasons(context: Context) -> list[str]:
    return sorted((context.folder / "rejected").read_table("trajectories.parquet")["reason"].to_pylist())


def test_every_text_of_an_imported_table_is_there_or_set_aside_with_its_reason(tmp_path: Path) -> None:
    bad = [
        {"problem": "no text", "answer": "1"},
        {"problem": "empty", "answer": "1", "small": ["fine", " "]},
        {"problem": "", "answer": "1", "small": ["x", "y", "z"]},
        {"problem": "0 + 1?", "answer": "7", "small": "of a conflicting row"},
    ]
    context = importing(tmp_path, [*ROWS, *bad])
    outcome = contexts.finish(context, generate.run(context))
    # Four rows of two texts; one without; one fine and one empty; three and one of rows that are no question.
    assert (outcome.counts.rows_in, outcome.counts.rows_out, outcome.counts.rejected) == (15, 9, 6)
    assert reasons(context) == ["empty_text", "missing_text", *["question_set_aside"] * 4]


@pytest.mark.parametrize("bad", ["a \ud800 b", "a \x00 b"])
def test_a_published_text_that_no_file_could_hold_is_set_aside(tmp_path: Path, bad: str) -> None:
    context = importing(tmp_path, [*ROWS, {"problem": "9 + 9?", "answer": "18", "small": ["fine", bad]}])
    outcome = contexts.finish(context, generate.run(context))
    assert (outcome.counts.rows_in, outcome.counts.rows_out, outcome.counts.rejected) == (10, 9, 1)
    assert reasons(context) == ["bad_encoding"]


def test_a_first_row_without_a_column_does_not_refuse_the_file(tmp_path: Path) -> None:
    context = importing(tmp_path, [{"problem": "a", "answer": "1"}, *ROWS])
    assert generate.run(context).counts.rows_out == 8
    with pytest.raises(ConfigError, match=r"data.texts.small='smal': .* no such column; it has \['answer'"):
        generate.run(importing(tmp_path, ROWS, data__texts={"small": "smal"}))


def test_a_label_is_true_or_false_and_no_text_that_looks_like_it(tmp_path: Path) -> None:
    bad = [
        {"problem": f"p{i}", "answer": "1", "small": "t", "ok": ok} for i, ok in enumerate(["False", None, 2, [1, 1]])
    ]
    context = importing(tmp_path, [*ROWS, *bad], data__labels={"small": "ok"})
    generate.run(context)
    assert context.folder.read_table(generate.LABELS)["label"].to_pylist() == [True, False] * 4
    assert reasons(context) == ["bad_label:'False'", "bad_label:2", "bad_label:2 of 1 texts", "bad_label:None"]


def test_labels_of_an_unknown_policy_and_too_many_bad_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.labels names \['large'\]"):
        generate.run(importing(tmp_path, ROWS, data__labels={"large": "ok"}))
    rows = [*ROWS, {"problem": "no text", "answer": "1"}]
    with pytest.raises(ConfigError, match=r"1 of 9 texts cannot be used .*set.jsonl:5:small#0 missing_text"):
        generate.run(importing(tmp_path, rows, data__max_rejected_fraction=0.1))


def test_other_texts_other_seeds_and_other_lengths_are_other_trajectories(tmp_path: Path) -> None:
    def ids(context: Context) -> set[str]:
        generate.run(context)
        return set(storage.trajectories(context.folder)["trajectory_id"].to_pylist())

    other = [row | {"small": [f"c {i}", f"d {i}"]} for i, row in enumerate(ROWS)]
    assert not ids(importing(tmp_path, ROWS)) & ids(importing(tmp_path, other))
    oracle = {"generate__source": "oracle", "data__path": "miniature:train", "data__limit": 3}
    runs = [
        ids(contexts.context(tmp_path / "run", STEP, **oracle, **changes))
        for changes in ({}, {"seed": 1}, {"generate__oracle_length": "short"})
    ]
    assert len(set.union(*runs)) == sum(map(len, runs)) == 3 * 3 * 8


def test_published_rollouts_come_in_as_the_hub_holds_them(tmp_path: Path) -> None:
    rows = [
        {"problem": f"{i} + 1?", "answer": str(i + 1), "generations": [f"{i} {j}" for j in range(64)]} for i in range(3)
    ]
    labels = [[(i + j) % 2 for j in range(64)] for i in range(3)]
    schema = pa.schema(
        [
            ("problem", pa.string()),
            ("answer", pa.string()),
            ("generations", pa.list_(pa.string())),
            ("labels", pa.list_(pa.int32())),
        ]
    )
    table = pa.Table.from_pylist([row | {"labels": of} for row, of in zip(rows, labels, strict=True)], schema=schema)
    pq.write_table(table, tmp_path / "rollouts.parquet")
    context = importing(
        tmp_path,
        [],
        data__path=str(tmp_path / "rollouts.parquet"),
        data__texts={"teacher": "generations"},
        data__labels={"teacher": "labels"},
        generate__shard_questions=2,
    )
    outcome = contexts.finish(context, generate.run(context))
    assert (outcome.counts.rows_in, outcome.counts.rows_out, outcome.figures["labels"]) == (192, 192, 192)
    assert [
        (context.folder / "trajectories").read_table(f"shard-00000{index}.parquet").num_rows for index in (0, 1)
    ] == [128, 64]
    held = storage.trajectories(context.folder)
    assert held["text"].to_pylist() == [text for row in rows for text in row["generations"]]
    published = context.folder.read_table(generate.LABELS)
    assert published["label"].to_pylist() == [label == 1 for of in labels for label in of]
    assert published["trajectory_id"].to_pylist() == held["trajectory_id"].to_pylist()


def test_texts_of_a_question_that_a_filter_turns_down_are_filtered(tmp_path: Path) -> None:
    bad = [
        {"problem": "Find the", "answer": "1", "small": ["a", "b", "c"]},
        {"problem": "", "answer": "1", "small": "d"},
        {"problem": "7?", "answer": "x.", "small": []},
    ]
    context = importing(tmp_path, [*ROWS, *bad], data__filters=["complete", "digits"])
    outcome = contexts.finish(context, generate.run(context))
    counts = outcome.counts
    assert (counts.rows_in, counts.rows_out, counts.rejected, counts.filtered) == (13, 8, 0, 5)
    assert outcome.figures["filtered_reasons"] == {
        "complete:cut_off": 1,
        "complete:empty_problem": 1,
        "digits:not_digits": 1,
    }
    kept = (context.folder / "rejected").read_table("filtered-questions.parquet")
    assert kept["row_key"].to_pylist() == [f"set.jsonl:{line}" for line in (5, 6, 7)]
    assert set(kept["stage"].to_pylist()) == {"filter"}


def test_a_question_that_was_not_taken_counts_with_all_that_the_oracle_would_have_made(tmp_path: Path) -> None:
    settings = {"generate__source": "oracle", "data__path": "miniature:train", "data__limit": 3}
    context = contexts.context(tmp_path / "run", STEP, **settings)
    taken = sources.questions(context.config, context.config.data, stage="generate")
    flawed = records.rejected("a", "generate", "bad_gold:different", {})
    turned_down = records.rejected("b", "filter", "digits:not_digits", {})
    found = sources.Found(taken.questions, [flawed], [turned_down])
    counts = generate._written(context, found, generate._oracle(context, found)).counts
    assert (counts.rows_in, counts.rows_out + counts.rejected, counts.filtered) == (5 * 8, 4 * 8, 8)
    assert reasons(context).count("question_set_aside") == 8


def test_an_import_that_is_run_again_replaces_what_there_was(tmp_path: Path) -> None:
    generate.run(importing(tmp_path, ROWS, generate__shard_questions=1, generate__num_samples=1))
    outcome = generate.run(importing(tmp_path, ROWS[:2], generate__shard_questions=1, generate__num_samples=1))
    assert outcome.counts.rows_out == 4


def sampling(root: Path, num_questions: int = 24, **settings: object) -> Context:
    defaults: dict[str, object] = {
        "data__path": "miniature:train",
        "data__limit": num_questions,
        "generate__shard_questions": 1,
        "generate__num_samples": 4,
    }
    return contexts.context(root, STEP, **(defaults | settings))


def rows(context: Context) -> list[tuple[str, list[int]]]:
    table = storage.trajectories(context.folder)
    return sorted(zip(table["trajectory_id"].to_pylist(), table["token_ids"].to_pylist(), strict=True))


def wait_for_shards(folder: Folder, count: int) -> None:
    deadline = time.monotonic() + 180  # a driver's start is in it
    while len((folder / "trajectories").names("shard-", ".parquet")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, list[int]]]:
    context = sampling(tmp_path_factory.mktemp("undisturbed") / "run")
    outcome = generate.run(context)
    assert outcome.counts.rows_out == 24 * 4
    return rows(context)


@pytest.mark.ray
def test_an_engine_that_is_killed_is_replaced_and_its_shard_made_again(
    undisturbed: list[tuple[str, list[int]]], tmp_path: Path
) -> None:
    context = sampling(tmp_path / "run")
    killed: list[int] = []

    def kill() -> None:
        wait_for_shards(context.folder, 3)
        for process in psutil.Process().children(recursive=True):
            if "ShardSampler" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = generate.run(context)
    killer.join()
    assert killed
    assert outcome.counts.rows_out == 24 * 4
    assert rows(context) == undisturbed


DRIVER = """
import sys
import ray
from raml_ray.config import load
from raml_ray.stages import generate
from raml_ray.stages.pipeline import context_of
from raml_ray.storage import Folder

config = load(sys.stdin.read(), "stdin")
ray.init("local", num_cpus=3, object_store_memory=100 * 2**20, log_to_driver=False)
generate.run(context_of(config, config.steps[0], Folder(sys.argv[1])))
"""


@pytest.mark.ray
@pytest.mark.faults
def test_a_killed_driver_run_again_makes_what_is_missing(
    undisturbed: list[tuple[str, list[int]]], tmp_path: Path
) -> None:
    context = sampling(tmp_path / "run")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, context.run.path],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert driver.stdin
    driver.stdin.write(dump(context.whole))
    driver.stdin.close()
    wait_for_shards(context.folder, 3)
    driver.kill()
    driver.wait()
    outcome = generate.run(context)
    assert outcome.counts.rows_out == 24 * 4
    assert rows(context) == undisturbed


@pytest.mark.ray
def test_a_lost_row_a_foreign_row_and_another_question_set_are_noticed(cluster: None, tmp_path: Path) -> None:
    context = sampling(tmp_path / "run", 2)
    generate.run(context)
    shards, name = context.folder / "trajectories", "shard-000001.parquet"
    table = shards.read_table(name)
    shards.write_table(name, table.slice(1))
    with pytest.raises(RuntimeError, match=r"1 are lost \(\w+#0\)"):
        generate.run(context)
    shards.write_table(name, pa.concat_tables([table.slice(1), table.slice(1, 1)]))
    with pytest.raises(RuntimeError, match=r"1 are lost \(\w+#0\); 1 are there twice \(\w+#1\)"):
        generate.run(context)
    with pytest.raises(ConfigError, match=r"holds trajectories of other questions .* --redo generate"):
        generate.run(sampling(tmp_path / "run", 3))


@pytest.mark.ray
def test_prompts_that_leave_no_room_are_set_aside_and_counted(cluster: None, tmp_path: Path) -> None:
    lines = [{"problem": "1" * length, "answer": "1"} for length in (1, 2, 80)]
    lines.append({"problem": "", "answer": "1"})
    (tmp_path / "set.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    settings = {"data__path": str(tmp_path / "set.jsonl"), "data__max_rejected_fraction": 0.5}
    outcome = generate.run(sampling(tmp_path / "run", 0, **settings))
    assert (outcome.counts.rows_in, outcome.counts.rows_out, outcome.counts.rejected) == (16, 8, 8)
    assert list(outcome.figures["rejected_reasons"].values()) == [4]
    with pytest.raises(ConfigError, match=r"engine.max_model_len=2 leaves no room for a response to any of 3 prompts"):
        generate.run(sampling(tmp_path / "other", 0, engine__max_model_len=2, **settings))


@pytest.mark.ray
def test_what_cannot_run_is_refused_before_anything_starts(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"9 \(generate.num_engines=9 of engine.cpus_per_engine=1\) .* but Ray has 4"):
        generate.run(sampling(tmp_path / "run", generate__num_engines=9))
    context = sampling(tmp_path / "run")
    (tmp_path / "policy" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="has no tokenizer: copy the model's"):
        generate.run(context)


@pytest.mark.ray
def test_a_worker_that_hangs_or_keeps_dying_ends_the_step(cluster: None) -> None:
    def over(worker: type, seconds: float, *shards: int) -> Iterator[dict[str, object]]:
        patience = Patience(seconds, f"some.setting={seconds}")
        return mapping.over_shards("s", [{"shard": i} for i in shards], worker, {}, mapping.Workers(1), patience)

    with pytest.raises(RuntimeError, match="step 's': a worker died more than 3 times"):
        list(over(bad_workers.Mortal, 60, 0))
    found = over(bad_workers.Sleeper, 12, 0, 1)
    assert next(found)["shard"] == 0
    with pytest.raises(TimeoutError, match=r"step 's': .* for 12 s; 1 of 2 are waited for \(1\).* some.setting=12"):
        next(found)
