"""Ray Data over shards: a worker that dies is replaced, nobody is waited for without end, no row is lost.

A shard is one row of the mapped data set. What a worker makes of it counts when its file stands in the step's folder.
"""

import queue
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError

from raml_ray import records
from raml_ray.cluster import Patience
from raml_ray.records import Rejected
from raml_ray.storage import Folder

MOST_RESTARTS = 3
"""Of each worker, and attempts to make each shard again, where nobody watches them."""
WATCH_S = 2.0
"""Between two calls of the function that watches the workers."""


class Workers(NamedTuple):
    """Who maps: `Workers(2)`, or between one and four that make eight shards each at once: `Workers((1, 4), at_once=8)`."""

    num: int | tuple[int, int]
    """Workers, or (fewest, most): Ray Data starts more while shards wait for one."""
    cpus: float = 1
    gpus: float = 0
    at_once: int = 1
    """Shards that one worker makes at once, each in a thread of its own: the worker has to be thread-safe."""
    placement: Mapping[str, Any] = {}
    """Ray's scheduling_strategy, label_selector."""

    def bounds(self, num_shards: int) -> tuple[int, int]:
        """Fewest and most workers, never more than there are shards. A plain number starts with one and goes up to it."""
        fewest, most = (1, self.num) if isinstance(self.num, int) else self.num
        return min(fewest, num_shards), min(most, num_shards)


Finished = dict[str, Any] | Exception | None
"""A shard's result, what ended the mapping early, or None at its end."""


def over_shards(
    step: str,
    shards: Sequence[Mapping[str, Any]],
    worker: type,
    arguments: Mapping[str, Any],
    workers: Workers,
    patience: Patience,
    watch: Callable[[], object] | None = None,
) -> Iterator[dict[str, Any]]:
    """What `worker(**arguments)`, one instance per actor, returns of every shard, as they finish.

    Shards and results name themselves in the column `shard`. A worker that dies is started again and makes its shards
    anew: MOST_RESTARTS times, or without end where `watch` is there to put one. `watch` is called every WATCH_S
    seconds; it returns something that differs from the last time if the workers get on.

    Raises: TimeoutError if no shard was finished and nothing else happened for as long as the patience lasts;
    RuntimeError if a worker died more often than it may; what a worker or `watch` raised, as it is. Workers that hang
    end with the driver.
    """
    mapped = _mapped(shards, worker, arguments, workers, restarts=-1 if watch else MOST_RESTARTS)
    finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
    threading.Thread(target=_collect, args=(mapped, finished), daemon=True).start()
    waiting = dict.fromkeys(shard["shard"] for shard in shards)
    while waiting:
        row = _next(step, finished, list(waiting)[:5], len(waiting), len(shards), patience, watch)
        if row is None:
            return
        if isinstance(row, Exception) and watch:
            watch()  # it knows better what the matter is, if it knows anything
        if isinstance(row, RayActorError):
            often = "could not start" if watch else f"died more than {MOST_RESTARTS} times"
            raise RuntimeError(f"step {step!r}: a worker {often}: {row}") from row
        if isinstance(row, Exception):
            raise row
        del waiting[row["shard"]]
        yield row


def _mapped(
    shards: Sequence[Mapping[str, Any]], worker: type, arguments: Mapping[str, Any], workers: Workers, restarts: int
) -> "ray.data.Dataset":
    fewest, most = workers.bounds(len(shards))
    # A pool grows when its actors have nearly twice the tasks that they can run; one that cannot grow keeps none waiting.
    in_flight = workers.at_once * (2 if fewest < most else 1)
    with warnings.catch_warnings():  # that these have no parameters of their own yet is known
        warnings.simplefilter("ignore", DeprecationWarning)
        # One block per shard, and thus one task: what is lost with a worker is what it had not committed.
        return ray.data.from_items(list(shards), override_num_blocks=len(shards)).map_batches(
            worker,
            fn_constructor_kwargs=dict(arguments),
            batch_size=1,
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            compute=ray.data.ActorPoolStrategy(
                min_size=fewest,
                max_size=most,
                max_tasks_in_flight_per_actor=in_flight,
                max_concurrent_calls_per_actor=workers.at_once,
                enable_true_multi_threading=True,
            ),
            max_restarts=restarts,
            max_task_retries=restarts,
            **workers.placement,
        )


def _next(
    step: str,
    finished: "queue.SimpleQueue[Finished]",
    waiting: Sequence[object],
    num_waiting: int,
    num_shards: int,
    patience: Patience,
    watch: Callable[[], object] | None,
) -> Finished:
    """What finishes next. `waiting`: the first shards that are waited for."""
    deadline = time.monotonic() + patience.seconds
    mark: object = None
    while True:
        left = deadline - time.monotonic()
        try:
            return finished.get(timeout=max(min(left, WATCH_S), 0) if watch else left)
        except queue.Empty:
            newest = watch() if watch else None
            if newest != mark:
                deadline, mark = time.monotonic() + patience.seconds, newest
            if time.monotonic() < deadline:
                continue
        raise TimeoutError(
            f"step {step!r}: no shard was finished for {patience.seconds:g} s; {num_waiting} of {num_shards} are"
            f" waited for ({', '.join(map(str, waiting))}): a worker hangs or cannot start, or"
            f" {patience.setting} is too short"
        )


def _collect(mapped: "ray.data.Dataset", finished: "queue.SimpleQueue[Finished]") -> None:
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
