"""What the GRPO loop is handed of a sampled trajectory, its reward, and when and how a step's trajectories are asked for."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from raml_ray import records
from raml_ray.formulas import advantages, rewards
from raml_ray.records import Question, Verdict
from raml_ray.settings import GrpoConfig
from raml_ray.text import layouts, leak, paper_prompts
from raml_ray.text.suffix import AnswerSuffix, answer_suffix
from raml_ray.workers.sampling import Request, Span


class Probe(NamedTuple):
    """Where L-hat is asked for: `Probe(AnswerSuffix([9, 4], [False, True]), num_before=17)`."""

    suffix: AnswerSuffix
    """What asks for the gold answer, and the answer."""
    num_before: int
    """Response tokens up to the end of thinking (all of them where it does not end), or up to the last one before the gold
    answer is written, where that comes first: 0 where the trajectory begins with it."""


def probe_of(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int], stop: Collection[int], answer: str
) -> Probe | None:
    """Where a sampled trajectory is asked for the gold answer; None if it has no token. `stop` are the tokens that end a
    response."""
    if not token_ids:
        return None
    end = leak.position_of_text(tokenizer, token_ids, layouts.CLOSE)
    last = len(token_ids) - (token_ids[-1] in stop) if end is None else end
    asked = answer_suffix(tokenizer, paper_prompts.FORCED_ANSWER, answer)
    return Probe(asked, leak.before(tokenizer, token_ids, answer, last))


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
    weight_versions: list[Span]
    """Which policy versions sampled which of its tokens."""
    verdict: Verdict
    is_well_formed: bool = True
    """In grpo.layout; asked with grpo.reward=paper alone."""
    probe: Probe | None = None
    """With grpo.selection=lhat_descent alone."""


Groups = Sequence[Sequence[Rollout]]


def rewards_of(groups: Groups, settings: GrpoConfig) -> tuple[Tensor, Tensor]:
    """Rewards of the answers by `grpo.reward`, and which trajectories have one, (Q, G) each.

    An unreadable answer is a wrong one; where the verdict says nothing about the answer there is no reward.
    """
    correct_QG = torch.tensor([[rollout.verdict is Verdict.CORRECT for rollout in group] for group in groups])
    valid_QG = torch.tensor([[rollout.verdict.is_judgement for rollout in group] for group in groups])
    match settings.reward:
        case "correct":
            return rewards.correctness(correct_QG), valid_QG
        case "paper":
            formed_QG = torch.tensor([[rollout.is_well_formed for rollout in group] for group in groups])
            return rewards.paper(correct_QG, formed_QG), valid_QG


def num_teaching(groups: Groups, settings: GrpoConfig) -> int:
    """Questions whose rewards differ."""
    return int(advantages.differing(*rewards_of(groups, settings)).sum())


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
    asked: Sequence[Question], prompts: Sequence[list[int]], version: int, *, num: int, seed: int, first_place: int = 0
) -> list[Request]:
    """`num` requests for every question of a step, in their order, each with a seed of its own.

    A seed is a hash of everything that makes a sample this one and not another: the place in the step, too, since at
    the border of two epochs a step may ask the same question twice. What a refill asks comes behind: from `first_place`.
    """
    return [
        Request(ids, records.seed_of(seed, "grpo", version, place, question.question_id, index))
        for place, (question, ids) in enumerate(zip(asked, prompts, strict=True), start=first_place)
        for index in range(num)
    ]


def questions_of_refill(
    questions: Sequence[Question], asked: Sequence[Question], step: int, refill: int, *, num: int, seed: int
) -> list[Question]:
    """At most `num` further questions for a step, of those that it has not asked: decided by seed, step and refill."""
    ids = {question.question_id for question in asked}
    others = [question for question in questions if question.question_id not in ids]
    return random.Random(records.seed_of(seed, "grpo", "refill", step, refill)).sample(others, min(num, len(others)))
