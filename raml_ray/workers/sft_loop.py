"""Supervised fine-tuning: off-policy inner-loop paths (paper, section 3.2), on one rank of any number."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from raml_ray.formulas import losses
from raml_ray.records import seed_of
from raml_ray.settings import SftConfig, TrainConfig
from raml_ray.text.batches import Example, batches, micro_batches
from raml_ray.workers.sharding import Sharded

MOST_SKIPPED_IN_A_ROW = 3

Report = Callable[[int, Mapping[str, float]], None]
"""Takes the number of steps done and the step's metrics; called on every rank with the same values."""
Save = Callable[[int], None]
"""Takes the number of steps done; called on every rank."""


class Plan(NamedTuple):
    """Which examples each step takes: a pure function of the settings, so that a resumed run goes on where it was."""

    num_examples: int
    batch_size: int
    num_steps: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_examples / self.batch_size)

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int) -> list[int]:
        """The examples of a step. Each epoch is a shuffle of its own; its last step takes what is left."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "sft", self.epoch_of(step)))
        order = torch.randperm(self.num_examples, generator=generator)
        start = step % self.steps_per_epoch * self.batch_size
        return [int(i) for i in order[start : start + self.batch_size]]


def plan(num_examples: int, settings: SftConfig, seed: int) -> Plan:
    """The run's steps: sft.num_epochs times through the examples, at most sft.max_steps.

    Raises: ValueError if there are no examples.
    """
    if not num_examples:
        raise ValueError(
            "SFT has no examples: no correct trajectory was found (see the verify step's summary, and sft.max_length)"
        )
    num_steps = max(1, round(settings.num_epochs * math.ceil(num_examples / settings.batch_size)))
    return Plan(num_examples, settings.batch_size, min(num_steps, settings.max_steps or num_steps), seed)


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


def share(examples: Sequence[Example], rank: int, world_size: int) -> list[Example]:
    """A rank's examples: dealt out by length, so that ranks get about equally many tokens."""
    return sorted(examples, key=len, reverse=True)[rank::world_size]


def train(
    policy: Sharded,
    examples: Sequence[Example],
    settings: SftConfig,
    limits: TrainConfig,
    *,
    seed: int,
    start_step: int,
    report: Report,
    save: Save,
) -> Plan:
    """Maximise the examples' log-likelihood, a step's response tokens weighted alike; returns the plan followed.

    Raises: ValueError if three updates in a row were not finite.
    """
    steps = plan(len(examples), settings, seed)
    policy.train()
    for step in range(start_step, steps.num_steps):
        started = time.perf_counter()
        torch.manual_seed(seed_of(seed, "sft", "dropout", step, policy.rank))
        mine = share([examples[i] for i in steps.indices(step)], policy.rank, policy.world_size)
        num_passes = int(policy.largest(len(micro_batches(mine, limits.max_tokens_per_micro_batch))))
        count = policy.total(sum(len(example.response_token_ids) for example in mine))

        total = 0.0
        for index, batch in enumerate(batches(mine, limits.max_tokens_per_micro_batch, num_passes), start=1):
            part = losses.cross_entropy(policy.token_logprobs(batch), batch.response_mask_BT.to(policy.device))
            policy.accumulate(part.total / count, last=index == num_passes)
            total += float(part.total.detach())
        rate = learning_rate(step, steps.num_steps, settings)
        update = policy.step(rate)
        if policy.num_skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise ValueError(
                f"sft.learning_rate={settings.learning_rate:g}: {MOST_SKIPPED_IN_A_ROW} updates in a row up to step"
                f" {step + 1} had no finite gradient; lower it, or train.grad_clip={limits.grad_clip:g}"
            )
        metrics = {
            "sft/loss": policy.total(total) / count,
            "sft/learning_rate": rate,
            "sft/grad_norm": update.grad_norm,
            "sft/skipped_steps": float(policy.num_skipped),
            "sft/epoch": (step + 1) / steps.steps_per_epoch,
            "sft/tokens_per_s": policy.total(sum(len(example) for example in mine)) / (time.perf_counter() - started),
        }
        report(step + 1, metrics)
        if (step + 1) % limits.checkpoint_every == 0 or step + 1 == steps.num_steps:
            save(step + 1)
    return steps
