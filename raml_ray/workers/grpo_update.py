"""The optimizer steps of one policy version: minibatches, the old policy's log-probabilities, the loss and its gradient."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from raml_ray import faults, recipes
from raml_ray.formulas import losses, off_policy, policy_losses, regularizers
from raml_ray.settings import GrpoConfig, TrainConfig
from raml_ray.text.batches import Batch, Example, batches, micro_batches
from raml_ray.workers.grpo_groups import Judged, examples
from raml_ray.workers.rollouts import Groups
from raml_ray.workers.sft_plan import share
from raml_ray.workers.sharding import Sharded

Keep = Callable[[Sequence[Example], Mapping[str, float]], None]
"""Takes this rank's share of a batch whose step was left out, and what was not finite: loss and gradient norm."""


def update(
    policy: Sharded,
    groups: Groups,
    judged: Judged,
    settings: GrpoConfig,
    limits: TrainConfig,
    *,
    reference: Sharded | None = None,
    keep: Keep | None = None,
) -> dict[str, float]:
    """`num_minibatches` optimizer steps on the groups, each a mean over all ranks' tokens or sequences; their metrics."""
    minibatches = _minibatches(examples(groups, judged), settings.num_minibatches)
    frozen = {"ref_logprob": reference} if reference is not None else {}
    began = time.perf_counter()
    # All before the first step: the old policy is the one that the version began with. The first step's own passes find
    # what that one says of its minibatch.
    shares = [
        rescored(frozen | ({"old_logprob": policy} if place else {}), _mine(policy, each, settings), settings, limits)
        for place, each in enumerate(minibatches)
    ]
    logprobs_s = time.perf_counter() - began
    totals = dict.fromkeys(("count", "tokens", "absolute", "kl", "moved", "scored"), 0.0)
    sums: dict[str, float] = {}
    largest, norms, num_empty = 0.0, [], settings.num_minibatches - len(minibatches)
    for minibatch, mine in zip(minibatches, shares, strict=True):
        count = denominator(minibatch, settings)
        found = accumulate(policy, mine, count, settings, limits)
        if found is None:  # every group agrees with itself: nothing to learn, on no rank
            num_empty += 1
        else:
            largest = max(largest, found.pop("largest"))
            for name in ("absolute", "kl", "moved", "scored"):
                totals[name] += found.pop(name)
            done = policy.step(settings.learning_rate)
            if done.skipped:
                if keep is not None:
                    keep(mine, {"loss": found["loss"] / count, "grad_norm": done.grad_norm})
                continue
            norms.append(done.grad_norm)
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        totals["count"] += count
        totals["tokens"] += sum(len(example.response_token_ids) for example in minibatch)
    tokens, scored = max(totals["tokens"], 1.0), max(totals["scored"], 1.0)
    metrics = {
        "grpo/loss": sums.get("loss", 0.0) / max(totals["count"], 1.0),
        "grpo/clipped_low_fraction": sums.get("low", 0.0) / tokens,
        "grpo/clipped_high_fraction": sums.get("high", 0.0) / tokens,
        "grpo/corrected_fraction": sums.get("corrected", 0.0) / tokens,
        "grpo/approx_kl": totals["moved"] / scored,
        "grpo/mismatch_mean": totals["absolute"] / scored,
        "grpo/mismatch_kl": totals["kl"] / scored,
        "grpo/mismatch_max": largest,
        "grpo/grad_norm": max(norms, default=0.0),
        "grpo/learning_rate": settings.learning_rate,
        "grpo/updated_tokens": totals["tokens"],
        "grpo/empty_minibatches": float(num_empty),
        "grpo/skipped_steps": float(policy.updates.skipped),
        "time/logprobs_s": logprobs_s,
    }
    return metrics | ({"grpo/kl": sums.get("ref_kl", 0.0) / tokens} if settings.kl_coefficient else {})


