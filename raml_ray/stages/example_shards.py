"""The files of a training set: trajectories encoded shard by shard, then dealt out to the shards of the shuffled set.

A task holds one shard of trajectories or one of examples, the driver neither. What is in which shard depends on the
order of the examples alone, not on how many tasks run.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from raml_ray import records
from raml_ray.records import Rejected
from raml_ray.settings import PromptConfig
from raml_ray.storage import Folder

INDEX_FILE = "index.parquet"
PIECES = "pieces"
ROWS_PER_GROUP = 64
"""Of a shard's row groups: what a reader holds besides the rows that it wants."""

INDEX = pa.schema([("shard", pa.string()), ("tokens", pa.int32())])
"""One row per example, in the order of the set."""
TOKENS = pa.list_(pa.int32())
PIECE = pa.schema([("positions", TOKENS), ("prompt_token_ids", TOKENS), ("response_token_ids", TOKENS)])
"""One row per trajectory; positions are those of its examples in the set."""


@dataclass(frozen=True, slots=True)
class Source:
    """Trajectories to encode: those of one shard that were chosen."""

    folder: Folder
    name: str
    positions: Mapping[str, list[int]]
    """Trajectory -> its places among the examples."""
    problems: Mapping[str, str]
    """Question -> its text."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How texts become examples, and of how many examples a shard is."""

    policy_path: str
    prompt: PromptConfig
    max_length: int
    examples_per_shard: int


class Piece(NamedTuple):
    """What became of a Source: a file with a row group of examples for each shard that takes some of them."""

    name: str
    shards: list[int]
    num_trajectories: int
    rejected: list[Rejected]


class Index(NamedTuple):
    """The shards of a training set."""

    names: tuple[str, ...]
    rows: tuple[int, ...]
    lengths: np.ndarray
    """(examples,) int32: tokens of prompt and response."""


def write(
    folder: Folder, examples: Folder, sources: Sequence[Source], encoding: Encoding, most: int
) -> tuple[Index, int, list[Rejected]]:
    """Write the examples' shards and, last of all, their index; an earlier attempt's files go first.

    Returns the index, the number of trajectories encoded, and those that encoding.max_length has no room for. A shard
    holds the examples at its `examples_per_shard` positions, less those of rejected trajectories. At most `most` tasks
    run at once.

    Raises: RuntimeError if a shard cannot be read back with the rows that were written.
    """
    pieces = folder / PIECES
    examples.remove()
    pieces.remove()
    made: list[Piece] = list(
        over(_encode, [(source, pieces, number, encoding) for number, source in enumerate(sources)], most)
    )
    groups: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for piece in made:
        for row_group, shard in enumerate(piece.shards):
            groups[shard].append((piece.name, row_group))
    names = [f"shard-{number:06d}.parquet" for number in sorted(groups)]
    jobs = [(pieces, groups[number], examples, name) for number, name in zip(sorted(groups), names, strict=True)]
    lengths = list(over(_gather, jobs, most))
    if lengths:
        write_index(examples, names, lengths)
    pieces.remove()
    rejected = [row for piece in made for row in piece.rejected]
    index = Index(tuple(names), tuple(map(len, lengths)), np.concatenate([np.array([], np.int32), *lengths]))
    return index, sum(piece.num_trajectories for piece in made), rejected


def over(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], most: int) -> Iterator[Any]:
    """What the function returns of each call, in their order; at most `most` Ray tasks of a CPU each are under way."""
    task = ray.remote(function).options(num_cpus=1)
    waiting: deque[Any] = deque()
    for call in calls:
        if len(waiting) == most:
            yield ray.get(waiting.popleft())
        waiting.append(task.remote(*call))
    while waiting:
        yield ray.get(waiting.popleft())


def num_tasks(num_rows: int, rows_per_task: int) -> int:
    """How many tasks are worth their start: one for so many rows, within the cluster's CPUs."""
    return max(1, min(math.ceil(num_rows / rows_per_task), int(ray.cluster_resources().get("CPU", 1))))


