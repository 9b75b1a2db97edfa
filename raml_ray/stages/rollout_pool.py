"""What GRPO samples from: engines outside the learners' worker group, alive through its restarts.

The pool is one actor that holds the engines, the newest weights that a learner published, and the judges.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup

from raml_ray import faults, recipes
from raml_ray.config import Config
from raml_ray.records import Judgement, Question, Verdict
from raml_ray.stages import judging
from raml_ray.stages.engine_group import Call, EngineGroup, Held
from raml_ray.stages.rollouts import stop_token_ids
from raml_ray.text import layouts, leak, paper_prompts, prompts, suffix
from raml_ray.workers import policy as policies
from raml_ray.workers import rollouts
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling
from raml_ray.workers.sync_check import Probe
from raml_ray.workers.weights import Layout

logger = logging.getLogger(__name__)

JUDGED_TOGETHER = 100
"""Verdicts, of one step or several, among which a share of timeouts and errors means something."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A step's groups: Q lists of G rollouts, and what their making took."""

    groups: list[list[Rollout]]
    generate_s: float
    judge_s: float
    engines_replaced: int
    refills: int


class RolloutPool:
    """The actor that owns the engines. Calls are answered one after the other."""

    def __init__(self, config: Config, policy_path: str, questions: list[Question], group: PlacementGroup) -> None:
        faults.arm(config.drill.faults, config.drill.folder)
        self._config = config
        self._engines = EngineGroup(config, policy_path, group)
        self._questions = questions
        self._tokenizer = policies.load_tokenizer(policy_path)
        self._stop = stop_token_ids(policy_path, self._tokenizer)
        self._sampled: tuple[int, Sampled] | None = None
        self._judges = judging.pool(config.verify, config.data)
        self._judges.self_test()
        self._verdicts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def ready(self) -> int:
        """Waits until every engine answers; the number of engines. Raises: as `EngineGroup.ask`."""
        self._engines.ready()
        return len(self._engines)

    def publish(
        self, version: int, refs: list[ray.ObjectRef], layout: Layout, checksum: str, probe: Probe | None
    ) -> float:
        """Give every engine the weights of a policy version; the seconds that it took.

        An engine that later takes the place of another is held to the probe before it samples.

        Raises: RuntimeError if other bytes arrived than were sent; as `EngineGroup.ask`.
        """
        began = time.monotonic()
        # A copy of the pool's own: the learner owns the array that it sent, and takes it along when it dies.
        flat = ray.put(np.array(ray.get(refs[0], timeout=self._config.engine.request_timeout_s)))
        self._sampled = None
        self._engines.publish(Held(version, flat, layout, checksum, probe))
        return time.monotonic() - began

    def probes(self, num: int) -> list[list[int]]:
        """Sequences that a sync can be checked on before anything has been sampled: the first questions' prompts."""
        return [
            prompts.prompt_token_ids(self._tokenizer, q.problem, self._config.prompt) for q in self._questions[:num]
        ]

    def token_logprobs(self, sequences: list[list[int]]) -> list[list[np.ndarray]]:
        """Of every engine the log-probabilities of the sequences' tokens."""
        return self._engines.each("token_logprobs", sequences)

    def module_outputs(self, token_ids: list[int], engine: int) -> dict[str, np.ndarray]:
        """What the modules of one engine put out for a sequence."""
        outputs: dict[str, np.ndarray] = self._engines.ask({engine: Call("module_outputs", (token_ids,))})[engine]
        return outputs

    def sample(self, version: int) -> Sampled:
        """The groups of a step, sampled by the policy of that version. Every learner rank is told the same.

        Raises: RuntimeError if the engines hold another version: a learner must publish before it samples.
        """
        if self._sampled is not None and self._sampled[0] == version:
            return self._sampled[1]
        if self._engines.version != version:
            raise RuntimeError(f"version {version} was asked, the engines hold {self._engines.version}")
        settings, seed, replaced = self._config.grpo, self._config.seed, self._engines.num_replaced
        num = recipes.questions_of_a_step(settings)
        asked = rollouts.questions_of_step(self._questions, version, num=num, seed=seed)
        groups, generate_s, judge_s = self._groups(asked, version, first_place=0)
        num_refills = 0
        while num_refills < recipes.of(settings).max_refills:
            missing = num - rollouts.num_teaching(groups, settings)
            more = rollouts.questions_of_refill(self._questions, asked, version, num_refills, num=missing, seed=seed)
            if not more:
                break
            num_refills += 1
            found, generated, judged = self._groups(more, version, first_place=len(asked))
            asked, groups = asked + more, groups + found
            generate_s, judge_s = generate_s + generated, judge_s + judged
        sampled = Sampled(groups, generate_s, judge_s, self._engines.num_replaced - replaced, num_refills)
        self._sampled = (version, sampled)
        return sampled

    def _groups(
        self, questions: list[Question], version: int, *, first_place: int
    ) -> tuple[list[list[Rollout]], float, float]:
        """A group of each question, judged, and the seconds of generating and of judging."""
        began = time.monotonic()
        asked = rollouts.requests_of_step(
            questions,
            [prompts.prompt_token_ids(self._tokenizer, q.problem, self._config.prompt) for q in questions],
            version,
            num=self._config.grpo.num_trajectories,
            seed=self._config.seed,
            first_place=first_place,
        )
        answers = self._generate(asked)
        faults.reach("pool", 0, version + 1)
        generated = time.monotonic()
        groups = self._judged(questions, asked, answers)
        return groups, generated - began, time.monotonic() - generated

    def _generate(self, asked: list[Request]) -> list[Completion | Failure]:
        settings, num = self._config.grpo, len(self._engines)
        sampling = Sampling(settings.temperature, 1.0, -1, settings.max_tokens, self._stop)
        shares = self._engines.ask({index: Call("generate", (asked[index::num], sampling)) for index in range(num)})
        answers: list[Completion | Failure | None] = [None] * len(asked)
        for index, share in shares.items():
            answers[index::num] = share
        assert all(answer is not None for answer in answers)
        return [answer for answer in answers if answer is not None]

    def _judged(
        self, questions: list[Question], asked: list[Request], answers: list[Completion | Failure]
    ) -> list[list[Rollout]]:
        """Q groups of G rollouts. What the engine refused has the verdict `error`: it leaves its group."""
        size = self._config.grpo.num_trajectories
        texts = [
            prompts.response_text(self._tokenizer, answer.token_ids, self._config.prompt, self._stop)
            if isinstance(answer, Completion)
            else ""
            for answer in answers
        ]
        golds = [question.answer for question in questions for _ in range(size)]
        judgements = self._judges.judge(
            list(zip(golds, texts, strict=True)), pattern=self._config.verify.answer_pattern
        )
        self._watch_judges(judgements)
        rows = []
        for place, (answer, text, judgement) in enumerate(zip(answers, texts, judgements, strict=True)):
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
                    self._is_well_formed(question, text),
                    self._probe(question, answer),
                )
            )
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _is_well_formed(self, question: Question, text: str) -> bool:
        settings = self._config.grpo
        if settings.reward != "paper":
            return True
        prompt = prompts.prompt_text(self._tokenizer, question.problem, self._config.prompt)
        return layouts.is_well_formed(text, settings.layout, prompt=prompt)

    def _probe(self, question: Question, answer: Completion) -> rollouts.Probe | None:
        """Where L-hat is to be asked for."""
        if self._config.grpo.selection != "lhat_descent" or not answer.token_ids:
            return None
        ends = answer.token_ids[-1] in self._stop
        end = leak.position_of_text(self._tokenizer, answer.token_ids, layouts.CLOSE)
        return rollouts.Probe(
            suffix.answer_suffix(self._tokenizer, paper_prompts.FORCED_ANSWER, question.answer),
            len(answer.token_ids) - ends if end is None else end,
        )

    def _watch_judges(self, judgements: Sequence[Judgement]) -> None:
        """Raises: RuntimeError if more than verify.max_failed_fraction of the last hundred or more verdicts are
        timeouts or errors: a run whose rewards nobody gives would otherwise go on and learn nothing."""
        self._verdicts.update(judgement.verdict.value for judgement in judgements)
        self._reasons.update(f"{judgement.verdict.value}:{judgement.reason}" for judgement in judgements)
        if self._verdicts.total() >= JUDGED_TOGETHER:
            judging.check_failed(self._verdicts, self._reasons, self._config.verify)
            self._verdicts.clear()
            self._reasons.clear()
