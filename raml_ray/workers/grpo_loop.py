"""Group relative policy optimisation: on-policy inner-loop paths (paper, sections 2.4 and 3.3), on one rank of any number.

What is distributed is handed in: `sample` asks the rollout engines, `publish` gives them new weights. The loop is the
algorithm: sample G trajectories per question, compare each with its group, move the policy on `num_updated` of them.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from raml_ray.formulas import advantages, losses
from raml_ray.records import Verdict, seed_of
from raml_ray.settings import GrpoConfig, TrainConfig
from raml_ray.text.batches import Batch, Example, batches, micro_batches
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sft_loop import MOST_SKIPPED_IN_A_ROW, Report, Save
from raml_ray.workers.sft_plan import share
from raml_ray.workers.sharding import Sharded

Groups = Sequence[Sequence[Rollout]]
Sample = Callable[[int], tuple[Groups, Mapping[str, float]]]
"""Takes the policy version, gives Q groups of G rollouts that it sampled, and metrics; the same on every rank."""
Publish = Callable[[int], Mapping[str, float]]
"""Gives the engines the weights of a version, proves that they arrived, and returns metrics; called on every rank."""


class Judged(NamedTuple):
    """A step's groups as tensors, (Q, G) each."""

    reward_QG: Tensor
    valid_QG: Tensor
    """False where the verdict says nothing about the answer: such a trajectory leaves its group."""
    advantage_QG: Tensor
    updated_QG: Tensor
    """The trajectories that enter the policy loss."""


def train(
    policy: Sharded,
    settings: GrpoConfig,
    limits: TrainConfig,
    *,
    seed: int,
    start_version: int,
    sample: Sample,
    publish: Publish,
    report: Report,
    save: Save,
) -> None:
    """Make the policy's versions start_version + 1 .. grpo.num_steps.

    Raises: ValueError if three updates in a row were not finite.
    """
    policy.train()
    publish(start_version)  # engines may hold what a learner published that has since been restarted
    for version in range(start_version, settings.num_steps):
        began = time.perf_counter()
        groups, sample_metrics = sample(version)
        judged = judge(groups, settings, seed=seed_of(seed, "grpo", "select", version))
        sampled = time.perf_counter()
        metrics = _group_metrics(groups, judged) | dict(sample_metrics)
        metrics |= update(policy, groups, judged, settings, limits)
        if policy.num_skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise ValueError(
                f"grpo.learning_rate={settings.learning_rate:g}: {MOST_SKIPPED_IN_A_ROW} updates in a row up to version"
                f" {version + 1} had no finite gradient; lower it, or train.grad_clip={limits.grad_clip:g}"
            )
        updated = time.perf_counter()
        metrics |= publish(version + 1)
        metrics |= {
            "time/sample_s": sampled - began,
            "time/update_s": updated - sampled,
            "time/sync_s": time.perf_counter() - updated,
        }
        report(version + 1, metrics)
        if (version + 1) % limits.checkpoint_every == 0 or version + 1 == settings.num_steps:
            save(version + 1)


def judge(groups: Groups, settings: GrpoConfig, *, seed: int) -> Judged:
    """Rewards, advantages from all valid trajectories of a group, and the `num_updated` that the loss sees."""
    reward_QG = torch.tensor([[rollout.reward for rollout in group] for group in groups])
    valid_QG = torch.tensor([[rollout.verdict.is_judgement for rollout in group] for group in groups])
    match settings.advantage:
        case "standardized":
            advantage_QG = advantages.standardized(reward_QG, valid_QG)
        case "centered":
            advantage_QG = advantages.centered(reward_QG, valid_QG)
    return Judged(reward_QG, valid_QG, advantage_QG, advantages.select_random(valid_QG, settings.num_updated, seed))


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


