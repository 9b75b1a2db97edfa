"""The files of a training set: trajectories encoded shard by shard, then dealt out to the shards of the shuffled set.

`encode` tells how long each trajectory is in the student's tokens and keeps these in a file; what is to be chosen is
decided in between; `write` takes the chosen ones from there. A task holds one shard of trajectories or one of examples,
the driver neither. What is in which shard depends on the order of the examples alone, not on how many tasks run.
"""

import hashlib
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

from raml_ray import cluster, records
from raml_ray.cluster import Patience
from raml_ray.policy_source import on_this_node
from raml_ray.records import Rejected
from raml_ray.settings import PromptConfig
from raml_ray.storage import Folder

INDEX_FILE = "index.parquet"
FIGURES_FILE = "figures.json"
PIECES = "pieces"
ROWS_PER_GROUP = 64
"""Of a shard's row groups: what a reader holds besides the rows that it wants."""

INDEX = pa.schema([("shard", pa.string()), ("digest", pa.string()), ("tokens", pa.int32())])
"""One row per example, in the order of the set."""
TOKENS = pa.list_(pa.int32())
PIECE = pa.schema(
    [
        ("positions", TOKENS),
        ("prompt_token_ids", TOKENS),
        ("response_token_ids", TOKENS),
        ("answer_start", pa.int32()),
        ("answer_end", pa.int32()),
    ]
)
"""One row per trajectory; positions are those of its examples in the set."""


@dataclass(frozen=True, slots=True)
class Source:
    """Trajectories to encode: those of one shard that may be chosen."""

    folder: Folder
    name: str
    problems: Mapping[str, str]
    """Trajectory -> the text of its question."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How texts become examples, and what is to be known of them."""

    policy: str
    prompt: PromptConfig
    max_length: int
    with_sketches: bool
    with_answers: bool
    """Mark the tokens of the final answer; trajectories where it cannot be found are rejected."""
    answer_pattern: str


class Spread(NamedTuple):
    """At most so many Ray tasks of a CPU each are under way, and each has so long when its result is waited for."""

    most: int
    patience: Patience


class Encoded(NamedTuple):
    """What became of a Source: a file with an EXAMPLE row for each trajectory that max_length has room for."""

    name: str
    num_tokens: dict[str, int]
    """Trajectory -> its tokens without the prompt's, in the order of the rows."""
    sketches: dict[str, np.ndarray]
    """Trajectory -> the sketch of its text (`diversity.sketch`); empty without `with_sketches`."""
    rejected: list[Rejected]
    """The trajectories that are too long, that hold text which was put there by force (a thinking budget's), or whose answer
    is to be marked and was not found."""


class Shard(NamedTuple):
    """One file of a training set."""

    name: str
    digest: str
    """Of every example's tokens and marks, in their order."""
    lengths: np.ndarray
    """(its examples,) int32: tokens of prompt and response."""


class Index(NamedTuple):
    """The shards of a training set."""

    names: tuple[str, ...]
    digests: tuple[str, ...]
    rows: tuple[int, ...]
    lengths: np.ndarray
    """(examples,) int32: tokens of prompt and response."""

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> "Index":
        """The shards in this order."""
        names, digests, lengths = zip(*shards, strict=True)
        return cls(names, digests, tuple(map(len, lengths)), np.concatenate(lengths))


def encode(folder: Folder, sources: Sequence[Source], encoding: Encoding, spread: Spread) -> list[Encoded]:
    """Encode the sources' trajectories, a task for each source; what an earlier attempt left in the step's folder goes
    first.
    """
    pieces = folder / PIECES
    pieces.remove()
    return list(over(_encode, [(source, pieces, number, encoding) for number, source in enumerate(sources)], spread))


