"""What GRPO samples from: engines outside the learners' worker group, alive through its restarts.

The pool is one actor that holds the engines, the newest weights that a learner published, and the judges.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from raml_ray import faults, recipes
from raml_ray.config import Config
from raml_ray.policy_source import on_this_node
from raml_ray.records import Question
from raml_ray.stages import meters
from raml_ray.stages.engine_actor import Bucket
from raml_ray.stages.engine_group import EngineGroup
from raml_ray.stages.engine_places import Begun, EngineLost, Published, State
from raml_ray.stages.rollout_judge import RolloutJudge
from raml_ray.stages.rollouts import stop_token_ids
from raml_ray.text import prompts
from raml_ray.workers import policy as policies
from raml_ray.workers import rollouts
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling
from raml_ray.workers.sync_check import Probe

logger = logging.getLogger(__name__)

MOST_ENGINES_LOST = 5
"""Engines that may be lost over one group: it is asked again of another, until it is taken to be the cause."""


class Group(NamedTuple):
    """One question's judged rollouts, and when its last response and its last verdict were there (monotonic seconds)."""

    rollouts: list[Rollout]
    sampled: float
    judged: float


class Wave(NamedTuple):
    """Groups that were asked for together, from that moment on."""

    began: float
    groups: list[Group]

    @property
    def sampled(self) -> float:
        return max(group.sampled for group in self.groups)

    @property
    def judged(self) -> float:
        return max(group.judged for group in self.groups)

    @property
    def num_judged_early(self) -> int:
        """Groups that had their verdicts before the last response was there."""
        return sum(group.judged < self.sampled for group in self.groups)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A step's groups: Q lists of G rollouts, and what their making took."""

    groups: list[list[Rollout]]
    generate_s: float
    judge_s: float
    judged_early: float
    """Share of the groups that were judged while engines were still at work on others, [0, 1]."""
    engines_replaced: int
    refills: int
    """Times that further questions were asked because too many groups had nothing to teach."""
    engines: dict[str, int]
    """State -> engines in it when the step was made."""


