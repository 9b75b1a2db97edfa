"""A training set streamed to each learner rank through Ray Data, from any step on.

Every rank runs a data set of its own inside its worker: one block per group of shards, which says what the rank wants
of them and when (`sft_plan.parts`). A reading task holds the wanted rows of one group, the object store the blocks
ahead, the rank one block; none of them the whole set. The position is the step, so a restarted group of learners begins
where its checkpoint ends and reads nothing from before.

What it costs: a rank's rows lie all over the files, which can only be decoded by row group, so that the ranks of a node
together decode up to as many times the set's rows an epoch as they are many.

This module is what a reading task imports: torch and transformers are left to the rank.
"""

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from raml_ray.stages.example_shards import TOKENS, Index, read_index
from raml_ray.storage import Folder

if TYPE_CHECKING:
    from raml_ray.text.batches import Example
    from raml_ray.workers.sft_plan import Plan

BLOCK_BYTES = 16 * 2**20
"""Of the examples that a rank takes from the object store at once."""
WANTED = pa.schema([("step", pa.int32()), ("place", pa.int32()), ("row", pa.int64())])
STREAMED = pa.schema(
    [
        ("step", pa.int32()),
        ("place", pa.int32()),
        ("prompt_token_ids", TOKENS),
        ("response_token_ids", TOKENS),
        ("answer_start", pa.int32()),
        ("answer_end", pa.int32()),
    ]
)


class Rank(NamedTuple):
    """A learner among its like: `Rank(1, 2)`."""

    number: int
    world_size: int


def stream(examples: Folder, plan: "Plan", start_step: int, rank: Rank, patience_s: float) -> Iterator[list["Example"]]:
    """The rank's examples of each step from `start_step` on: its share of `plan.indices(step)`, longest first.

    Raises: ValueError if the shards are not those of the index; TimeoutError if no block came for `patience_s`.
    """
    from raml_ray.workers import sft_plan

    index = read_index(examples)
    tables = [
        pa.table(list(part), schema=WANTED)
        for part in sft_plan.parts(plan, index.lengths, start_step, rank.number, rank.world_size)
    ]
    rows = _examples(_blocks(tables, examples, index, rank, patience_s))
    for step in range(start_step, plan.num_steps):
        mine: dict[int, Example] = {}
        for _ in range(len(sft_plan.share(plan.indices(step), *rank, length=lambda row: int(index.lengths[row])))):
            found, place, example = next(rows, (-1, 0, None))
            if found != step or example is None:
                raise RuntimeError(f"{examples.path}: step {step} was read, but an example of step {found} came")
            mine[place] = example
        yield [mine[place] for place in sorted(mine)]


def _examples(blocks: Iterator[pa.Table]) -> Iterator[tuple[int, int, "Example"]]:
    """(step, place, example) of every row, one block held at a time."""
    from raml_ray.text.batches import Examples

    for block in blocks:
        rows = zip(block["step"].to_pylist(), block["place"].to_pylist(), Examples(block), strict=True)
        yield from rows


def _blocks(
    tables: Sequence[pa.Table], examples: Folder, index: Index, rank: Rank, patience_s: float
) -> Iterator[pa.Table]:
    """The streamed rows of the wanted ones, in their order, as blocks of about BLOCK_BYTES."""
    if not tables:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.target_max_block_size = BLOCK_BYTES
    settings.execution_options.preserve_order = True
    # One task at a time, and for all ranks one CPU together: a rank whose blocks are not taken yet keeps its own part
    # of it, so ranks never wait for each other's.
    read = ray.data.from_arrow(list(tables)).map_batches(
        read_rows,
        fn_args=(examples, index.names, index.rows),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=10_000 // rank.world_size / 10_000,  # Ray counts in parts of 10,000
        memory=max(_bytes(table, index) for table in tables),
        compute=ray.data.TaskPoolStrategy(size=1),
    )
    ahead: queue.Queue[pa.Table | Exception | None] = queue.Queue(maxsize=1)
    threading.Thread(target=_collect, args=(read, ahead), daemon=True).start()
    while True:
        try:
            block = ahead.get(timeout=patience_s)
        except queue.Empty:
            raise TimeoutError(
                f"{examples.path}: no examples were read for {patience_s:g} s: Ray has no CPU or memory left for Ray"
                " Data's tasks (lower sft.shuffle_shards), the store hangs, or train.collective_timeout_s is too short"
            ) from None
        if block is None:
            return
        if isinstance(block, Exception):
            raise block
        yield block


def _bytes(wanted: pa.Table, index: Index) -> int:
    """What the task that reads these rows holds: their tokens (int32), as they were read and as they are given on."""
    return 2 * 4 * int(index.lengths[wanted["row"].to_numpy()].sum())


def _collect(read: "ray.data.Dataset", ahead: "queue.Queue[pa.Table | Exception | None]") -> None:
    try:
        for block in read.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            ahead.put(block)
        ahead.put(None)
    except Exception as error:  # whatever it is, the thread that waits for it raises it
        ahead.put(error)


def read_rows(
    wanted: pa.Table, examples: Folder, names: Sequence[str], shard_rows: Sequence[int]
) -> Iterator[pa.Table]:
    """The wanted rows (WANTED) of a training set step by step, as STREAMED tables; only their shards are opened.

    Raises: ValueError if a shard has other rows than the index says.
    """
    rows = np.unique(wanted["row"].to_numpy())
    kept: list[pa.Table] = []
    ends = list(accumulate(shard_rows))
    for name, count, end in zip(names, shard_rows, ends, strict=True):
        first, last = np.searchsorted(rows, (end - count, end))
        if first < last:
            kept += _shard(examples, name, count, rows[first:last] - (end - count))
    firsts = np.array([0, *accumulate(table.num_rows for table in kept)])
    steps = wanted["step"].to_numpy()
    begins = [0, *(np.flatnonzero(np.diff(steps)) + 1), len(steps)]
    for begin, end in pairwise(begins):
        part = wanted.slice(begin, end - begin)
        found = []
        for number in np.searchsorted(rows, part["row"].to_numpy()):
            table = int(np.searchsorted(firsts, number, side="right")) - 1
            found.append(kept[table].slice(number - firsts[table], 1))
        columns = pa.concat_tables(found).combine_chunks().columns
        yield pa.table([part["step"], part["place"], *columns], schema=STREAMED)


def _shard(examples: Folder, name: str, count: int, rows: np.ndarray) -> Iterator[pa.Table]:
    """Some rows (ascending) of one shard, by row group."""
    with examples.open(name) as opened:
        file = pq.ParquetFile(opened)
        if file.metadata.num_rows != count:
            raise ValueError(
                f"{examples.file(name)} has {file.metadata.num_rows} examples, but the index says {count}:"
                " start the step anew with --redo"
            )
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            first, last = np.searchsorted(rows, (start, end))
            if first < last:
                found = file.read_row_group(group, STREAMED.names[2:], use_threads=False)
                yield found.take(rows[first:last] - start)
            start = end