def update(
    policy: Sharded, groups: Groups, judged: Judged, settings: GrpoConfig, limits: TrainConfig
) -> dict[str, float]:
    """`num_minibatches` optimizer steps on the groups, each a token mean over all ranks; their metrics."""
    questions = examples(groups, judged)
    size = -(-len(questions) // settings.num_minibatches)
    minibatches = [
        list(chain.from_iterable(questions[start : start + size])) for start in range(0, len(questions), size)
    ]
    # All before the first step: the old policy is the one that the version began with.
    shares = [rescored(policy, _mine(policy, minibatch), settings, limits) for minibatch in minibatches]
    totals = dict.fromkeys(("loss", "tokens", "low", "high", "absolute", "kl", "scored"), 0.0)
    largest, norms, budget = 0.0, [], limits.max_tokens_per_micro_batch
    for minibatch, (mine, mismatch) in zip(minibatches, shares, strict=True):
        largest = max(largest, float(mismatch.largest))
        count = sum(len(example.response_token_ids) for example in minibatch)
        totals["tokens"] += count / policy.world_size
        totals["absolute"] += float(mismatch.absolute.total)
        totals["kl"] += float(mismatch.kl.total)
        totals["scored"] += float(mismatch.kl.count)
        passes = int(policy.largest(len(micro_batches(mine, budget, packing=limits.packing))))
        if not passes:  # every group agrees with itself: nothing to learn, on no rank
            continue
        for index, batch in enumerate(batches(mine, budget, passes, packing=limits.packing), start=1):
            surrogate = surrogate_of(policy, batch, settings)
            policy.accumulate(surrogate.loss.total / count, last=index == passes)
            totals["loss"] += float(surrogate.loss.total.detach())
            totals["low"] += float(surrogate.clipped_low.total)
            totals["high"] += float(surrogate.clipped_high.total)
        norms.append(policy.step(settings.learning_rate).grad_norm)
    sums = {name: policy.total(value) for name, value in totals.items()}
    tokens, scored = max(sums["tokens"], 1.0), max(sums["scored"], 1.0)
    return {
        "grpo/loss": sums["loss"] / tokens,
        "grpo/clipped_low_fraction": sums["low"] / tokens,
        "grpo/clipped_high_fraction": sums["high"] / tokens,
        "grpo/mismatch_mean": sums["absolute"] / scored,
        "grpo/mismatch_kl": sums["kl"] / scored,
        "grpo/mismatch_max": policy.largest(largest),
        "grpo/grad_norm": max(norms, default=0.0),
        "grpo/learning_rate": settings.learning_rate,
        "grpo/updated_tokens": sums["tokens"],
        "grpo/skipped_steps": float(policy.num_skipped),
    }


def _mine(policy: Sharded, minibatch: Sequence[Example]) -> list[Example]:
    """This rank's examples that have something to teach.

    Those of advantage 0 would add exactly nothing to the gradient: their tokens count in the mean, their passes are saved.
    """
    teaching = [example for example in minibatch if example.fields["advantage"][0] != 0.0]
    return share(teaching, policy.rank, policy.world_size)


def rescored(
    policy: Sharded, mine: Sequence[Example], settings: GrpoConfig, limits: TrainConfig
) -> tuple[list[Example], losses.Mismatch]:
    """The examples with the old policy's log-probabilities, and how far the engine's are from them."""
    found: list[Example] = []
    empty = torch.zeros(1, 0)
    mismatch = losses.mismatch(empty, empty, empty)
    groups = micro_batches(mine, limits.max_tokens_per_micro_batch, packing=limits.packing)
    passes, left = int(policy.largest(len(groups))), iter(groups)
    for batch in batches(mine, limits.max_tokens_per_micro_batch, passes, packing=limits.packing):
        with torch.no_grad():
            logprob_BT = policy.token_logprobs(batch, temperature=settings.temperature).cpu()
        if "rollout_logprob" in batch.fields:
            here = losses.mismatch(logprob_BT, batch.fields["rollout_logprob"], batch.response_mask_BT)
            mismatch = losses.Mismatch(
                mismatch.absolute + here.absolute, torch.maximum(mismatch.largest, here.largest), mismatch.kl + here.kl
            )
        # A weightless batch has no examples of this rank's.
        found += [_with_old(e, row_T) for e, row_T in zip(next(left, []), batch.split(logprob_BT), strict=False)]
    return found, mismatch


def _with_old(example: Example, logprob_T: Tensor) -> Example:
    old = logprob_T[len(example.prompt_token_ids) : len(example)].tolist()
    return replace(example, fields={**example.fields, "old_logprob": old})


def surrogate_of(policy: Sharded, batch: Batch, settings: GrpoConfig) -> losses.Surrogate:
    """The clipped policy loss of a micro-batch, corrected for the engine's own probabilities (TIS)."""
    batch = batch.to(policy.device)
    logprob_BT = policy.token_logprobs(batch, temperature=settings.temperature)
    if "old_logprob" not in batch.fields:  # a rank without examples passes along with the others, to no effect
        zero_BT = torch.zeros_like(logprob_BT)
        fields: Mapping[str, Tensor] = dict.fromkeys(("advantage", "old_logprob", "rollout_logprob"), zero_BT)
    else:
        fields = batch.fields
    weight_BT = None
    if settings.tis_cap:
        weight_BT = losses.truncated_importance(fields["old_logprob"], fields["rollout_logprob"], settings.tis_cap)
    return losses.clipped_surrogate(
        logprob_BT,
        fields["old_logprob"],
        fields["advantage"],
        batch.response_mask_BT,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        weight_BT=weight_BT,
    )


def _group_metrics(groups: Groups, judged: Judged) -> dict[str, float]:
    rollouts = list(_flat(groups))
    num_valid = max(int(judged.valid_QG.sum()), 1)
    answered = max(sum(1 for rollout in rollouts if rollout.token_ids), 1)
    return {
        "grpo/reward": float(torch.where(judged.valid_QG, judged.reward_QG, 0.0).sum()) / num_valid,
        "grpo/response_tokens": sum(len(rollout.token_ids) for rollout in rollouts) / answered,
        "grpo/truncated_fraction": sum(r.finish_reason == "length" for r in rollouts) / len(rollouts),
        "grpo/unreadable_fraction": sum(r.verdict is Verdict.UNREADABLE for r in rollouts) / len(rollouts),
        "grpo/unjudged": float((~judged.valid_QG).sum()),
        "grpo/zero_variance_fraction": float((judged.advantage_QG == 0).all(dim=1).float().mean()),
    }


def _flat(groups: Groups) -> Iterator[Rollout]:
    for group in groups:
        yield from group
