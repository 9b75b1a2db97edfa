"""Examples that reach every rank in the plan's order, from any step on, without anyone holding the whole set."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from raml_ray.settings import SftConfig
from raml_ray.stages import example_shards, example_stream
from raml_ray.stages.example_stream import Rank
from raml_ray.storage import Folder
from raml_ray.text.batches import EXAMPLE, Example, table
from raml_ray.workers import sft_plan
from raml_ray.workers.sft_plan import Plan
from tests.workers import tiny

SETTINGS = SftConfig(batch_size=8, num_epochs=2, shuffle_shards=2)
SIZES = (70, 9, 130, 40, 1, 20)
PATIENCE_S = 120


def written(path: Path, rows: pa.Table, sizes: tuple[int, ...]) -> Folder:
    """The rows in shards of these sizes."""
    folder = Folder(str(path / "examples"))
    names = [f"shard-{number}.parquet" for number in range(len(sizes))]
    starts = np.cumsum([0, *sizes])
    parts = [
        example_shards.write_shard(folder, name, rows.slice(int(start), size))
        for name, start, size in zip(names, starts[:-1], sizes, strict=True)
    ]
    example_shards.write_index(folder, example_shards.Index.of(parts))
    return folder


def read(folder: Folder, plan: Plan, start_step: int, rank: Rank) -> list[dict[str, object]]:
    """What the reading tasks give a rank, without Ray."""
    index = example_shards.read_index(folder)
    found: list[dict[str, object]] = []
    for part in sft_plan.parts(plan, index.lengths, start_step, *rank):
        wanted = pa.table(list(part), schema=example_stream.WANTED)
        for rows in example_stream.read_rows(wanted, folder, index.names, index.rows):
            found += rows.to_pylist()
    return found


def test_the_index_says_which_shards_there_are_and_how_long_examples_are(tmp_path: Path) -> None:
    examples = tiny.examples(sum(SIZES))
    folder = written(tmp_path, table(examples), SIZES)
    index = example_shards.read_index(folder)
    assert index.names == tuple(f"shard-{number}.parquet" for number in range(6))
    assert index.rows == SIZES
    assert index.lengths.tolist() == [len(example) for example in examples]
    # A shard's digest is of its tokens: of one that differs in a single one, at equal lengths, another.
    examples[75] = replace(examples[75], prompt_token_ids=[*examples[75].prompt_token_ids[:-1], tiny.VOCABULARY])
    others = example_shards.read_index(written(tmp_path / "others", table(examples), SIZES))
    assert others.lengths.tolist() == index.lengths.tolist()
    same = [mine == theirs for mine, theirs in zip(index.digests, others.digests, strict=True)]
    assert same == [True, False, True, True, True, True]
    with pytest.raises(ValueError, match=r"has no examples: it holds no index.parquet"):
        example_shards.read_index(Folder(str(tmp_path)))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("start_step", [0, 41])
def test_readers_give_every_row_of_the_steps_that_are_left_once(
    tmp_path: Path, world_size: int, start_step: int
) -> None:
    examples = tiny.examples(sum(SIZES))
    folder = written(tmp_path, table(examples), SIZES)
    plan = sft_plan.plan(SIZES, SETTINGS, seed=1)
    for rank in range(world_size):
        rows = read(folder, plan, start_step, Rank(rank, world_size))
        shares = tiny.shares(plan, examples, start_step, rank, world_size)
        for step, share in enumerate(shares, start=start_step):
            here = sorted((row for row in rows if row["step"] == step), key=lambda row: row["place"])
            assert [(row["prompt_token_ids"], row["response_token_ids"]) for row in here] == [
                (e.prompt_token_ids, e.response_token_ids) for e in share
            ]
        assert len(rows) == sum(map(len, tiny.shares(plan, examples, start_step, rank, world_size)))


def test_a_late_start_opens_only_the_shards_that_are_left(tmp_path: Path) -> None:
    sizes = (20,) * 10
    folder = written(tmp_path, table(tiny.examples(200)), sizes)
    plan = sft_plan.plan(sizes, SETTINGS.model_copy(update={"num_epochs": 1}), seed=3)
    expected = read(folder, plan, 15, Rank(0, 1))  # of 25 steps by 8, five a group
    needed = {row // 20 for step in range(15, 25) for row in plan.indices(step)}
    assert len(needed) == 4
    for shard in set(range(10)) - needed:
        (folder / f"shard-{shard}.parquet").remove()
    assert read(folder, plan, 15, Rank(0, 1)) == expected
    with pytest.raises(FileNotFoundError):
        read(folder, plan, 14, Rank(0, 1))


def test_a_reader_holds_one_group_however_large_the_set_is(tmp_path: Path) -> None:
    held = []
    for shards in (2, 20):
        sizes = (16,) * shards
        examples = [Example([1], [number % 50] * 20_000) for number in range(16 * shards)]
        folder = written(tmp_path / str(shards), table(examples), sizes)
        plan = sft_plan.plan(sizes, SETTINGS, seed=0)
        index = example_shards.read_index(folder)
        pool, most = pa.default_memory_pool(), 0
        before = pool.bytes_allocated()
        for part in sft_plan.parts(plan, index.lengths, 0, 0, 1):
            wanted = pa.table(list(part), schema=example_stream.WANTED)
            for _ in example_stream.read_rows(wanted, folder, index.names, index.rows):
                most = max(most, pool.bytes_allocated() - before)
        held.append(most / (32 * 20_000 * 4))  # in groups: two shards of 16 examples of 20,000 tokens of 4 bytes
    assert 1 <= held[0] < 2
    assert held[1] < 1.1 * held[0]


def test_a_shard_of_another_set_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, table(tiny.examples(30)), (10, 20))
    plan = sft_plan.plan((10, 20), SETTINGS, seed=0)
    example_shards.write_shard(folder, "shard-1.parquet", table(tiny.examples(19)))
    with pytest.raises(ValueError, match=r"shard-1.parquet has 19 examples, but the index says 20"):
        read(folder, plan, 0, Rank(0, 1))


@pytest.mark.ray
@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_together_get_exactly_the_batches_from_any_step_on(
    cluster: None, tmp_path: Path, world_size: int
) -> None:
    examples = tiny.examples(sum(SIZES))
    folder = written(tmp_path, table(examples), SIZES)
    plan = sft_plan.plan(SIZES, SETTINGS, seed=1)
    start_step = 0 if world_size == 1 else 41
    streams = [
        example_stream.stream(folder, plan, start_step, Rank(rank, world_size), PATIENCE_S)
        for rank in range(world_size)
    ]
    expected = [tiny.shares(plan, examples, start_step, rank, world_size) for rank in range(world_size)]
    num_steps = 0
    for found, shares in zip(zip(*streams, strict=True), zip(*expected, strict=True), strict=True):
        assert found == shares
        num_steps += 1
    assert num_steps == plan.num_steps - start_step


def large(rows: int, num_tokens: int) -> pa.Table:
    """So many examples of one token and a random response of so many."""
    ids = np.random.default_rng(0).integers(0, 2**30, rows * num_tokens, dtype=np.int32)
    responses = pa.ListArray.from_arrays(np.arange(0, len(ids) + 1, num_tokens, dtype=np.int32), ids)
    prompts = pa.array([[1]] * rows, EXAMPLE.field(0).type)
    unmarked = [pa.array([0] * rows, pa.int32())] * 2
    return pa.table([prompts, responses, *unmarked], schema=EXAMPLE)


@pytest.mark.ray
def test_a_rank_holds_few_examples_of_a_large_set(cluster: None, tmp_path: Path) -> None:
    rows = 16 * 60
    folder = written(tmp_path, large(rows, 30_000), (16,) * 60)  # 115 MB
    plan = sft_plan.plan((16,) * 60, SETTINGS.model_copy(update={"num_epochs": 1}), seed=0)
    process, most, num_examples = psutil.Process(), 0, 0
    before = None
    for share in example_stream.stream(folder, plan, 0, Rank(0, 1), PATIENCE_S):
        memory = process.memory_info()
        before = before or memory.rss - memory.shared
        most = max(most, memory.rss - memory.shared - before)
        num_examples += len(share)
    assert num_examples == rows
    assert most < 50 * 2**20


READER = """
import sys
import ray
from raml_ray.settings import SftConfig
from raml_ray.stages import example_stream
from raml_ray.storage import Folder
from raml_ray.workers import sft_plan

