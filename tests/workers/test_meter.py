"""What a learner logs of its own work."""

import time
from collections.abc import Mapping, Sequence

import pytest

from raml_ray.formulas import architecture
from raml_ray.formulas.architecture import Passes, model_flops
from raml_ray.records import Verdict
from raml_ray.settings import GrpoConfig, SftConfig, TrainConfig
from raml_ray.text.batches import Example
from raml_ray.workers import grpo_loop, sft_loop, sft_plan, sharding
from raml_ray.workers.rollouts import Rollout
from tests.workers import ranks, tiny

# Nine tokens, five of them scored; the second has four and two. Pairs: 45 and 10.
EXAMPLES = [Example([1, 2, 3, 4], [5, 6, 7, 8, 9]), Example([1, 2], [3, 4])]
DRAIN_S = 0.5
PASSES = Passes(tokens=13, scored=7, pairs=55)


def sft(limits: TrainConfig) -> list[Mapping[str, float]]:
    return trained(limits)[0]


def trained(
    limits: TrainConfig, saving_s: float = 0.0, start_step: int = 0
) -> tuple[list[Mapping[str, float]], dict[str, float]]:
    """The metrics of up to three steps, each over both examples, and the figures behind them."""
    found: list[Mapping[str, float]] = []
    settings = SftConfig(batch_size=2, num_epochs=3)
    plan = sft_plan.plan([2], settings, 0)
    learner = sharding.wrap(tiny.model(), limits)
    figures = sft_loop.train(
        learner, plan, tiny.shares(plan, EXAMPLES, start_step, learner.rank, learner.world_size), settings, limits,
        seed=0, start_step=start_step, report=lambda step, metrics: found.append(metrics), save=lambda step: time.sleep(saving_s),
    )  # fmt: skip
    return found, figures


def grpo(limits: TrainConfig) -> list[Mapping[str, float]]:
    """The metrics of two versions, sampled in 50 ms each: of two questions, a minibatch each, a right and a wrong
    trajectory with the ids of EXAMPLES. Before weights go out, what is under way takes DRAIN_S more."""
    found: list[Mapping[str, float]] = []
    settings = GrpoConfig(num_steps=2, num_trajectories=2, num_updated=2, num_minibatches=2, questions_per_step=2)

    def sample(version: int) -> tuple[Sequence[Sequence[Rollout]], Mapping[str, float]]:
        time.sleep(0.05)
        verdicts = (Verdict.CORRECT, Verdict.WRONG)
        group = [
            Rollout("q", list(e.prompt_token_ids), list(e.response_token_ids), [-1.0] * len(e.response_token_ids),
                    "stop", version, verdict)
            for e, verdict in zip(EXAMPLES, verdicts, strict=True)
        ]  # fmt: skip
        return [group, group], {}

    def publish(version: int) -> Mapping[str, float]:
        time.sleep(0.02 + DRAIN_S)
        return {"time/drain_s": DRAIN_S}

    grpo_loop.train(
        sharding.wrap(tiny.model(), limits), settings, limits, seed=0, start_version=0, sample=sample, publish=publish,
        report=lambda version, metrics: found.append(metrics), save=lambda version: None,
    )  # fmt: skip
    return found


def flops_of(metrics: Mapping[str, float]) -> float:
    """What the utilisation says was computed, where a device's peak is 2 x 10^12."""
    return metrics["learner/mfu"] * metrics["time/update_s"] * 2e12


def test_sft_s_utilisation_and_throughput_are_those_of_its_tokens() -> None:
    made = architecture.of(tiny.model().config.to_dict())
    assert made is not None
    with ranks.alone():
        for metrics in sft(TrainConfig(peak_tflops=2)):
            assert flops_of(metrics) == pytest.approx(model_flops(made, Passes(), PASSES))
            assert metrics["learner/tokens_per_s_per_device"] * metrics["time/update_s"] == pytest.approx(13)
        adapted = sft(TrainConfig(peak_tflops=2, lora_rank=2))[-1]
        # 2 (a + b) of every matrix a x b: q, k, v, o of 32 x 32, 32 x 16, 32 x 16, 32 x 32; thrice 32 x 48; two layers.
        adapters = 2 * 2 * (64 + 48 + 48 + 64 + 3 * 80)
        assert flops_of(adapted) == pytest.approx(model_flops(made, Passes(), PASSES, adapters=adapters))


def test_grpo_s_utilisation_counts_the_old_policy_s_passes_on_later_minibatches_as_forward_alone() -> None:
    made = architecture.of(tiny.model().config.to_dict())
    assert made is not None
    with ranks.alone():
        for metrics in grpo(TrainConfig(peak_tflops=2)):
            assert flops_of(metrics) == pytest.approx(model_flops(made, PASSES, Passes(26, 14, 110)))
            assert 0 < metrics["time/logprobs_s"] < metrics["time/update_s"]
            assert metrics["time/sample_s"] >= 0.05
            assert metrics["time/sync_s"] >= 0.02


def test_the_seconds_of_a_step_are_idle_or_spent() -> None:
    with ranks.alone():
        found, _ = trained(TrainConfig(checkpoint_every=1), saving_s=0.03)
        assert "time/checkpoint_s" not in found[0]  # the first was not written yet
        for metrics in found[1:]:
            parts = [metrics[f"time/{name}_s"] for name in ("idle", "update", "checkpoint")]
            assert metrics["time/step_s"] == pytest.approx(sum(parts))
            assert metrics["time/checkpoint_s"] >= 0.03
        sampled = grpo(TrainConfig())[-1]
        # Waiting for trajectories: those that were asked for, and those under way when the sync began.
        assert sampled["time/idle_s"] >= sampled["time/sample_s"] + DRAIN_S - 1e-3
        assert sampled["time/sync_s"] >= 0.02 and sampled["time/drain_s"] == DRAIN_S
        parts = [sampled[f"time/{name}_s"] for name in ("idle", "update", "sync", "checkpoint")]
        assert sampled["time/step_s"] == pytest.approx(sum(parts))


def test_the_last_checkpoint_is_a_figure_since_it_is_written_behind_the_last_line() -> None:
    with ranks.alone():
        found, figures = trained(TrainConfig(checkpoint_every=3), saving_s=0.03)
        assert max(metrics.get("time/checkpoint_s", 0.0) for metrics in found) < 0.03  # none was due before the last
        assert figures.keys() == {"time/last_checkpoint_s"} and figures["time/last_checkpoint_s"] >= 0.03
        assert trained(TrainConfig(), start_step=3) == ([], {})  # all was done: nothing is written again


def test_what_is_not_known_is_not_logged() -> None:
    with ranks.alone():
        metrics = sft(TrainConfig())[-1]
    assert "learner/mfu" not in metrics  # nobody said what a core can do
    assert "learner/peak_device_memory_gib" not in metrics
    assert 0.05 < metrics["learner/peak_memory_gib"] < 100


def on_a_rank() -> Mapping[str, float]:
    return sft(TrainConfig(peak_tflops=2))[-1]


def test_ranks_log_what_they_did_together_per_device() -> None:
    made = architecture.of(tiny.model().config.to_dict())
    assert made is not None
    for metrics in ranks.run(on_a_rank, 2):
        assert flops_of(metrics) == pytest.approx(model_flops(made, Passes(), PASSES) / 2)
        assert metrics["learner/tokens_per_s_per_device"] * metrics["time/update_s"] == pytest.approx(13 / 2)
