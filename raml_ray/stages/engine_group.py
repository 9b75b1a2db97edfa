"""The engines of a rollout pool: started, given weights, asked, and replaced when they die, raise or stop answering."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raml_ray import faults
from raml_ray.config import Config
from raml_ray.stages.shard_sampler import engine_class
from raml_ray.workers import sync_check
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling
from raml_ray.workers.sync_check import Probe
from raml_ray.workers.weights import Layout

logger = logging.getLogger(__name__)

MOST_REPLACEMENTS = 5
"""Engines replaced in one call before the step is given up."""


class Held(NamedTuple):
    """Published weights, kept in the object store by the pool so that they outlive the learner that sent them."""

    version: int
    flat: ray.ObjectRef
    layout: Layout
    checksum: str
    probe: Probe | None
    """What a replacement is held to; None if the engines have no weights that could disagree."""


class Call(NamedTuple):
    """A method of `PolicyEngine` with its arguments: `Call("generate", (requests, sampling))`."""

    method: str
    arguments: tuple[Any, ...] = ()


class Pending(NamedTuple):
    """A call under way, and what its engine must do before: they are done in this order."""

    call: Call
    arrived: ray.ObjectRef | None
    logprobs: ray.ObjectRef | None
    answer: ray.ObjectRef
    patience_s: float
    deadline: float


@dataclass(slots=True)
class Place:
    """Where an engine runs, one after the other if need be."""

    actor: ActorHandle
    held: Held | None = None
    """What this engine was given."""
    has_answered: bool = False


class PolicyEngine:
    """An engine as an actor."""

    def __init__(self, policy_path: str, config: Config) -> None:
        faults.arm(config.drill.faults, config.drill.folder)
        self._engine = engine_class(config.engine)(policy_path, config.engine, seed=config.seed)

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion | Failure]:
        faults.reach("engine", 0, self._engine.version + 1)
        return self._engine.generate(requests, sampling)

    def load(self, flat: np.ndarray, layout: Layout, version: int) -> str:
        return self._engine.load_weights(flat, layout, version)

    def token_logprobs(self, sequences: list[list[int]]) -> list[np.ndarray]:
        return self._engine.token_logprobs(sequences)

    def module_outputs(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        return self._engine.module_outputs(token_ids)

    def version(self) -> int:
        return self._engine.version


class EngineGroup:
    """grpo.num_engines engines that are asked side by side. All that is asked of them goes through `ask`."""

    def __init__(self, config: Config, policy_path: str, group: PlacementGroup) -> None:
        self._config, self._policy_path, self._group = config, policy_path, group
        self._held: Held | None = None
        self.num_replaced = 0
        self._places = [Place(self._start(index)) for index in range(config.grpo.num_engines)]
        self._bound = sync_check.bound(
            config.engine.dtype,
            config.train.dtype,
            tolerance=config.grpo.sync_tolerance,
            tolerance_k3=config.grpo.sync_tolerance_k3,
        )

    def __len__(self) -> int:
        return len(self._places)

    @property
    def version(self) -> int | None:
        """Of the weights that all engines were given last; None before the first."""
        return None if self._held is None else self._held.version

    def _start(self, index: int) -> ActorHandle:
        settings = self._config.engine
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        actor = ray.remote(PolicyEngine).options(
            num_cpus=settings.cpus_per_engine, num_gpus=settings.gpus_per_engine, scheduling_strategy=strategy
        )
        return actor.remote(self._policy_path, self._config)

    def ready(self) -> None:
        """Waits until every engine is up. Raises: as `ask`."""
        self.ask(self._each(Call("version")), patience_s=0)

    def publish(self, held: Held) -> None:
        """Give every engine these weights. Raises: as `ask`."""
        self._held = held
        self.ask(self._each(Call("version")))  # before it answers, an engine is brought up to date

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Every engine's answer to the same call. Raises: as `ask`."""
        answers = self.ask(self._each(Call(method, arguments)))
        return [answers[index] for index in range(len(self))]

    def _each(self, call: Call) -> dict[int, Call]:
        return dict.fromkeys(range(len(self)), call)

    def ask(self, calls: Mapping[int, Call], *, patience_s: float | None = None) -> dict[int, Any]:
        """One call per engine, side by side; a call whose engine fails is made again on its replacement.

        A crash may be chance. What an engine raises, and a start that does not end, are taken for chance once.

        Raises: TimeoutError or RuntimeError that says which engine was asked for what, and what became of it;
        RuntimeError for an engine whose weights are not those that were published.
        """
        patience_s = self._config.engine.request_timeout_s if patience_s is None else patience_s
        answers: dict[int, Any] = {}
        lives, has_raised = MOST_REPLACEMENTS, set[int]()
        pending = {index: self._issued(index, call, patience_s) for index, call in calls.items()}
        while pending:
            index = _next_to_look_at(pending)
            one = pending.pop(index)
            try:
                answers[index] = self._answer(index, one)
            except (RayError, TimeoutError) as error:
                comes_again = self._comes_again(index, error)
                if not lives or (comes_again and index in has_raised):
                    kind = TimeoutError if isinstance(error, TimeoutError) else RuntimeError
                    raise kind(
                        f"rollout engine {index} was asked for {one.call.method}, and given up after"
                        f" {MOST_REPLACEMENTS - lives} replacements of engines: {_why(error)}"
                    ) from error
                lives -= 1
                if comes_again:
                    has_raised.add(index)
                self._replace(index, f"{one.call.method}: {_why(error)}")
                pending[index] = self._issued(index, one.call, patience_s)
        return answers

    def _comes_again(self, index: int, error: Exception) -> bool:
        if isinstance(error, RayActorError):
            return bool(error.actor_init_failed)
        return isinstance(error, RayTaskError) or not self._places[index].has_answered

    def _replace(self, index: int, why: str) -> None:
        self.num_replaced += 1
        logger.warning("rollout engine %d replaced: %s", index, why)
        ray.kill(self._places[index].actor)
        self._places[index] = Place(self._start(index))

    def _issued(self, index: int, call: Call, patience_s: float) -> Pending:
        """The call, after the newest weights and, if the engine is a fresh one, its probe."""
        place, held = self._places[index], self._held
        arrived = logprobs = None
        if held is not None and place.held is not held:
            arrived = place.actor.load.remote(held.flat, held.layout, held.version)
            if not place.has_answered and held.probe is not None:
                logprobs = place.actor.token_logprobs.remote(held.probe.sequences)
        if not place.has_answered:
            patience_s += self._config.engine.start_timeout_s
        answer = getattr(place.actor, call.method).remote(*call.arguments)
        return Pending(call, arrived, logprobs, answer, patience_s, time.monotonic() + patience_s)

    def _answer(self, index: int, pending: Pending) -> Any:
        """What an engine answered. Raises: TimeoutError if it has not by its deadline; what it raised; as `_check`."""
        done, _ = ray.wait([pending.answer], timeout=0)
        place = self._places[index]
        if not done:
            settings = self._config.engine
            names = f"engine.request_timeout_s={settings.request_timeout_s:g}"
            if not place.has_answered:
                names = f"engine.start_timeout_s={settings.start_timeout_s:g}, {names}"
            raise TimeoutError(f"no answer within {pending.patience_s:g} s ({names})")
        refs = [ref for ref in (pending.arrived, pending.logprobs, pending.answer) if ref is not None]
        found = dict(zip(refs, ray.get(refs, timeout=self._config.engine.request_timeout_s), strict=True))
        if pending.arrived is not None:
            self._check(index, found[pending.arrived], found.get(pending.logprobs))
        place.has_answered, place.held = True, self._held
        return found[pending.answer]

    def _check(self, index: int, checksum: str, logprobs: list[np.ndarray] | None) -> None:
        """Raises: RuntimeError if other weights arrived than were sent, or an engine does not compute with them."""
        held = self._held
        assert held is not None
        if checksum != held.checksum:
            raise RuntimeError(f"engine {index} received weights {checksum}, version {held.version} is {held.checksum}")
        if logprobs is not None and held.probe is not None:
            checked = sync_check.check([logprobs], held.probe.logprobs, self._bound)
            if not checked.agree:
                raise RuntimeError(
                    f"the replacement of rollout engine {index}, given version {held.version}, and the learner are"
                    f" {self._bound.told(checked.apart)}"
                )


def _next_to_look_at(pending: Mapping[int, Pending]) -> int:
    """The first engine that has answered or died, or whose time is up."""
    by_ref = {one.answer: index for index, one in pending.items()}
    deadline = min(one.deadline for one in pending.values())
    done, _ = ray.wait(list(by_ref), num_returns=1, timeout=max(deadline - time.monotonic(), 0))
    return by_ref[done[0]] if done else min(pending, key=lambda index: pending[index].deadline)


def _why(error: Exception) -> str:
    """The line of Ray's trace that says what happened."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"