def write(
    folder: Folder,
    examples: Folder,
    encoded: Sequence[Encoded],
    positions: Mapping[str, list[int]],
    examples_per_shard: int,
    spread: Spread,
) -> Index:
    """Write the examples' shards; the set is whole when `write_index` has been called with the index that is returned.

    `positions` says at which places among the examples each chosen trajectory is; a shard holds `examples_per_shard` of
    them.

    Raises: RuntimeError if a shard cannot be read back with the rows that were written.
    """
    pieces = folder / PIECES
    examples.remove()
    calls = []
    for part in encoded:
        taken = {row: positions[key] for row, key in enumerate(part.num_tokens) if key in positions}
        if taken:
            calls.append((pieces, part.name, taken, examples_per_shard))
    groups: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for piece, shards in over(_deal, calls, spread):
        for row_group, shard in enumerate(shards):
            groups[shard].append((piece, row_group))
    names = [f"shard-{number:06d}.parquet" for number in sorted(groups)]
    jobs = [(pieces, groups[number], examples, name) for number, name in zip(sorted(groups), names, strict=True)]
    shards = list(over(_gather, jobs, spread))
    pieces.remove()
    return Index.of(shards)


def over(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], spread: Spread) -> Iterator[Any]:
    """What the function returns of each call, in their order.

    Raises: TimeoutError as `cluster.answer`; what the function raised.
    """
    task = ray.remote(function).options(num_cpus=1, scheduling_strategy=cluster.ANYWHERE)
    who = f"a task of the training set ({function.__name__.strip('_')})"
    waiting: deque[ray.ObjectRef] = deque()
    for call in calls:
        if len(waiting) == spread.most:
            yield cluster.answer(waiting.popleft(), who, spread.patience)
        waiting.append(task.remote(*call))
    while waiting:
        yield cluster.answer(waiting.popleft(), who, spread.patience)


def num_tasks(num_rows: int, rows_per_task: int) -> int:
    """How many tasks are worth their start: one for so many rows, within the cluster's CPUs."""
    return max(1, min(math.ceil(num_rows / rows_per_task), int(ray.cluster_resources().get("CPU", 1))))


def _encode(source: Source, pieces: Folder, number: int, encoding: Encoding) -> Encoded:
    """One shard's trajectories in the student's tokens."""
    from raml_ray.text import batches, diversity, final_answer
    from raml_ray.workers import policy as policies

    tokenizer = policies.load_tokenizer(on_this_node(encoding.policy))
    table = source.folder.read_table(
        source.name, ["trajectory_id", "question_id", "sample_index", "policy_id", "finish_reason", "text", "forced"]
    )
    wanted = table.filter(pc.is_in(table["trajectory_id"], pa.array(list(source.problems), pa.string())))
    found = Encoded(f"encoded-{number:06d}.parquet", {}, {}, [])
    with pieces.writing(found.name) as file, pq.ParquetWriter(file, batches.EXAMPLE, compression="zstd") as writer:
        for batch in wanted.to_batches(max_chunksize=ROWS_PER_GROUP):
            examples = []
            for row in batch.to_pylist():
                key = row["trajectory_id"]
                span = None
                if encoding.with_answers:
                    span = final_answer.final_span(row["text"], pattern=encoding.answer_pattern)
                example = batches.encode(tokenizer, source.problems[key], row["text"], encoding.prompt, answer=span)
                reason = ""
                if forced := row["forced"]:
                    reason = f"forced_text:tokens {forced[0]['start']} to {forced[0]['end']} are not the policy's own"
                elif len(example) > encoding.max_length:
                    reason = f"too_long:{len(example)} tokens, sft.max_length={encoding.max_length}"
                elif encoding.with_answers and not any(example.fields.get(batches.ANSWER, ())):
                    reason = f"no_answer:sft.answer_pattern={encoding.answer_pattern!r}"
                if reason:
                    found.rejected.append(records.rejected(key, "sft", reason, row))
                    continue
                examples.append(example)
                found.num_tokens[key] = len(example.response_token_ids)
                if encoding.with_sketches:
                    found.sketches[key] = diversity.sketch(row["text"])
            writer.write_table(batches.table(examples))
    return found


