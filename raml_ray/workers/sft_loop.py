"""Supervised fine-tuning: off-policy inner-loop paths (paper, section 3.2), on one rank of any number."""

import math
import time
from collections.abc import Iterator, Sequence

import torch

from raml_ray import faults
from raml_ray.formulas import losses
from raml_ray.records import seed_of
from raml_ray.settings import SftConfig, TrainConfig
from raml_ray.text.batches import ANSWER, Batch, Example, batches, micro_batches
from raml_ray.workers import watchdog
from raml_ray.workers.guard import Guard, Keep, Report, Save
from raml_ray.workers.meter import Meter
from raml_ray.workers.sft_plan import Plan
from raml_ray.workers.sharding import Sharded


def learning_rate(step: int, num_steps: int, settings: SftConfig) -> float:
    """Of the step with that index (from 0): a linear warm-up, then `sft.schedule` towards 0 behind the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    left = 1 - (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    match settings.schedule:
        case "constant":
            factor = 1.0
        case "linear":
            factor = left
        case "cosine":
            factor = (1 + math.cos(math.pi * (1 - left))) / 2
    return settings.learning_rate * factor


def outer(batch: Batch, settings: SftConfig) -> Batch:
    """The batch with the tokens in its response mask that the outer loss is of (paper, Eq. 8)."""
    match settings.outer_loss:
        case "all_tokens":
            return batch
        case "answer_only":
            return batch.answers_alone(detached=False)
        case "answer_only_detached":
            return batch.answers_alone(detached=True)


def num_scored(example: Example, settings: SftConfig) -> int:
    """Tokens of the example that the outer loss is of."""
    if settings.outer_loss == "all_tokens":
        return len(example.response_token_ids)
    return round(sum(example.fields[ANSWER]))


def train(
    policy: Sharded,
    steps: Plan,
    shares: Iterator[Sequence[Example]],
    settings: SftConfig,
    limits: TrainConfig,
    *,
    seed: int,
    start_step: int,
    report: Report,
    save: Save,
    keep: Keep | None = None,
) -> dict[str, float]:
    """Maximise the examples' log-likelihood, a step's tokens that `sft.outer_loss` is of weighted alike; figures of what
    came behind the last report.

    `shares` yields this rank's share of every step of the plan from `start_step` on; a share may be empty.

    Raises: arrival.Refused as `Guard.check` does.
    """
    policy.train()
    guard, meter = Guard(policy, limits, save), Meter(policy, limits)
    for step in range(start_step, steps.num_steps):
        started = time.perf_counter()
        torch.manual_seed(seed_of(seed, "sft", "dropout", step, policy.rank))
        watchdog.reached(f"step {step + 1}")
        mine = next(shares)
        faults.reach("learner", policy.rank, step + 1)
        rate = learning_rate(step, steps.num_steps, settings)
        with meter.updating():
            loss = accumulate(policy, mine, settings, limits)
            update = policy.step(rate)
        if update.skipped and keep is not None:
            keep(step + 1, mine, {"loss": loss, "grad_norm": update.grad_norm})
        guard.check(step + 1, f"sft.learning_rate={settings.learning_rate:g}")
        metrics = {
            "sft/loss": loss,
            "sft/learning_rate": rate,
            "sft/grad_norm": update.grad_norm,
            "sft/skipped_steps": float(policy.updates.skipped),
            "sft/epoch": (step + 1) / steps.steps_per_epoch,
            "sft/tokens_per_s": policy.total(sum(len(example) for example in mine)) / (time.perf_counter() - started),
        }
        watchdog.reached(f"what follows step {step + 1}")
        report(step + 1, metrics | meter.told())
        with meter.busy("time/checkpoint_s"):
            guard.save(step + 1, is_last=step + 1 == steps.num_steps)
    return meter.figures()


def accumulate(policy: Sharded, mine: Sequence[Example], settings: SftConfig, limits: TrainConfig) -> float:
    """The gradient of the step's mean loss over all ranks' scored tokens, and that mean. A collective."""
    budget, packing = limits.max_tokens_per_micro_batch, limits.packing
    num_passes = int(policy.largest(len(micro_batches(mine, budget, packing=packing))))
    count = policy.total(sum(num_scored(example, settings) for example in mine))
    total = 0.0
    for index, batch in enumerate(batches(mine, budget, num_passes, packing=packing), start=1):
        scored = outer(batch, settings)
        part = losses.cross_entropy(policy.token_logprobs(scored), scored.response_mask_BT.to(policy.device))
        policy.accumulate(losses.guarded(part.total / count * faults.factor()), last=index == num_passes)
        total += float(part.total.detach())
    return policy.total(total) / count