ray.init("local", num_cpus=2, object_store_memory=80 * 2**20, log_to_driver=False)
plan = sft_plan.plan((20,) * 50, SftConfig(batch_size=8, num_epochs=1, shuffle_shards=2), seed=0)
steps = example_stream.stream(Folder(sys.argv[1]), plan, 0, example_stream.Rank(0, 1), 120)
print("tokens", sum(len(example) for step in steps for example in step))
"""


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_set_five_times_as_large_as_the_object_store_reaches_the_rank_whole(tmp_path: Path) -> None:
    folder, shard = Folder(str(tmp_path / "examples")), large(20, 100_000)
    parts = [example_shards.write_shard(folder, f"shard-{number}.parquet", shard) for number in range(50)]  # 400 MB
    example_shards.write_index(folder, example_shards.Index.of(parts))
    reader = subprocess.run(
        [sys.executable, "-c", READER, folder.path], capture_output=True, text=True, timeout=240, check=True
    )
    assert f"tokens {20 * 50 * 100_001}" in reader.stdout


@pytest.mark.ray
def test_what_a_reading_task_refuses_reaches_the_rank(cluster: None, tmp_path: Path) -> None:
    folder = written(tmp_path, table(tiny.examples(30)), (10, 20))
    plan = sft_plan.plan((10, 20), SETTINGS, seed=0)
    example_shards.write_shard(folder, "shard-1.parquet", table(tiny.examples(19)))
    with pytest.raises(ValueError, match=r"shard-1.parquet has 19 examples, but the index says 20"):
        list(example_stream.stream(folder, plan, 0, Rank(0, 1), PATIENCE_S))
