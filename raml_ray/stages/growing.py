"""Parquet files that are written as their rows come, so that no step holds more of them than a few."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raml_ray import records
from raml_ray.records import Trajectory
from raml_ray.stages import shards
from raml_ray.storage import Folder

ROWS_HELD = 1024


@contextlib.contextmanager
def table(folder: Folder, name: str, schema: pa.Schema) -> Iterator[Callable[[Any], None]]:
    """A function that adds a row to a file which stands under its name when the block has ended well.

    Without a row there is no file, unless one of that name is there: that becomes empty.
    """
    held: list[Any] = []
    writer: pq.ParquetWriter | None = None
    with contextlib.ExitStack() as stack:

        def write() -> None:
            nonlocal writer
            if writer is None:
                file = stack.enter_context(folder.writing(name))
                writer = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))
            writer.write_table(records.table(held, schema))
            held.clear()

        def add(row: Any) -> None:
            held.append(row)
            if len(held) == ROWS_HELD:
                write()

        yield add
        if held or (writer is None and folder.exists(name)):
            write()


class Shards:
    """Trajectory files of so many questions each, in the order in which the rows come."""

    def __init__(self, folder: Folder, num_questions: int) -> None:
        self._folder = folder
        self._most = num_questions
        self._count = 0
        self._questions: set[str] = set()
        self._rows: list[Trajectory] = []

    def add(self, row: Trajectory) -> None:
        """One row; those of a question come one after the other."""
        if row.question_id not in self._questions and len(self._questions) == self._most:
            self.flush()
        self._questions.add(row.question_id)
        self._rows.append(row)

    def flush(self) -> None:
        """Write the rows that are held, as a shard."""
        if self._rows:
            self._folder.write_table(shards.shard_name(self._count), records.table(self._rows, records.TRAJECTORY))
            self._count += 1
        self._rows, self._questions = [], set()
