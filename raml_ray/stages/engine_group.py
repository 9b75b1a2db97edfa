"""The engines of a rollout pool: started, watched, given weights, and replaced when they die, raise or stop answering."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raml_ray.config import Config
from raml_ray.stages import engine_places
from raml_ray.stages.engine_actor import PolicyEngine
from raml_ray.stages.engine_places import Begun, EngineLost, Place, Published, State
from raml_ray.workers import sync_check
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

SIGNS_OF_LIFE = 4
"""So often within engine.request_timeout_s an engine is asked whether it is alive."""


class EngineGroup:
    """grpo.num_engines engines side by side. It lives in one event loop, and starts engines once that runs."""

    def __init__(self, config: Config, policy: str, group: PlacementGroup) -> None:
        self._config, self._policy, self._group = config, policy, group
        self._published: Published | None = None
        self._places: list[Place] = []
        self._news = asyncio.Event()
        """Set, and exchanged for another, whenever a place has changed."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_replaced = 0
        self.nodes: set[str] = set()
        """That engines have come up on, by Ray's id."""
        self._bound = sync_check.bound(
            config.engine.dtype,
            config.train.dtype,
            tolerance=config.grpo.sync_tolerance,
            tolerance_k3=config.grpo.sync_tolerance_k3,
        )

    @property
    def version(self) -> int | None:
        """Of the weights that were published last; None before the first."""
        return None if self._published is None else self._published.version

    def states(self) -> Counter[State]:
        return Counter(place.state for place in self._places)

    async def ready(self) -> int:
        """Starts the engines, waits until each is up or given up, and returns how many are up.

        Raises: RuntimeError if none is left.
        """
        if not self._places:
            self._places = [Place(index) for index in range(self._config.grpo.num_engines)]
            for place in self._places:
                self._spawn(self._live(place))

        def num_up() -> int | None:
            states = self.states()
            return None if states[State.DEAD] else len(self._places) - states[State.RETIRED] or None

        return await self._until(num_up)

    async def publish(self, published: Published) -> None:
        """Give the engines that are up these weights, others when they come up. Raises: RuntimeError if none is left."""
        self._published = published
        up = [place for place in self._places if place.state in (State.HEALTHY, State.STALE)]
        for place in up:
            place.state = State.STALE
        await asyncio.gather(*(self._updated(place) for place in up))
        await self._until(lambda: self.states()[State.HEALTHY] or None)

    def begin_transfer(self, published: Published) -> dict[int, str]:
        """From now on learners send these weights themselves: to the engines that are returned, index and actor id."""
        self._published = published
        up = [place for place in self._places if place.state in (State.HEALTHY, State.STALE)]
        for place in up:
            place.state, place.in_transfer = State.STALE, True
        return {place.index: place.actor._actor_id.hex() for place in up if place.actor}

    async def transfer(self, step: str, information: Mapping[int, dict[str, Any]]) -> None:
        """One step of a transfer, on all engines that take part.

        Raises: EngineLost if one of them is lost over it: a transfer is of all or of none.
        """
        published, timeout_s = self._published, self._config.engine.request_timeout_s
        assert published is not None
        asked = [(self._places[index], step, details, published.version) for index, details in information.items()]
        await asyncio.gather(
            *(self._ask(place, "transfer", *told, cut=published.cuts, timeout_s=timeout_s) for place, *told in asked)
        )

    def end_transfer(self) -> None:
        """The engines that took part hold what was published."""
        for place in self._places:
            if place.in_transfer and place.actor:
                place.held, place.state = self._published, State.HEALTHY
            place.in_transfer = False
        self._tell()

    async def place_with_room(self, num: int) -> Place:
        """The healthy engine with the fewest requests under way that has room for so many more.

        Raises: RuntimeError if no engine is left.
        """
        most = self._config.engine.max_num_seqs

        def found() -> Place | None:
            free = [
                place
                for place in self._places
                if place.state is State.HEALTHY and (not place.num_under_way or place.num_under_way + num <= most)
            ]
            return min(free, key=lambda place: place.num_under_way, default=None)

        return await self._until(found)

    def begun(self, num_groups: int, size: int, name: Hashable) -> list[Begun | None]:
        """As `engine_places.begun`; nowhere where versions are sampled ahead: engines are at work on others then."""
        most = 0 if self._config.grpo.max_staleness else self._config.engine.max_num_seqs
        return engine_places.begun(self._places, num_groups, size, most, name)

    async def generate(self, begun: Begun, requests: list[Request], sampling: Sampling) -> list[Completion | Failure]:
        """Raises: EngineLost if the engine dies, raises, or makes no progress for engine.stall_timeout_s."""
        place = begun.place
        place.num_under_way += len(requests)
        try:
            answers: list[Completion | Failure] = await self._ask(place, "generate", requests, sampling, begun.together)
        finally:
            place.num_under_way -= len(requests)
            self._tell()
        place.failures = 0
        return answers

    async def each(self, method: str, *arguments: Any) -> dict[int, Any]:
        """The answers of the healthy engines, by index; of at least one. Raises: RuntimeError if none is left."""
        while True:
            await self._until(lambda: self.states()[State.HEALTHY] or None)
            places = [place for place in self._places if place.state is State.HEALTHY]
            timeout_s = self._config.engine.request_timeout_s
            found = await asyncio.gather(
                *(self._ask(place, method, *arguments, timeout_s=timeout_s) for place in places),
                return_exceptions=True,
            )
            answers = {}
            for place, answer in zip(places, found, strict=True):
                if not isinstance(answer, BaseException):
                    answers[place.index] = answer
                elif not isinstance(answer, EngineLost):
                    raise answer
            if answers:
                return answers

    async def _until(self, found: Callable[[], Found | None]) -> Found:
        """What the function finds, as soon as it finds something. Raises: RuntimeError if no engine is left."""
        while (value := found()) is None:
            news = self._news
            if self._places and all(place.state is State.RETIRED for place in self._places):
                told = "; ".join(f"engine {place.index}: {place.why}" for place in self._places)
                raise RuntimeError(
                    f"no rollout engine is left, each failed {self._config.grpo.max_engine_failures + 1} times in a row"
                    f" (grpo.max_engine_failures), the last time of: {told}"
                )
            if self._needs_learners():
                raise RuntimeError(
                    "every rollout engine was replaced since the last sync, and grpo.weight_sync=nccl gives a replacement"
                    " its weights with the next one: learners have to start again"
                )
            await news.wait()
        return value

    def _needs_learners(self) -> bool:
        """Whether nothing but another transfer can make an engine healthy."""
        if self._published is None or self._published.buckets is not None:
            return False
        others = [place for place in self._places if place.state is not State.RETIRED]
        return all(place.state is State.STALE and not place.in_transfer for place in others)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself would let go of it
        task.add_done_callback(self._tasks.discard)

    async def _live(self, place: Place) -> None:
        """The life of one engine: started, brought up to date, and asked for signs of life until it is lost."""
        settings = self._config.engine
        place.is_replacement = self._published is not None
        place.actor = actor = self._start(place.index)
        with contextlib.suppress(EngineLost):
            await self._ask(place, "version", timeout_s=settings.start_timeout_s, setting="start_timeout_s")
            self.nodes.add(await self._ask(place, "node_id", timeout_s=settings.request_timeout_s))
            place.state = State.STALE
            self._tell()
            await self._update(place)
            while place.actor is actor:
                await asyncio.sleep(settings.request_timeout_s / SIGNS_OF_LIFE)
                if place.actor is actor:
                    await self._ask(place, "version", timeout_s=settings.request_timeout_s)

    def _start(self, index: int) -> ActorHandle:
        settings = self._config.engine
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        actor = ray.remote(PolicyEngine).options(
            num_cpus=settings.cpus_per_engine, num_gpus=settings.gpus_per_engine, scheduling_strategy=strategy
        )
        return actor.remote(self._policy, self._config)

    async def _updated(self, place: Place) -> None:
        with contextlib.suppress(EngineLost):
            await self._update(place)

    async def _update(self, place: Place) -> None:
        """Bring a place's engine to the newest weights. Raises: EngineLost if it does not take them, or not rightly."""
        async with place.updating:
            while place.actor and (published := self._published) and place.held is not published:
                if published.buckets is None:  # the learners' next transfer finds it
                    break
                actor, timeout_s = place.actor, self._config.engine.request_timeout_s
                checksums = await self._ask(
                    place, "load", published.buckets, published.version, cut=published.cuts, timeout_s=timeout_s
                )
                logprobs = None
                if place.is_replacement and place.held is None and published.probe is not None:
                    sequences = published.probe.sequences
                    logprobs = await self._ask(place, "token_logprobs", sequences, timeout_s=timeout_s)
                if why := self._wrong(published, checksums, logprobs):
                    self._lose(place, actor, why)
                    raise EngineLost(why)
                place.held = published
            if place.actor and place.held and place.held is self._published:
                place.state = State.HEALTHY
        self._tell()

    def _wrong(self, published: Published, checksums: list[str], logprobs: list[np.ndarray] | None) -> str:
        """What is wrong with an engine that was given weights; nothing if it holds them and computes with them."""
        if checksums != [bucket.checksum for bucket in published.buckets or ()]:
            return f"other weights arrived than version {published.version} consists of"
        if logprobs is not None and published.probe is not None:
            checked = sync_check.check([logprobs], published.probe.logprobs, self._bound)
            if not checked.agree:
                told = self._bound.told(checked.apart)
                return f"a replacement, given version {published.version}, and the learner are {told}"
        return ""

    async def _ask(
        self,
        place: Place,
        method: str,
        *arguments: Any,
        timeout_s: float | None = None,
        setting: str = "request_timeout_s",
        **named: Any,
    ) -> Any:
        """An engine's answer. Raises: EngineLost if it dies, raises, or has not answered within timeout_s seconds."""
        actor = place.actor
        if actor is None:
            raise EngineLost(f"engine {place.index} is gone")
        try:
            return await asyncio.wait_for(getattr(actor, method).remote(*arguments, **named), timeout_s)
        except TimeoutError as error:
            why = f"{method}: no answer within engine.{setting}={timeout_s:g} s"
            self._lose(place, actor, why)
            raise EngineLost(why) from error
        except RayError as error:
            why = f"{method}: {engine_places.told(error)}"
            self._lose(place, actor, why)
            raise EngineLost(why) from error

    def _lose(self, place: Place, actor: ActorHandle, why: str) -> None:
        """End an engine; another takes its place, unless too many have failed there in a row."""
        if place.actor is not actor:  # its loss has been told already
            return
        ray.kill(actor)
        place.actor, place.held, place.in_transfer = None, None, False
        place.failures, place.why = place.failures + 1, why
        if place.failures > self._config.grpo.max_engine_failures:
            place.state = State.RETIRED
            logger.error("rollout engine %d retired after %d failures in a row: %s", place.index, place.failures, why)
        else:
            place.state = State.DEAD
            self.num_replaced += 1
            logger.warning("rollout engine %d replaced: %s", place.index, why)
            self._spawn(self._live(place))
        self._tell()
