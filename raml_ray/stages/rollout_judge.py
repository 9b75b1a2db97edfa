"""What becomes of a step's responses: verdicts, and what else the loop has to know of a trajectory."""

import logging
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from raml_ray.config import Config
from raml_ray.records import Judgement, Question, Verdict
from raml_ray.stages import judging
from raml_ray.text import layouts, prompts
from raml_ray.workers import rollouts
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sampling import Completion, Failure, Request

logger = logging.getLogger(__name__)

JUDGED_TOGETHER = 100
"""Verdicts, of one step or several, among which a share of timeouts and errors means something."""


class RolloutJudge:
    """The judges of a rollout pool, the same as `verify`'s. One thread at a time may call."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, stop: Sequence[int]) -> None:
        """Starts the judges. `stop` are the tokens that end a response."""
        self._config, self._tokenizer, self._stop = config, tokenizer, tuple(stop)
        self._judges = judging.pool(config.verify, config.data)
        self._judges.self_test()
        self._verdicts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def close(self) -> None:
        self._judges.close()

    def judged(
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
        self.watch(judgements)
        rows = []
        for place, (answer, text, judgement) in enumerate(zip(answers, texts, judgements, strict=True)):
            question = questions[place // size]
            if isinstance(answer, Failure):
                logger.warning("question %s: %s", question.question_id, answer.reason)
                answer, verdict = Completion([], [], "stop", []), Verdict.ERROR
            else:
                # Nobody knows what a trajectory that was cut would have answered.
                verdict = Verdict.ERROR if answer.finish_reason == "cut" else judgement.verdict
            rows.append(
                Rollout(
                    question.question_id,
                    asked[place].prompt_token_ids,
                    answer.token_ids,
                    answer.logprobs,
                    answer.finish_reason,
                    answer.weight_versions,
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
        if self._config.grpo.selection != "lhat_descent":
            return None
        return rollouts.probe_of(self._tokenizer, answer.token_ids, self._stop, question.answer)

    def watch(self, judgements: Sequence[Judgement]) -> None:
        """Raises: RuntimeError if more than verify.max_failed_fraction of the last hundred or more verdicts are
        timeouts or errors: a run whose rewards nobody gives would otherwise go on and learn nothing."""
        judging.count_verdicts(judgements)
        self._verdicts.update(judgement.verdict.value for judgement in judgements)
        self._reasons.update(f"{judgement.verdict.value}:{judgement.reason}" for judgement in judgements)
        if self._verdicts.total() >= JUDGED_TOGETHER:
            judging.check_failed(self._verdicts, self._reasons, self._config.verify)
            self._verdicts.clear()
            self._reasons.clear()
