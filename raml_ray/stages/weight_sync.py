"""How a version's weights get from the learners to the engines."""

import contextlib
import faulthandler
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from raml_ray.config import Config
from raml_ray.stages.engine_actor import Bucket
from raml_ray.workers import weights
from raml_ray.workers.sharding import DTYPES, Sharded
from raml_ray.workers.sync_check import Probe

Asked = Callable[[ray.ObjectRef, float, str], Any]
"""Waits for the pool's answer: a reference, seconds, and what is waited for."""


class WeightSync(Protocol):
    """A way for weights. Every method is called on all ranks alike."""

    def send(self, version: int, probe: Probe | None, patience_s: float) -> dict[str, float]:
        """Give the learner's weights to all engines as those of a version; on rank 0 what that took, else nothing."""


class ObjectStoreSync:
    """Through Ray's object store, for any device: gathered layer by layer, sent in buckets, each with its checksum."""

    def __init__(self, pool: ActorHandle, learner: Sharded, config: Config, asked: Asked) -> None:
        self._pool, self._learner, self._config, self._asked = pool, learner, config, asked
        self._sent: list[Bucket] = []
        self._scratch = weights.Scratch()
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="checksum")

    def send(self, version: int, probe: Probe | None, patience_s: float) -> dict[str, float]:
        began = time.perf_counter()
        dtype = DTYPES[self._config.engine.dtype]
        tensors = self._learner.full_tensors(dtype)
        if self._learner.rank:
            for _ in tensors:  # every rank takes part in gathering
                pass
            return {}
        most = round(self._config.grpo.sync_bucket_mib * 2**20)
        # Held until the next sync: the pool may still be reading them.
        self._sent = [self._bucket(*packed) for packed in weights.buckets(tensors, dtype, most, self._scratch)]
        gathered = time.perf_counter()
        load_s: float = self._asked(
            self._pool.publish.remote(version, self._sent, probe),
            patience_s,
            f"the engines to take over version {version} (engine.request_timeout_s, train.collective_timeout_s)",
        )
        num_bytes = sum(bucket.layout.num_bytes for bucket in self._sent)
        return {
            "time/gather_s": gathered - began,
            "time/engine_load_s": load_s,
            "grpo/sync_mib": num_bytes / 2**20,
            "grpo/sync_gb_per_s": num_bytes / 1e9 / (gathered - began + load_s),
        }

    def _bucket(self, arrays: list[np.ndarray], layout: weights.Layout) -> Bucket:
        # Both only read, and neither holds the interpreter's lock meanwhile.
        checksum = self._beside.submit(weights.checksum, arrays, layout)
        return Bucket(ray.put(arrays), layout, checksum.result())


class NcclSync:
    """From GPU to GPU by vLLM's native transfer, packed into buckets. No GPU has run it yet.

    The first learner and all ranks of all engines form a group, made anew whenever an engine has been replaced. An engine
    that is replaced between two syncs gets its weights with the next one: no copy is kept that it could get them from.
    """

    def __init__(self, pool: ActorHandle, learner: Sharded, config: Config, policy_path: str, asked: Asked) -> None:
        self._pool, self._learner, self._config, self._asked = pool, learner, config, asked
        self._policy_path = policy_path
        self._members: dict[int, str] = {}
        self._sender: Any = None

    def send(self, version: int, probe: Probe | None, patience_s: float) -> dict[str, float]:
        dtype = DTYPES[self._config.engine.dtype]
        if self._learner.rank:
            for _ in self._learner.full_tensors(dtype):
                pass
            return {}
        began = time.perf_counter()
        client = _PoolClient(self._pool, version, self._asked, patience_s)
        begun = self._pool.begin_transfer.remote(version, probe)
        client.engines = self._asked(begun, patience_s, f"the engines to expect version {version}")
        with _ended_after(patience_s):
            if client.engines != self._members:
                self._meet(client)
            self._sender.client = client
            self._sender.send_weights()
        self._asked(self._pool.end_transfer.remote(version), patience_s, f"the engines to begin with version {version}")
        seconds = time.perf_counter() - began
        num_bytes = sum(meta.dtype.itemsize * torch.Size(meta.shape).numel() for meta in self._sender.source.metadata())
        return {
            "time/engine_load_s": seconds,
            "grpo/sync_mib": num_bytes / 2**20,
            "grpo/sync_gb_per_s": num_bytes / 1e9 / seconds,
        }

    def _meet(self, client: "_PoolClient") -> None:
        from raml_ray.workers import engine_transfer

        dtype = DTYPES[self._config.engine.dtype]
        if self._sender is not None:
            self._sender.shutdown()
        client.tell("shutdown_weight_transfer_engine")
        engine = self._config.engine
        client.ranks_per_engine = engine.tensor_parallel_size * engine.pipeline_parallel_size
        source = engine_transfer.LearnerSource(
            engine_transfer.architecture(self._policy_path, dtype), lambda: self._learner.full_tensors(dtype)
        )
        with socket.socket() as free:
            free.bind(("", 0))
            port = int(free.getsockname()[1])
        self._sender = engine_transfer.sender(
            source,
            client,
            address=ray.util.get_node_ip_address(),
            port=port,
            num_engine_ranks=client.ranks_per_engine * len(client.engines),
            bucket_bytes=round(self._config.grpo.sync_bucket_mib * 2**20),
        )
        self._members = client.engines


class _PoolClient:
    """vLLM's four steps, passed on to the engines of the pool, each with a deadline."""

    ranks_per_engine = 1

    def __init__(self, pool: ActorHandle, version: int, asked: Asked, patience_s: float) -> None:
        self._pool, self._version, self._asked, self._patience_s = pool, version, asked, patience_s
        self.engines: dict[int, str] = {}
        """Who takes part: index and actor id."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        # vLLM counts an engine's ranks from its offset, and would give those of every engine the same.
        offsets = {index: place * self.ranks_per_engine for place, index in enumerate(self.engines)}
        first = init_info["rank_offset"]
        self._tell(
            "init_weight_transfer_engine",
            {index: {"init_info": init_info | {"rank_offset": first + by}} for index, by in offsets.items()},
        )

    def start_weight_update(self) -> None:
        self.tell("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self.tell("update_weights", update_info=update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.tell("finish_weight_update")

    def tell(self, step: str, **information: Any) -> None:
        """The same to all."""
        self._tell(step, dict.fromkeys(self.engines, information))

    def _tell(self, step: str, information: dict[int, dict[str, Any]]) -> None:
        ref = self._pool.transfer.remote(step, information)
        self._asked(ref, self._patience_s, f"the engines' {step} of version {self._version}")


@contextlib.contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Ends the process, with its stacks on standard error, if it is still inside by then: nothing else ends an NCCL call."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