def _minibatches(questions: Sequence[Sequence[Example]], num: int) -> list[list[Example]]:
    """The questions that have examples, in as many minibatches as asked for or as there are questions."""
    filled = [question for question in questions if question]
    size = max(1, -(-len(filled) // num))
    return [list(chain.from_iterable(filled[start : start + size])) for start in range(0, len(filled), size)]


def denominator(minibatch: Sequence[Example], settings: GrpoConfig) -> int:
    """What the minibatch's loss is divided by, over all ranks."""
    lengths = [len(example.response_token_ids) for example in minibatch]
    return losses.count(lengths, recipes.of(settings).aggregation, max_tokens=settings.max_tokens)


def _mine(policy: Sharded, minibatch: Sequence[Example], settings: GrpoConfig) -> list[Example]:
    """This rank's examples that have something to teach.

    Without divergence or entropy in the loss those of advantage 0 would add exactly nothing to the gradient: their
    tokens count in the mean, their passes are saved.
    """
    is_regularized = settings.kl_coefficient or settings.entropy_coefficient
    teaching = [example for example in minibatch if is_regularized or example.fields["advantage"][0] != 0.0]
    return share(teaching, policy.rank, policy.world_size)


def rescored(
    policies: Mapping[str, Sharded], mine: Sequence[Example], settings: GrpoConfig, limits: TrainConfig
) -> list[Example]:
    """The examples with the log-probabilities that these policies give them, by the name of the field."""
    if not policies:
        return list(mine)
    found: list[Example] = []
    groups = micro_batches(mine, limits.max_tokens_per_micro_batch, packing=limits.packing)
    passes, left = int(next(iter(policies.values())).largest(len(groups))), iter(groups)
    for batch in batches(mine, limits.max_tokens_per_micro_batch, passes, packing=limits.packing):
        with torch.no_grad():
            rows = {
                name: batch.split(policy.token_logprobs(batch, temperature=settings.temperature).cpu())
                for name, policy in policies.items()
            }
        # A weightless batch has no examples of this rank's.
        found += [
            _with(example, {name: rows_[place] for name, rows_ in rows.items()})
            for place, example in enumerate(next(left, []))
        ]
    return found


def _with(example: Example, logprobs: Mapping[str, Tensor]) -> Example:
    fields = {name: row_T[len(example.prompt_token_ids) : len(example)].tolist() for name, row_T in logprobs.items()}
    return replace(example, fields={**example.fields, **fields})


def accumulate(
    policy: Sharded, mine: Sequence[Example], count: float, settings: GrpoConfig, limits: TrainConfig
) -> dict[str, float] | None:
    """Add the gradient of this rank's share of a loss that is divided by `count`; what it sums up to over all ranks, and
    the `largest` mismatch of a token.

    None, and no pass, if no rank has an example.
    """
    budget = limits.max_tokens_per_micro_batch
    passes = int(policy.largest(len(micro_batches(mine, budget, packing=limits.packing))))
    if not passes:
        return None
    zero = torch.zeros((), dtype=torch.float64, device=policy.device)
    sums: dict[str, Tensor] = {}
    largest = zero
    for index, batch in enumerate(batches(mine, budget, passes, packing=limits.packing), start=1):
        loss, mismatch, counted = policy_loss(policy, batch, settings)
        policy.accumulate(losses.guarded(loss.total / count * faults.factor()), last=index == passes)
        found = counted | {
            "loss": loss.total.detach(),
            "absolute": mismatch.absolute.total,
            "kl": mismatch.kl.total,
            "scored": mismatch.kl.count,
        }
        # Read when all passes are under way: a device that is asked has to finish first.
        sums = {name: sums.get(name, zero) + value.double() for name, value in found.items()}
        largest = torch.maximum(largest, mismatch.largest.double())
    totals = {name: policy.total(float(value)) for name, value in sums.items()}
    return totals | {"largest": policy.largest(float(largest))}


def policy_loss(
    policy: Sharded, batch: Batch, settings: GrpoConfig
) -> tuple[losses.Part, off_policy.Mismatch, dict[str, Tensor]]:
    """The loss of a micro-batch, how far the engine is from the old policy, and sums over tokens of what is logged.

    A batch without the old policy's log-probabilities takes this policy for the old one: every ratio is 1.
    """
    batch = batch.to(policy.device)
    recipe, mask_BT = recipes.of(settings), batch.response_mask_BT
    logprob_BT = policy.token_logprobs(batch, temperature=settings.temperature)
    # A rank without examples passes along with the others, to no effect.
    zero_BT = torch.zeros_like(logprob_BT)
    old_BT = batch.fields.get("old_logprob", logprob_BT.detach())
    advantage_BT = batch.fields.get("advantage", zero_BT)
    low, high = recipe.clip_low, recipe.clip_high
    match recipe.surrogate:
        case "token_ratio":
            surrogate = policy_losses.token_ratio(
                logprob_BT, old_BT, advantage_BT, mask_BT, clip_low=low, clip_high=high
            )
        case "sequence_ratio":
            surrogate = policy_losses.sequence_ratio(
                logprob_BT, old_BT, advantage_BT, mask_BT, batch.sequence_BT, clip_low=low, clip_high=high
            )
        case "clipped_weight":
            surrogate = policy_losses.clipped_weight(
                logprob_BT, old_BT, advantage_BT, mask_BT, clip_low=low, clip_high=high
            )
    loss_BT = surrogate.loss_BT
    moved_BT = regularizers.kl(old_BT, logprob_BT.detach(), mask_BT, "k3")
    counted = {"low": surrogate.held_low_BT, "high": surrogate.held_high_BT, "moved": moved_BT}
    rollout_BT = batch.fields.get("rollout_logprob", old_BT)
    if settings.correction != "none":
        corrected = off_policy.correction(old_BT, rollout_BT, settings.correction, cap=settings.correction_cap)
        loss_BT = loss_BT * corrected.weight_BT
        counted["corrected"] = corrected.capped_BT
    if settings.kl_coefficient:
        kl_BT = regularizers.kl(logprob_BT, batch.fields.get("ref_logprob", zero_BT), mask_BT, settings.kl_estimator)
        loss_BT = loss_BT + settings.kl_coefficient * kl_BT
        counted["ref_kl"] = kl_BT.detach()
    if settings.entropy_coefficient:
        loss_BT = loss_BT + settings.entropy_coefficient * regularizers.negative_entropy(logprob_BT, mask_BT)
    part = losses.aggregated(loss_BT, mask_BT, batch.sequence_BT, recipe.aggregation, max_tokens=settings.max_tokens)
    mismatch = off_policy.mismatch(old_BT, rollout_BT, mask_BT)
    return part, mismatch, {name: losses.masked(value_BT.float(), mask_BT).total for name, value_BT in counted.items()}
