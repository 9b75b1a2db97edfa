"""One engine as an actor, asked by many at once and given new weights while it works."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray

from raml_ray import faults
from raml_ray.config import Config
from raml_ray.policy_source import on_this_node
from raml_ray.stages import meters
from raml_ray.stages.shard_sampler import engine_class
from raml_ray.workers.engine import Engine
from raml_ray.workers.engine_loop import EngineLoop, Together
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling
from raml_ray.workers.scripted_engine import ScriptedEngine
from raml_ray.workers.weights import Layout

Found = TypeVar("Found")


class Bucket(NamedTuple):
    """Some of a policy's weights in the object store, and the checksum of what was sent."""

    arrays: ray.ObjectRef
    layout: Layout
    checksum: str


class PolicyEngine:
    """An engine whose loop ends when it raises or stops making progress: every call raises EngineFailure from then on."""

    def __init__(self, policy: str, config: Config) -> None:
        """`policy` is a `policy_source.portable`."""
        faults.arm(config.drill.faults, config.drill.folder)
        policy_path = on_this_node(policy)
        self._loop: EngineLoop[Engine | ScriptedEngine] = EngineLoop(
            lambda: engine_class(config.engine)(policy_path, config.engine, seed=config.seed),
            stall_timeout_s=config.engine.stall_timeout_s,
            on_failure=lambda reason: None,
        )
        self._engine = self._loop.engine

    async def node_id(self) -> str:
        """Where it runs, by Ray's id."""
        return str(ray.get_runtime_context().get_node_id())

    async def version(self) -> int:
        """Of the weights that it has. That it answers says that the process is alive, whatever its engine does."""
        return self._engine.version

    async def generate(
        self, requests: list[Request], sampling: Sampling, together: Together | None
    ) -> list[Completion | Failure]:
        """The answers; these requests may be some of those that enter together (`EngineLoop.submit`)."""
        await self._between_steps(lambda: faults.reach("engine", 0, self._engine.version + 1))
        answers = [asyncio.wrap_future(self._loop.submit(request, sampling, together)) for request in requests]
        found = list(await asyncio.gather(*answers))
        lengths = [len(answer.token_ids) for answer in found if isinstance(answer, Completion)]
        meters.count("raml_engine_responses", len(lengths))
        meters.count("raml_engine_tokens", sum(lengths))
        return found

    async def load(self, buckets: list[Bucket], version: int, *, cut: bool) -> list[str]:
        """Take over weights between two steps, of each bucket the checksum of what arrived.

        With `cut`, what is under way is ended before; else it goes on under the new weights.
        """
        arrived = [(await bucket.arrays, bucket.layout) for bucket in buckets]

        def load() -> list[str]:
            if cut:
                self._engine.cut()
            return self._engine.load_weights(arrived, version)

        return await self._between_steps(load)

    async def transfer(self, step: str, information: dict[str, Any], version: int, *, cut: bool) -> None:
        """One step of vLLM's native weight transfer. From the start of an update to its finish no request goes on."""

        def transfer() -> None:
            assert isinstance(self._engine, Engine)
            if step == "start_weight_update" and cut:
                self._engine.cut()
            self._engine.transfer(step, information, version)

        held = {"start_weight_update": True, "finish_weight_update": False}
        await self._between_steps(transfer, holds=held.get(step))

    async def token_logprobs(self, sequences: list[list[int]]) -> list[np.ndarray]:
        return await self._between_steps(lambda: self._engine.token_logprobs(sequences))

    async def module_outputs(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        """Ends all that is under way: only one sequence may pass the modules that are watched."""

        def outputs() -> dict[str, np.ndarray]:
            self._engine.cut()
            return self._engine.module_outputs(token_ids)

        return await self._between_steps(outputs)

    async def _between_steps(self, function: Callable[[], Found], *, holds: bool | None = None) -> Found:
        return await asyncio.wrap_future(self._loop.call(function, holds=holds))
