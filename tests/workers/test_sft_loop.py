import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from raml_ray import faults
from raml_ray.settings import SftConfig, TrainConfig
from raml_ray.text.batches import Batch
from raml_ray.workers import checkpoints, sft_loop, sft_plan, sharding
from tests.workers import ranks, tiny

SETTINGS = SftConfig(batch_size=4, num_epochs=2, learning_rate=0.01, warmup_steps=2)


def losses(max_tokens: int, num_examples: int = 10) -> list[float]:
    limits = TrainConfig(max_tokens_per_micro_batch=max_tokens)
    found: list[float] = []

    def report(step: int, metrics: Mapping[str, float]) -> None:
        assert step == len(found) + 1
        found.append(metrics["sft/loss"])

    learner = sharding.wrap(tiny.model(), limits)
    train(learner, num_examples, limits, seed=3, start_step=0, report=report, save=lambda step: None)
    return found


def train(learner: sharding.Sharded, num_examples: int, limits: TrainConfig, *, seed: int, **options: Any) -> None:
    plan = sft_plan.plan([num_examples], SETTINGS, seed)
    examples = tiny.examples(num_examples)
    shares = tiny.shares(plan, examples, options["start_step"], learner.rank, learner.world_size)
    sft_loop.train(learner, plan, shares, SETTINGS, limits, seed=seed, **options)


def test_one_and_two_ranks_and_any_micro_batches_lose_alike() -> None:
    with ranks.alone():
        alone, split = losses(10_000), losses(20)
    assert len(alone) == 6  # 10 examples by 4 are 3 steps, twice
    assert split == pytest.approx(alone, abs=1e-5)
    for together in ranks.run(losses, 2, 30):
        assert together == pytest.approx(alone, abs=1e-5)


def test_the_first_loss_is_the_token_mean_of_the_untrained_policy() -> None:
    examples, model = tiny.examples(3), tiny.model()
    total, count = 0.0, 0
    for example in examples:
        ids = [*example.prompt_token_ids, *example.response_token_ids]
        logprob_TV = model(input_ids=torch.tensor([ids])).logits[0].detach().log_softmax(-1)
        for place in range(len(example.prompt_token_ids), len(ids)):
            total -= float(logprob_TV[place - 1, ids[place]])
            count += 1
    with ranks.alone():
        assert losses(10_000, num_examples=3)[0] == pytest.approx(total / count, abs=1e-5)


def test_training_lowers_the_loss_of_what_it_sees() -> None:
    with ranks.alone():
        found = losses(10_000, num_examples=4)
    assert found[-1] < found[0]


def test_the_learning_rate_warms_up_and_falls_as_its_schedule_says() -> None:
    settings = SftConfig(learning_rate=1.0, warmup_steps=2, schedule="linear")
    # Six steps: 1/2, 1 in the warm-up, then 4/4, 3/4, 2/4, 1/4.
    assert [sft_loop.learning_rate(s, 6, settings) for s in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    constant = settings.model_copy(update={"schedule": "constant"})
    assert [sft_loop.learning_rate(s, 6, constant) for s in range(6)] == [0.5, 1, 1, 1, 1, 1]
    cosine = settings.model_copy(update={"schedule": "cosine"})
    expected = [0.5, 1.0, *((1 + math.cos(math.pi * k / 4)) / 2 for k in range(4))]
    assert [sft_loop.learning_rate(s, 6, cosine) for s in range(6)] == pytest.approx(expected)


def test_a_run_cut_off_and_gone_on_has_the_losses_of_one_that_was_not(tmp_path: object) -> None:
    for straight, resumed in ranks.run(cut_off, 2, str(tmp_path)):
        assert resumed == straight  # bit for bit


def cut_off(folder: str) -> tuple[list[float], list[float]]:
    limits = TrainConfig(max_tokens_per_micro_batch=30, checkpoint_every=2)
    straight: list[float] = []
    resumed: list[float] = []
    for found, until in ((straight, 6), (resumed, 3), (resumed, 6)):
        learner = sharding.wrap(tiny.model(seed=0), limits)
        restored = checkpoints.load(folder, learner.state()) if found is resumed and until == 6 else None
        start = restored.step if restored else 0
        del found[start:]

        def report(step: int, metrics: Mapping[str, float], found: list[float] = found, until: int = until) -> None:
            found.append(metrics["sft/loss"])
            if step == until < 6:
                raise KeyboardInterrupt

        def save(step: int, learner: sharding.Sharded = learner, keep: bool = found is resumed) -> None:
            if keep:
                checkpoints.save(folder, step, learner.state(), {}, keep=2)

        try:
            train(learner, 10, limits, seed=3, start_step=start, report=report, save=save)
        except KeyboardInterrupt:
            continue
    return straight, resumed


def spoilt(folder: str) -> list[float]:
    """Updates left out until each step, where the gradient of rank 1 is no number at the second."""
    faults.arm("learner:1:2:nan", folder)
    skipped: list[float] = []
    limits = TrainConfig()
    learner = sharding.wrap(tiny.model(), limits)
    train(
        learner,
        10,
        limits,
        seed=3,
        start_step=0,
        report=lambda step, metrics: skipped.append(metrics["sft/skipped_steps"]),
        save=lambda step: None,
    )
    return skipped


def test_a_gradient_that_is_no_number_on_one_rank_costs_that_update_on_all_and_no_other(tmp_path: Path) -> None:
    assert ranks.run(spoilt, 2, str(tmp_path)) == [[0, 1, 1, 1, 1, 1]] * 2


def test_updates_that_stay_without_a_finite_gradient_end_the_run() -> None:
    model = tiny.model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    limits = TrainConfig()
    with ranks.alone(), pytest.raises(ValueError, match="3 updates in a row up to step 3"):
        learner = sharding.wrap(model, limits)
        train(learner, 20, limits, seed=0, start_step=0, report=lambda s, m: None, save=lambda s: None)


def test_a_step_whose_loss_alone_is_not_finite_is_left_out_and_saved_behind_it() -> None:
    limits = TrainConfig(checkpoint_every=2)
    with ranks.alone():
        learner = sharding.wrap(tiny.model(), limits)
        scored, states, saved, kept = learner.token_logprobs, [weights(learner)], [], []

        def infinite_at_step_2(batch: Batch, **options: Any) -> torch.Tensor:
            # An offset: the gradient stays what it was, finite.
            return scored(batch, **options) - (math.inf if len(states) == 2 else 0.0)

        learner.token_logprobs = infinite_at_step_2  # type: ignore[method-assign]
        train(
            learner, 10, limits, seed=0, start_step=0,
            report=lambda step, metrics: states.append(weights(learner)), save=saved.append,
            keep=lambda step, batch, figures: kept.append((step, len(batch), figures["loss"])),
        )  # fmt: skip
    changed = [any(not torch.equal(new[n], old[n]) for n in new) for old, new in itertools.pairwise(states)]
    assert changed == [True, False, True, True, True, True]
    assert saved == [3, 4, 6]  # what was due at 2 comes behind the next whole step
    assert kept == [(2, 4, math.inf)]


def weights(learner: sharding.Sharded) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.full_tensors()}
