"""What the GRPO loop is handed of a sampled trajectory, and when and how a step's trajectories are asked for."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from raml_ray import records
from raml_ray.records import Question, Verdict
from raml_ray.workers.sampling import Request


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled trajectory of a group with its verdict."""

    question_id: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    """Response tokens as the engine sampled them, end-of-sequence included."""
    logprobs: list[float]
    """Under the distribution that the engine drew them from, nats."""
    finish_reason: str
    version: int
    """Of the policy that sampled it."""
    verdict: Verdict

    @property
    def reward(self) -> float:
        """1 for a correct answer, 0 for a wrong or an unreadable one. Meaningless where the verdict is no judgement."""
        return 1.0 if self.verdict is Verdict.CORRECT else 0.0


def questions_of_step(questions: Sequence[Question], step: int, *, num: int, seed: int) -> list[Question]:
    """The questions of a step: every epoch goes through all of them once, in an order that the seed and the epoch decide.

    A pure function of the step, so that a resumed run asks what the undisturbed one asks.
    """
    chosen: list[Question] = []
    position = step * num
    while len(chosen) < num:
        epoch, offset = divmod(position + len(chosen), len(questions))
        order = list(range(len(questions)))
        random.Random(records.seed_of(seed, "grpo", "epoch", epoch)).shuffle(order)
        chosen += [questions[index] for index in order[offset : offset + num - len(chosen)]]
    return chosen


def requests_of_step(
    asked: Sequence[Question], prompts: Sequence[list[int]], version: int, *, num: int, seed: int
) -> list[Request]:
    """`num` requests for every question of a step, in their order, each with a seed of its own.

    A seed is a hash of everything that makes a sample this one and not another: the place in the step, too, since at
    the border of two epochs a step may ask the same question twice.
    """
    return [
        Request(ids, records.seed_of(seed, "grpo", version, place, question.question_id, index))
        for place, (question, ids) in enumerate(zip(asked, prompts, strict=True))
        for index in range(num)
    ]