def _encode(source: Source, pieces: Folder, number: int, encoding: Encoding) -> Piece:
    """One shard's chosen trajectories in the student's tokens."""
    from raml_ray.text import batches
    from raml_ray.workers import policy as policies

    tokenizer = policies.load_tokenizer(encoding.policy_path)
    table = source.folder.read_table(
        source.name, ["trajectory_id", "question_id", "sample_index", "policy_id", "finish_reason", "text"]
    )
    wanted = table.filter(pc.is_in(table["trajectory_id"], pa.array(list(source.positions), pa.string())))
    rejected: list[Rejected] = []
    by_shard: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for start in range(wanted.num_rows):
        [row] = wanted.slice(start, 1).to_pylist()
        key = row["trajectory_id"]
        example = batches.encode(tokenizer, source.problems[row["question_id"]], row["text"], encoding.prompt)
        if len(example) > encoding.max_length:
            reason = f"too_long:{len(example)} tokens, sft.max_length={encoding.max_length}"
            rejected.append(records.rejected(key, "sft", reason, row))
            continue
        ids = [np.array(part, np.int32) for part in (example.prompt_token_ids, example.response_token_ids)]
        taken: dict[int, list[int]] = defaultdict(list)
        for position in source.positions[key]:
            taken[position // encoding.examples_per_shard].append(position % encoding.examples_per_shard)
        for shard, positions in taken.items():
            by_shard[shard].append(dict(zip(PIECE.names, (positions, *ids), strict=True)))
    name, shards = f"piece-{number:06d}.parquet", sorted(by_shard)
    with pieces.writing(name) as file, pq.ParquetWriter(file, PIECE, compression="zstd") as writer:
        for shard in shards:
            rows = pa.Table.from_pylist(by_shard.pop(shard), schema=PIECE)
            writer.write_table(rows, row_group_size=rows.num_rows)
    return Piece(name, shards, wanted.num_rows - len(rejected), rejected)


def _gather(pieces: Folder, groups: Sequence[tuple[str, int]], examples: Folder, name: str) -> np.ndarray:
    """Write one shard of examples from its pieces, in the order of their positions; returns the examples' tokens."""
    found = []
    for piece, row_group in groups:
        with pieces.open(piece) as file:
            found.append(pq.ParquetFile(file).read_row_group(row_group, use_threads=False))
    table = pa.concat_tables(found).combine_chunks()
    positions = table["positions"].combine_chunks()
    owners = pc.list_parent_indices(positions).to_numpy()
    rows = table.drop_columns("positions").take(owners[np.argsort(pc.list_flatten(positions).to_numpy())])
    return write_shard(examples, name, rows)


def write_shard(examples: Folder, name: str, rows: pa.Table) -> np.ndarray:
    """One file of a training set, in row groups of ROWS_PER_GROUP; returns the examples' tokens.

    Raises: RuntimeError if it cannot be read back with as many rows.
    """
    with examples.writing(name) as file:
        pq.write_table(rows, file, row_group_size=ROWS_PER_GROUP, compression="zstd")
    with examples.open(name) as file:
        there = pq.ParquetFile(file).metadata.num_rows
    if there != rows.num_rows:
        raise RuntimeError(f"{examples.file(name)}: {rows.num_rows} examples were written, {there} can be read")
    lengths = [pc.list_value_length(rows[column]).to_numpy() for column in ("prompt_token_ids", "response_token_ids")]
    return np.asarray(lengths[0] + lengths[1], np.int32)


def write_index(examples: Folder, names: Sequence[str], lengths: Sequence[np.ndarray]) -> None:
    """Say which shards the set is made of and how long each example is: what makes the set whole."""
    shards = np.repeat(np.array(names), [len(part) for part in lengths])
    table = pa.table({"shard": pa.array(shards, pa.string()), "tokens": np.concatenate(lengths)}, schema=INDEX)
    examples.write_table(INDEX_FILE, table)


def read_index(examples: Folder) -> Index:
    """The shards that `write_index` named. Raises: ValueError if there is no index: the set is not whole."""
    if not examples.exists(INDEX_FILE):
        raise ValueError(f"{examples.path} has no examples: it holds no {INDEX_FILE}")
    table = examples.read_table(INDEX_FILE)
    counted = pc.value_counts(table["shard"].combine_chunks()).to_pylist()  # in the order of first appearance
    return Index(
        tuple(entry["values"] for entry in counted),
        tuple(entry["counts"] for entry in counted),
        table["tokens"].to_numpy(),
    )