def _deal(
    pieces: Folder, name: str, positions: Mapping[int, list[int]], examples_per_shard: int
) -> tuple[str, list[int]]:
    """Write the chosen rows of an encoded file (row -> positions) as a row group for each shard that takes some of them;
    returns the new file's name and those shards.
    """
    by_shard: dict[int, dict[int, list[int]]] = defaultdict(dict)
    for row, places in positions.items():
        for place in places:
            by_shard[place // examples_per_shard].setdefault(row, []).append(place % examples_per_shard)
    table, piece, shards = pieces.read_table(name), name.replace("encoded", "piece"), sorted(by_shard)
    with pieces.writing(piece) as file, pq.ParquetWriter(file, PIECE, compression="zstd") as writer:
        for shard in shards:
            rows = table.take(list(by_shard[shard]))
            rows = rows.add_column(0, PIECE.field("positions"), pa.array(list(by_shard[shard].values()), TOKENS))
            writer.write_table(rows, row_group_size=rows.num_rows)
    return piece, shards


def _gather(pieces: Folder, groups: Sequence[tuple[str, int]], examples: Folder, name: str) -> Shard:
    """Write one shard of examples from its pieces, in the order of their positions."""
    found = []
    for piece, row_group in groups:
        with pieces.open(piece) as file:
            found.append(pq.ParquetFile(file).read_row_group(row_group, use_threads=False))
    table = pa.concat_tables(found).combine_chunks()
    positions = table["positions"].combine_chunks()
    owners = pc.list_parent_indices(positions).to_numpy()
    rows = table.drop_columns("positions").take(owners[np.argsort(pc.list_flatten(positions).to_numpy())])
    return write_shard(examples, name, rows)


def write_shard(examples: Folder, name: str, rows: pa.Table) -> Shard:
    """One file of a training set, in row groups of ROWS_PER_GROUP.

    Raises: RuntimeError if it cannot be read back with as many rows.
    """
    with examples.writing(name) as file:
        pq.write_table(rows, file, row_group_size=ROWS_PER_GROUP, compression="zstd")
    with examples.open(name) as file:
        there = pq.ParquetFile(file).metadata.num_rows
    if there != rows.num_rows:
        raise RuntimeError(f"{examples.file(name)}: {rows.num_rows} examples were written, {there} can be read")
    digest, lengths = hashlib.sha256(), np.zeros(rows.num_rows, np.int32)
    for column in ("prompt_token_ids", "response_token_ids"):
        size_N = pc.list_value_length(rows[column]).to_numpy()
        digest.update(size_N.tobytes() + pc.list_flatten(rows[column]).to_numpy().tobytes())
        lengths += size_N
    for column in ("answer_start", "answer_end"):
        digest.update(rows[column].to_numpy().tobytes())
    return Shard(name, digest.hexdigest()[:16], lengths)


def write_index(examples: Folder, index: Index) -> None:
    """Say which shards the set is made of and how long each example is: what makes the set whole."""
    shards, digests = (np.repeat(np.array(values), index.rows) for values in (index.names, index.digests))
    examples.write_table(INDEX_FILE, pa.table([shards, digests, index.lengths], schema=INDEX))


def read_index(examples: Folder) -> Index:
    """The shards that `write_index` named. Raises: ValueError if there is no index (the set is not whole), or
    another version made it."""
    if not examples.exists(INDEX_FILE):
        raise ValueError(f"{examples.path} has no examples: it holds no {INDEX_FILE}")
    table = examples.read_table(INDEX_FILE)
    if table.schema.names != INDEX.names:
        raise ValueError(f"{examples.file(INDEX_FILE)} is of another version: start the step anew with --redo")
    counted = pc.value_counts(table["shard"].combine_chunks()).to_pylist()  # in the order of first appearance
    rows = tuple(entry["counts"] for entry in counted)
    firsts = np.cumsum((0, *rows[:-1]))
    return Index(
        tuple(entry["values"] for entry in counted),
        tuple(table["digest"].take(firsts).to_pylist()),
        rows,
        table["tokens"].to_numpy(),
    )
