"""The rollout engines of GRPO: outside the learners' worker group, alive through its restarts.

The pool is one actor that holds the engines, the newest weights that a learner published, and the judges. An engine
that dies or stops answering is replaced, given the newest weights, and asked again for what it owed.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raml_ray.config import Config
from raml_ray.records import Question, Verdict
from raml_ray.stages import judging
from raml_ray.stages.rollouts import engine_class, stop_token_ids
from raml_ray.text import prompts
from raml_ray.workers import policy as policies
from raml_ray.workers import rollouts
from raml_ray.workers.engine import Completion, Failure, Request, Sampling
from raml_ray.workers.rollouts import Rollout
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


@dataclass(frozen=True, slots=True)
class Sampled:
    """A step's groups: Q lists of G rollouts, and what their making took."""

    groups: list[list[Rollout]]
    generate_s: float
    judge_s: float
    engines_replaced: int


class PolicyEngine:
    """An engine as an actor."""

    def __init__(self, policy_path: str, config: Config) -> None:
        self._engine = engine_class(config.engine)(policy_path, config.engine, seed=config.seed)

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion | Failure]:
        return self._engine.generate(requests, sampling)

    def load(self, flat: np.ndarray, layout: Layout, version: int) -> str:
        return self._engine.load_weights(flat, layout, version)

    def token_logprobs(self, sequences: list[list[int]]) -> list[np.ndarray]:
        return self._engine.token_logprobs(sequences)

    def module_outputs(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        return self._engine.module_outputs(token_ids)

    def version(self) -> int:
        return self._engine.version


class RolloutPool:
    """The actor that owns the engines. Calls are answered one after the other."""

    def __init__(self, config: Config, policy_path: str, questions: list[Question], group: PlacementGroup) -> None:
        self._config, self._policy_path, self._group = config, policy_path, group
        self._questions = questions
        self._tokenizer = policies.load_tokenizer(policy_path)
        self._stop = stop_token_ids(policy_path, self._tokenizer)
        self._held: Held | None = None
        self._sampled: tuple[int, Sampled] | None = None
        self._replaced = 0
        self._engines = [self._start(index) for index in range(config.grpo.num_engines)]
        self._judges = judging.pool(config.verify)
        self._judges.self_test()

    def ready(self) -> int:
        """Waits until every engine answers; the number of engines. Raises: TimeoutError that names engine.start_timeout_s."""
        self._all("version", timeout=self._config.engine.start_timeout_s, waiting_for="start")
        return len(self._engines)

    def _start(self, index: int) -> ActorHandle:
        settings = self._config.engine
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        actor = ray.remote(PolicyEngine).options(
            num_cpus=settings.cpus_per_engine, num_gpus=settings.gpus_per_engine, scheduling_strategy=strategy
        )
        return actor.remote(self._policy_path, self._config)

    def _all(self, method: str, *arguments: Any, timeout: float, waiting_for: str) -> list[Any]:
        """Every engine's answer. Raises: TimeoutError that says which engines were waited for, and for what."""
        refs = [engine.__getattr__(method).remote(*arguments) for engine in self._engines]
        try:
            return list(ray.get(refs, timeout=timeout))
        except GetTimeoutError:
            _, late = ray.wait(refs, num_returns=len(refs), timeout=0)
            names = [index for index, ref in enumerate(refs) if ref in late]
            raise TimeoutError(f"engines {names} did not {waiting_for} within {timeout:g} s") from None

    def _replace(self, index: int, why: str) -> None:
        """A fresh engine in the place of one that is dead or stuck, with the newest weights."""
        self._replaced += 1
        logger.warning("rollout engine %d replaced: %s", index, why)
        ray.kill(self._engines[index])
        self._engines[index] = self._start(index)
        if self._held is not None:
            held = self._held
            arrived = ray.get(
                self._engines[index].load.remote(held.flat, held.layout, held.version),
                timeout=self._config.engine.start_timeout_s,
            )
            _check_arrived(index, arrived, held)

    def publish(self, version: int, refs: list[ray.ObjectRef], layout: Layout, checksum: str) -> float:
        """Give every engine the weights of a policy version; the seconds that it took.

        Raises: RuntimeError if other bytes arrived than were sent.
        """
        began = time.monotonic()
        # A copy of the pool's own: the learner owns the array that it sent, and takes it along when it dies.
        flat = ray.put(np.array(ray.get(refs[0], timeout=self._config.engine.request_timeout_s)))
        self._held, self._sampled = Held(version, flat, layout, checksum), None
        answers = self._ask([("load", (flat, layout, version))] * len(self._engines))
        for index, arrived in enumerate(answers):
            _check_arrived(index, arrived, self._held)
        return time.monotonic() - began

    def _ask(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """One call per engine, side by side; a call whose engine fails is made again on its replacement."""
        answers: dict[int, Any] = {}
        budget = MOST_REPLACEMENTS
        while len(answers) < len(calls):
            refs = {
                index: self._engines[index].__getattr__(method).remote(*arguments)
                for index, (method, arguments) in enumerate(calls)
                if index not in answers
            }
            deadline = time.monotonic() + self._config.engine.request_timeout_s
            for index, ref in refs.items():
                try:
                    answers[index] = ray.get(ref, timeout=max(deadline - time.monotonic(), 0.1))
                except (RayActorError, GetTimeoutError) as error:
                    if budget == 0:
                        raise RuntimeError(f"{MOST_REPLACEMENTS} rollout engines in a row died or hung") from error
                    budget -= 1
                    self._replace(index, type(error).__name__)
        return [answers[index] for index in range(len(calls))]

    def probes(self, num: int) -> list[list[int]]:
        """Sequences that a sync can be checked on before anything has been sampled: the first questions' prompts."""
        return [
            prompts.prompt_token_ids(self._tokenizer, q.problem, self._config.prompt) for q in self._questions[:num]
        ]

    def token_logprobs(self, sequences: list[list[int]]) -> list[list[np.ndarray]]:
        """Of every engine the log-probabilities of the sequences' tokens."""
        return self._ask([("token_logprobs", (sequences,))] * len(self._engines))

    def module_outputs(self, token_ids: list[int], engine: int) -> dict[str, np.ndarray]:
        """What the modules of one engine put out for a sequence."""
        outputs: dict[str, np.ndarray] = ray.get(
            self._engines[engine].module_outputs.remote(token_ids), timeout=self._config.engine.request_timeout_s
        )
        return outputs

    def sample(self, version: int) -> Sampled:
        """The groups of a step, sampled by the policy of that version. Every learner rank is told the same.

        Raises: RuntimeError if the engines hold another version: a learner must publish before it samples.
        """
        if self._sampled is not None and self._sampled[0] == version:
            return self._sampled[1]
        if self._held is None or self._held.version != version:
            raise RuntimeError(f"version {version} was asked, the engines hold {self._held and self._held.version}")
        settings, began, replaced = self._config.grpo, time.monotonic(), self._replaced
        questions = rollouts.questions_of_step(
            self._questions, version, num=settings.questions_per_step, seed=self._config.seed
        )
        asked = [
            rollouts.request(question, ids, version=version, index=index, seed=self._config.seed)
            for question in questions
            for ids in [prompts.prompt_token_ids(self._tokenizer, question.problem, self._config.prompt)]
            for index in range(settings.num_trajectories)
        ]
        answers = self._generate(asked)
        generated = time.monotonic()
        groups = self._judged(questions, asked, answers)
        sampled = Sampled(groups, generated - began, time.monotonic() - generated, self._replaced - replaced)
        self._sampled = (version, sampled)
        return sampled

    def _generate(self, asked: list[Request]) -> list[Completion | Failure]:
        settings, num = self._config.grpo, len(self._engines)
        sampling = Sampling(settings.temperature, 1.0, -1, settings.max_tokens, self._stop)
        shares = self._ask([("generate", (asked[index::num], sampling)) for index in range(num)])
        answers: list[Completion | Failure | None] = [None] * len(asked)
        for index, share in enumerate(shares):
            answers[index::num] = share
        assert all(answer is not None for answer in answers)
        return [answer for answer in answers if answer is not None]

    def _judged(
        self, questions: list[Question], asked: list[Request], answers: list[Completion | Failure]
    ) -> list[list[Rollout]]:
        """Q groups of G rollouts. What the engine refused has the verdict `error`: it leaves its group."""
        size = self._config.grpo.num_trajectories
        texts = [
            prompts.response_text(self._tokenizer, answer.token_ids, self._config.prompt)
            if isinstance(answer, Completion)
            else ""
            for answer in answers
        ]
        golds = [question.answer for question in questions for _ in range(size)]
        judgements = self._judges.judge(
            list(zip(golds, texts, strict=True)), pattern=self._config.verify.answer_pattern
        )
        rows = []
        for place, (answer, judgement) in enumerate(zip(answers, judgements, strict=True)):
            question = questions[place // size]
            if isinstance(answer, Failure):
                logger.warning("question %s: %s", question.question_id, answer.reason)
                answer, verdict = Completion([], [], "stop", 0), Verdict.ERROR
            else:
                verdict = judgement.verdict
            rows.append(
                Rollout(
                    question.question_id,
                    asked[place].prompt_token_ids,
                    answer.token_ids,
                    answer.logprobs,
                    answer.finish_reason,
                    answer.version,
                    verdict,
                )
            )
        return [rows[start : start + size] for start in range(0, len(rows), size)]


def _check_arrived(index: int, arrived: str, held: Held) -> None:
    if arrived != held.checksum:
        raise RuntimeError(f"engine {index} received weights {arrived}, version {held.version} is {held.checksum}")