class RolloutPool:
    """The actor that owns the engines.

    Weights of version v let it begin the steps up to v + grpo.max_staleness, so that it is never further ahead of the
    learner; nothing that was sampled is thrown away unless grpo.partial_rollouts says so. All of it runs in one event
    loop, but for judging.
    """

    def __init__(self, config: Config, policy: str, questions: list[Question], group: PlacementGroup) -> None:
        """`policy` is a `policy_source.portable`."""
        faults.arm(config.drill.faults, config.drill.folder)
        self._config = config
        self._engines = EngineGroup(config, policy, group)
        self._questions = questions
        policy_path = on_this_node(policy)
        self._tokenizer = policies.load_tokenizer(policy_path)
        self._stop = stop_token_ids(policy_path, self._tokenizer)
        self._steps: dict[int, asyncio.Task[Sampled]] = {}
        self.copying: asyncio.Task[None] | None = None
        """Of the newest weights, so that they outlive the learner that sent them."""
        self._judging = asyncio.Lock()
        self._judge = RolloutJudge(config, self._tokenizer, self._stop)

    async def ready(self) -> int:
        """Waits until every engine is up, or given up; the number of engines. Raises: RuntimeError if none is left."""
        return await self._engines.ready()

    async def states(self) -> dict[str, int]:
        """State -> engines that are in it."""
        found = {state.value: self._engines.states()[state] for state in State}
        for state, number in found.items():
            meters.show("raml_pool_engines", number, state=state)
        return found

    async def nodes(self) -> list[str]:
        """The nodes that its engines have run on, by Ray's id."""
        return sorted(self._engines.nodes)

    async def num_replaced(self) -> int:
        """Engines that took the place of others so far."""
        return self._engines.num_replaced

    async def publish(self, version: int, buckets: list[Bucket], probe: Probe | None) -> float:
        """Give every engine the weights of a policy version, and begin the steps that they allow; the seconds it took.

        What is under way meets them as grpo.partial_rollouts says; it is given up if this is not the version after the
        last, as when learners were restarted. An engine that later takes the place of another is held to the probe.

        Raises: RuntimeError if no engine is left.
        """
        await self.drained(version)
        began = time.monotonic()
        published = self._published(version, buckets, probe)
        await self._engines.publish(published)
        self._begin_steps(version)
        self.copying = asyncio.create_task(self._copied(published, buckets))
        return time.monotonic() - began

    async def _copied(self, published: Published, buckets: Sequence[Bucket]) -> None:
        """The learner owns the arrays that it sent, and takes them along when it dies. Nobody waits for the copies."""
        try:
            published.buckets = [
                bucket._replace(arrays=await asyncio.to_thread(ray.put, await bucket.arrays)) for bucket in buckets
            ]
        except RayError:
            # Where it has died already, learners start again and publish what they restored.
            logger.warning("no copy of version %d: the learner that sent it has died", published.version)

    async def begin_transfer(self, version: int, probe: Probe | None) -> dict[int, str]:
        """As `publish`, but learners send the weights themselves, to the engines that are returned: index and actor id."""
        await self.drained(version)
        return self._engines.begin_transfer(self._published(version, None, probe))

    async def transfer(self, step: str, information: dict[int, dict[str, Any]]) -> None:
        """One step of a transfer, by vLLM's name, on these engines. Raises: EngineLost."""
        await self._engines.transfer(step, information)

    async def end_transfer(self, version: int) -> None:
        """All weights have arrived: the steps that they allow begin."""
        self._engines.end_transfer()
        self._begin_steps(version)

    def _published(self, version: int, buckets: list[Bucket] | None, probe: Probe | None) -> Published:
        follows = self._follows(version)
        if not follows:
            self._forget(list(self._steps))
        return Published(version, buckets, probe, cuts=not follows or self._config.grpo.partial_rollouts == "cut")

    def _begin_steps(self, version: int) -> None:
        settings = self._config.grpo
        meters.show("raml_pool_version", version)
        for step in range(version, min(version + settings.max_staleness, settings.num_steps - 1) + 1):
            if step not in self._steps:
                self._steps[step] = asyncio.create_task(self._sampled(step))

    async def drained(self, version: int) -> None:
        """Waits, where grpo.partial_rollouts says so, until all is finished that the next version is not to meet."""
        if self._follows(version) and self._config.grpo.partial_rollouts == "wait" and self._steps:
            await asyncio.wait(self._steps.values())

    def _follows(self, version: int) -> bool:
        return self._engines.version is not None and version == self._engines.version + 1

    def _forget(self, steps: Sequence[int]) -> None:
        for step in steps:
            self._steps.pop(step).cancel()

    async def probes(self, num: int) -> list[list[int]]:
        """Sequences that a sync can be checked on before anything has been sampled: the first questions' prompts."""
        return [
            prompts.prompt_token_ids(self._tokenizer, q.problem, self._config.prompt) for q in self._questions[:num]
        ]

    async def token_logprobs(self, sequences: list[list[int]]) -> dict[int, list[np.ndarray]]:
        """Of every healthy engine, by index, the log-probabilities of the sequences' tokens."""
        return await self._engines.each("token_logprobs", sequences)

    async def module_outputs(self, token_ids: list[int]) -> dict[int, dict[str, np.ndarray]]:
        """What the modules of every healthy engine put out for a sequence. What is under way is given up for it."""
        self._forget(list(self._steps))
        return await self._engines.each("module_outputs", token_ids)

    async def sample(self, version: int) -> Sampled:
        """The groups that the policy of this version is to be updated on. Every learner rank is told the same.

        Raises: RuntimeError if the engines hold another version: a learner must publish before it samples.
        """
        if self._engines.version != version or version not in self._steps:
            raise RuntimeError(f"version {version} was asked, the engines hold {self._engines.version}")
        self._forget([step for step in self._steps if step < version])
        return await asyncio.shield(self._steps[version])

    async def _sampled(self, step: int) -> Sampled:
        settings, seed, replaced = self._config.grpo, self._config.seed, self._engines.num_replaced
        num = recipes.questions_of_a_step(settings)
        asked = rollouts.questions_of_step(self._questions, step, num=num, seed=seed)
        waves = [await self._wave(asked, step, first_place=0)]
        while len(waves) <= recipes.of(settings).max_refills:
            missing = num - rollouts.num_teaching([group.rollouts for wave in waves for group in wave.groups], settings)
            more = rollouts.questions_of_refill(self._questions, asked, step, len(waves) - 1, num=missing, seed=seed)
            if not more:
                break
            waves.append(await self._wave(more, step, first_place=len(asked)))
            asked = asked + more
        groups = [group.rollouts for wave in waves for group in wave.groups]
        return Sampled(
            groups,
            generate_s=sum(wave.sampled - wave.began for wave in waves),
            judge_s=sum(wave.judged - wave.sampled for wave in waves),
            judged_early=sum(wave.num_judged_early for wave in waves) / len(groups),
            engines_replaced=self._engines.num_replaced - replaced,
            refills=len(waves) - 1,
            engines=await self.states(),
        )

    async def _wave(self, questions: list[Question], step: int, *, first_place: int) -> Wave:
        """A judged group of each question."""
        began, size = time.monotonic(), self._config.grpo.num_trajectories
        requests = rollouts.requests_of_step(
            questions,
            [prompts.prompt_token_ids(self._tokenizer, q.problem, self._config.prompt) for q in questions],
            step,
            num=size,
            seed=self._config.seed,
            first_place=first_place,
        )
        firsts = self._engines.begun(len(questions), size, name=began)
        groups = await asyncio.gather(
            *(
                self._group(question, requests[index * size : (index + 1) * size], step, first)
                for index, (question, first) in enumerate(zip(questions, firsts, strict=True))
            )
        )
        return Wave(began, groups)

    async def _group(self, question: Question, requests: list[Request], step: int, first: Begun | None) -> Group:
        """One question's judged rollouts. Judging goes on beside the engines' work."""
        answers = await self._answers(question, requests, first)
        faults.reach("pool", 0, step + 1)
        sampled = time.monotonic()
        async with self._judging:
            groups = await asyncio.to_thread(self._judge.judged, [question], requests, answers)
        return Group(groups[0], sampled, time.monotonic())

    async def _answers(
        self, question: Question, requests: list[Request], first: Begun | None
    ) -> list[Completion | Failure]:
        """Raises: RuntimeError if MOST_ENGINES_LOST engines were lost over them, or none is left."""
        settings, num_lost = self._config.grpo, 0
        sampling = Sampling(settings.temperature, 1.0, -1, settings.max_tokens, self._stop)
        answers: dict[int, Completion | Failure] = {}
        while missing := [index for index in range(len(requests)) if index not in answers]:
            begun, first = first or Begun(await self._engines.place_with_room(len(missing))), None
            try:
                found = await self._engines.generate(begun, [requests[index] for index in missing], sampling)
            except EngineLost as error:
                num_lost += 1
                if num_lost == MOST_ENGINES_LOST:
                    raise RuntimeError(
                        f"{num_lost} engines were lost over the trajectories of question {question.question_id}, the"
                        f" last of: {error}"
                    ) from error
                continue
            for index, answer in zip(missing, found, strict=True):
                # What was cut before its first token is asked again, of the new weights.
                if isinstance(answer, Failure) or answer.token_ids:
                    answers[index] = answer
        return [answers[index] for index in range(len(requests))]
