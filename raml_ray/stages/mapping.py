"""Ray Data over shards: a worker that dies is replaced a few times, nobody is waited for without end, no row is lost.

A shard is one row of the mapped data set. What a worker makes of it counts when its file stands in the step's folder.
"""

import queue
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError

from raml_ray import records
from raml_ray.records import Rejected
from raml_ray.storage import Folder

MOST_RESTARTS = 3
"""Of each worker, and attempts to make each shard again."""


class Workers(NamedTuple):
    """Who maps: `Workers(2, cpus=1, gpus=0)`."""

    num: int
    cpus: float = 1
    gpus: float = 0


class Patience(NamedTuple):
    """How long no shard may be finished, and what to raise if that is too short: `Patience(900, "engine.…=900")`."""

    seconds: float
    setting: str


def over_shards(
    step: str,
    shards: Sequence[Mapping[str, Any]],
    worker: type,
    arguments: Mapping[str, Any],
    workers: Workers,
    patience: Patience,
) -> Iterator[dict[str, Any]]:
    """What `worker(**arguments)`, one instance per actor, returns of every shard, as they finish.

    Shards and results name themselves in the column `shard`.

    Raises: TimeoutError if no shard was finished for as long as the patience lasts; RuntimeError if a worker died more
    than MOST_RESTARTS times; what a worker raised, as it is. Workers that hang end with the driver.
    """
    with warnings.catch_warnings():  # that these have no parameters of their own yet is known
        warnings.simplefilter("ignore", DeprecationWarning)
        mapped = ray.data.from_items(list(shards), override_num_blocks=len(shards)).map_batches(
            worker,
            fn_constructor_kwargs=dict(arguments),
            batch_size=1,
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers.num, len(shards))),
            max_restarts=MOST_RESTARTS,
            max_task_retries=MOST_RESTARTS,
        )
    finished: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()
    threading.Thread(target=_collect, args=(mapped, finished), daemon=True).start()
    waiting = [shard["shard"] for shard in shards]
    while True:
        try:
            row = finished.get(timeout=patience.seconds)
        except queue.Empty:
            raise TimeoutError(
                f"step {step!r}: no shard was finished for {patience.seconds:g} s; {len(waiting)} of {len(shards)} are"
                f" waited for ({', '.join(map(str, waiting[:5]))}): a worker hangs or cannot start, or"
                f" {patience.setting} is too short"
            ) from None
        if row is None:
            return
        if isinstance(row, RayActorError):
            raise RuntimeError(f"step {step!r}: a worker died more than {MOST_RESTARTS} times: {row}") from row
        if isinstance(row, Exception):
            raise row
        waiting.remove(row["shard"])
        yield row


def _collect(mapped: "ray.data.Dataset", finished: "queue.SimpleQueue[dict[str, Any] | Exception | None]") -> None:
    try:
        # iter_rows holds a row back until the next one is there.
        for table in mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in table.to_pylist():
                finished.put(row)
        finished.put(None)
    except Exception as error:  # whatever it is, the thread that waits for it raises it
        finished.put(error)


def write_rejected(folder: Folder, name: str, rows: Sequence[Rejected]) -> None:
    """Keep the rows that a shard set aside, in the place of those that an earlier attempt at it did."""
    target = folder / "rejected"
    if rows or target.exists(name):
        target.write_table(name, records.table(rows, records.REJECTED))


def check_complete(folder: Folder, wanted: Iterable[str], found: Iterable[str], rejected: Iterable[str]) -> None:
    """Nothing, if every row that was wanted is there once, or was set aside once, and no other one.

    Raises: RuntimeError that says which are not.
    """
    there, asked = Counter(found) + Counter(rejected), set(wanted)
    wrong = {
        "lost": sorted(asked - there.keys()),
        "there twice": sorted(key for key, count in there.items() if count > 1),
        "there that nobody asked for": sorted(there.keys() - asked),
    }
    if any(wrong.values()):
        parts = [f"{len(keys)} are {what} ({', '.join(keys[:3])})" for what, keys in wrong.items() if keys]
        raise RuntimeError(f"rows of {folder.path}: {'; '.join(parts)}")
