"""What the files of a step that holds trajectories are called, and the rows that are in them.

A shard is one file, so that it is there whole or not at all: its table is the trajectories, and the table's metadata
holds the rows that were set aside.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa

from raml_ray.records import Rejected

TRAJECTORIES = "trajectories"
"""The folder of a step's shards."""
QUESTIONS = "questions.parquet"
"""The questions that shards count by their place."""
REJECTED = b"raml.rejected"
"""The entry of a shard's metadata."""


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.parquet"


def sample_key(question_id: str, index: int) -> str:
    """What names a question's sample before it has an id."""
    return f"{question_id}#{index}"


def question_of(row_key: str) -> str:
    """The question that a sample's key names."""
    return row_key.rpartition("#")[0]


def with_rejected(table: pa.Table, rows: Sequence[Rejected]) -> pa.Table:
    """The shard of these trajectories and these rows that were set aside."""
    return table.replace_schema_metadata({REJECTED: json.dumps([asdict(row) for row in rows])} if rows else None)


def rejected_of(table: pa.Table) -> list[Rejected]:
    """The rows that were set aside when this shard was made."""
    return [Rejected(**row) for row in json.loads((table.schema.metadata or {}).get(REJECTED, "[]"))]
