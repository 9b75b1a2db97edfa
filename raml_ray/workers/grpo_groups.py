"""What a step's groups teach: rewards, advantages, and the trajectories of each that the policy is moved on."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from raml_ray import recipes
from raml_ray.formulas import advantages, rewards, selection
from raml_ray.records import Verdict
from raml_ray.settings import GrpoConfig
from raml_ray.text import diversity
from raml_ray.text.batches import Example
from raml_ray.workers.rollouts import Groups, Rollout, rewards_of


class Judged(NamedTuple):
    """A step's groups as tensors, (Q, G) each."""

    reward_QG: Tensor
    valid_QG: Tensor
    """False where the verdict says nothing about the answer: such a trajectory leaves its group."""
    advantage_QG: Tensor
    updated_QG: Tensor
    """The trajectories that enter the policy loss."""


def judge(groups: Groups, settings: GrpoConfig, *, seed: int, descent_QG: Tensor | None = None) -> Judged:
    """Rewards, advantages from all valid trajectories of a group, and those that the loss sees.

    `descent_QG` is what `lhat_descent.descents` measured, for grpo.selection=lhat_descent.
    """
    recipe = recipes.of(settings)
    answer_QG, valid_QG = rewards_of(groups, settings)
    length_QG = torch.tensor([[len(rollout.token_ids) for rollout in group] for group in groups])
    reward_QG = answer_QG + rewards.overlong(length_QG, settings.max_tokens, recipe.overlong_tokens)
    match recipe.advantage:
        case "standardized":
            advantage_QG = advantages.standardized(reward_QG, valid_QG)
        case "centered":
            advantage_QG = advantages.centered(reward_QG, valid_QG)
    candidate_QG = valid_QG
    if recipe.max_refills:
        candidate_QG = valid_QG & advantages.differing(answer_QG, valid_QG)[:, None]
    updated_QG = _selected(groups, reward_QG, candidate_QG, settings, seed, descent_QG)
    return Judged(reward_QG, valid_QG, advantage_QG, updated_QG)


def _selected(
    groups: Groups, reward_QG: Tensor, valid_QG: Tensor, settings: GrpoConfig, seed: int, descent_QG: Tensor | None
) -> Tensor:
    num = settings.num_updated
    match settings.selection:
        case "random":
            return selection.at_random(valid_QG, num, seed)
        case "max_variance":
            return selection.max_variance(reward_QG, valid_QG, num)
        case "difficulty":
            return selection.by_difficulty(reward_QG, valid_QG, num, seed)
        case "diverse":
            return selection.highest(_spread(groups, valid_QG, num), valid_QG, num)
        case "lhat_descent":
            assert descent_QG is not None
            return selection.highest(descent_QG, valid_QG, num)


def _spread(groups: Groups, valid_QG: Tensor, num: int) -> Tensor:
    """The earlier a trajectory is chosen by `diversity.farthest`, the higher; (Q, G)."""
    score_QG = torch.full(valid_QG.shape, -torch.inf)
    for group, valid_G, score_G in zip(groups, valid_QG.tolist(), score_QG, strict=True):
        places = [place for place, is_valid in enumerate(valid_G) if is_valid]
        sketches = [diversity.token_sketch(group[place].token_ids) for place in places]
        for rank, chosen in enumerate(diversity.farthest(sketches, num)):
            score_G[places[chosen]] = -rank
    return score_QG


def examples(groups: Groups, judged: Judged) -> list[list[Example]]:
    """Of each question the trajectories that are updated on, with advantage and the engine's log-probability per token."""
    return [
        [
            Example(
                rollout.prompt_token_ids,
                rollout.token_ids,
                {"advantage": [float(advantage)] * len(rollout.token_ids), "rollout_logprob": rollout.logprobs},
            )
            for rollout, advantage, is_updated in zip(group, advantage_G, updated_G, strict=True)
            if is_updated and rollout.token_ids
        ]
        for group, advantage_G, updated_G in zip(groups, judged.advantage_QG, judged.updated_QG, strict=True)
    ]


def metrics(groups: Groups, judged: Judged, settings: GrpoConfig) -> dict[str, float]:
    """What the step's trajectories are like, the same on every rank."""
    rollouts = list(_flat(groups))
    valid = [rollout for rollout in rollouts if rollout.verdict.is_judgement]
    answered = [rollout for rollout in rollouts if rollout.token_ids]
    num_tokens = sum(len(rollout.token_ids) for rollout in answered)
    reward_N = judged.reward_QG[judged.valid_QG]
    correct_QG = torch.tensor([[rollout.verdict is Verdict.CORRECT for rollout in group] for group in groups])
    is_judged_Q = judged.valid_QG.any(dim=1)
    found = {
        "grpo/reward": float(reward_N.sum()) / max(len(valid), 1),
        "grpo/reward_std": float(reward_N.std(correction=0)) if len(valid) else 0.0,
        "grpo/all_correct_fraction": float(((correct_QG | ~judged.valid_QG).all(dim=1) & is_judged_Q).float().mean()),
        "grpo/none_correct_fraction": float((~correct_QG.any(dim=1) & is_judged_Q).float().mean()),
        "grpo/accuracy": sum(rollout.verdict is Verdict.CORRECT for rollout in valid) / max(len(valid), 1),
        "grpo/entropy": -sum(sum(rollout.logprobs) for rollout in answered) / max(num_tokens, 1),
        "grpo/response_tokens": num_tokens / max(len(answered), 1),
        "grpo/truncated_fraction": sum(r.finish_reason == "length" for r in rollouts) / len(rollouts),
        "grpo/unreadable_fraction": sum(r.verdict is Verdict.UNREADABLE for r in rollouts) / len(rollouts),
        "grpo/unjudged": float((~judged.valid_QG).sum()),
        "grpo/zero_variance_fraction": float((judged.advantage_QG == 0).all(dim=1).float().mean()),
        "grpo/updated_trajectories": float(judged.updated_QG.sum()),
        "grpo/questions_left_out": float((~judged.updated_QG).all(dim=1).sum()),
    }
    if settings.reward == "paper":
        found["grpo/well_formed_fraction"] = sum(r.is_well_formed for r in valid) / max(len(valid), 1)
    return found


def _flat(groups: Groups) -> Iterator[Rollout]:
    for group in groups:
        yield from group
