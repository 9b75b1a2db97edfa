"""FSDP2 and DeepSpeed's three stages against each other, on one and two ranks: one objective, one result.

DeepSpeed takes seconds to import, so each number of ranks is one process group that finds out everything, once.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from raml_ray.settings import GrpoConfig, SftConfig, TrainConfig
from raml_ray.text.batches import batches
from raml_ray.workers import (
    checkpoints,
    gradient_variance,
    grpo_groups,
    grpo_loop,
    sft_loop,
    sft_plan,
    sharding,
    sharding_fsdp,
)
from raml_ray.workers.pieces import Piece
from raml_ray.workers.sharding import Sharded
from tests.workers import ranks, test_grpo_loop, test_sharding, tiny

NUM_STEPS = 20
SFT = SftConfig(batch_size=4, num_epochs=8, max_steps=NUM_STEPS, learning_rate=0.01, warmup_steps=2)
GRPO = GrpoConfig(num_trajectories=4, num_updated=2, gradient_variance_draws=3)
REGULARIZED = GrpoConfig(
    num_steps=NUM_STEPS, num_trajectories=4, num_updated=4, num_minibatches=2, learning_rate=3e-3, kl_coefficient=0.5
)
CUT = 8
"""Steps before the checkpoint."""
LIMITS = TrainConfig(max_tokens_per_micro_batch=30, weight_decay=0.1, grad_clip=0.5, checkpoint_every=CUT)
STAGES: dict[str, dict[str, object]] = {
    f"zero{stage}": {"strategy": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)
}
VARIANTS: dict[str, dict[str, object]] = {
    "fsdp": {},
    **STAGES,
    "fsdp recomputing": {"activation_checkpointing": True},
    "zero3 recomputing": {**STAGES["zero3"], "activation_checkpointing": True},
    "fsdp offloaded": {"offload": True},
    "zero2 offloaded": {**STAGES["zero2"], "offload": True},
    "zero3 offloaded": {**STAGES["zero3"], "offload": True},
    "fsdp adapted": {"lora_rank": 4},
    "zero1 adapted": {**STAGES["zero1"], "lora_rank": 4},
    "zero2 adapted": {**STAGES["zero2"], "lora_rank": 4},
    "zero3 adapted": {**STAGES["zero3"], "lora_rank": 4},
    "fsdp bfloat16": {"dtype": "bfloat16"},
    "zero1 bfloat16": {**STAGES["zero1"], "dtype": "bfloat16"},
    "zero3 bfloat16": {**STAGES["zero3"], "dtype": "bfloat16"},
}
RESUMED = (
    "fsdp",
    *STAGES,
    "zero3 offloaded",
    "fsdp adapted",
    "zero1 adapted",
    "zero2 adapted",
    "zero3 adapted",
    "zero1 bfloat16",
    "zero3 bfloat16",
)
READ_BY = {"fsdp": "fsdp", "zero1": "zero3", "zero2": "zero2", "zero3": "zero1"}
"""Whose checkpoint, and who reads it with another number of ranks."""


@dataclass
class Found:
    """What one rank found of one variant."""

    variance: dict[str, float] = field(default_factory=dict)
    """Of the gradient over draws of trajectories, before the losses."""
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    versions: list[tuple[float, float, float]] = field(default_factory=list)
    """Of GRPO: loss, divergence from the reference and gradient norm."""
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    """Of the same examples: in one micro-batch, in several, packed and padded."""
    gathered: dict[str, Tensor] = field(default_factory=dict)
    exchanges: int = 0
    """By which the weights came from all ranks."""
    poisoned: tuple[bool, bool, bool] = (False, False, False)
    """Was the step skipped, did the weights stay as they were, was the next step taken."""
    resumed: list[float] = field(default_factory=list)
    """Losses after a checkpoint that was read into a learner of other weights."""
    saved: dict[str, Tensor] = field(default_factory=dict)
    """The weights that the checkpoint was made of, on rank 0."""
    read: dict[str, Tensor] = field(default_factory=dict)
    """The weights of the learner that read it, on rank 0."""
    first_moment: float = 0.0
    """Norm of AdamW's first moment after one step."""


def of(name: str, **changes: object) -> TrainConfig:
    return LIMITS.model_copy(update={**VARIANTS[name], **changes})


def trained(
    learner: Sharded, limits: TrainConfig, start: int = 0, save: Callable[[int], None] = lambda step: None
) -> tuple[list[float], list[float]]:
    """The SFT loop's losses and gradient norms from a step to the last."""
    losses, norms = [], []
    plan = sft_plan.plan([10], SFT, 3)

    def report(step: int, metrics: Mapping[str, float]) -> None:
        losses.append(metrics["sft/loss"])
        norms.append(metrics["sft/grad_norm"])

    shares = tiny.shares(plan, tiny.examples(10), start, learner.rank, learner.world_size)
    sft_loop.train(learner, plan, shares, SFT, limits, seed=3, start_step=start, report=report, save=save)
    return losses, norms


def reinforced(limits: TrainConfig) -> list[tuple[float, float, float]]:
    """GRPO's versions on given trajectories, held near the policy that it began with: `Found.versions`."""
    found: list[tuple[float, float, float]] = []

    def report(version: int, metrics: Mapping[str, float]) -> None:
        found.append((metrics["grpo/loss"], metrics["grpo/kl"], metrics["grpo/grad_norm"]))

    limits = limits.model_copy(
        update={"max_tokens_per_micro_batch": 1000}
    )  # all of a minibatch at once, for the test's time
    grpo_loop.train(
        arrived(limits), REGULARIZED, limits, seed=0, start_version=0, reference=arrived(limits), report=report,
        sample=lambda version: (test_grpo_loop.groups(version), {}), publish=lambda version: {}, save=lambda version: None,
    )  # fmt: skip
    return found


def arrived(limits: TrainConfig, seed: int = 0) -> Sharded:
    """The tiny policy as learners come by it: only rank 0 has weights."""
    with torch.device("cpu" if torch.distributed.get_rank() == 0 else "meta"):
        model = tiny.model(seed)
    return sharding.wrap(model, limits)


def looked_at(limits: TrainConfig) -> Found:
    """What one learner of the untrained policy has to show."""
    learner = arrived(limits)
    found = Found(gathered=learner.full_state(), exchanges=test_sharding.gathered_by(learner)[1])
    for max_tokens, packing in ((10_000, True), (25, True), (25, False), (1, False)):
        test_sharding.accumulated(learner, test_sharding.EXAMPLES, max_tokens, packing=packing)
        found.gradients.append(gradient(learner))
        learner.step(0.0)
        found.first_moment = found.first_moment or first_moment(learner)
    found.poisoned = poisoned(learner)
    return found


def gradient(learner: Sharded) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_grad

    named = learner._module.named_parameters()
    if isinstance(learner, sharding_fsdp.Fsdp):
        return {name: p.grad.full_tensor().clone() for name, p in named}  # type: ignore[union-attr]
    return {name: safe_get_full_grad(p).clone() for name, p in named}


def first_moment(learner: Sharded) -> float:
    mine = [tensor for name, tensor in learner.state().items() if name.endswith(".exp_avg")]
    here = [tensor.here if isinstance(tensor, Piece) else tensor.to_local() for tensor in mine]  # type: ignore[attr-defined]
    return learner.total(float(sum(part.square().sum() for part in here))) ** 0.5


def poisoned(learner: Sharded) -> tuple[bool, bool, bool]:
    before = {name: tensor.clone() for name, tensor in learner.full_tensors()}
    loss = learner.token_logprobs(next(batches(test_sharding.EXAMPLES, 10_000, 1))).sum()
    learner.accumulate(loss * (float("nan") if learner.rank == learner.world_size - 1 else 1.0), last=True)
    first = learner.step(0.1)
    unchanged = all(torch.equal(tensor, before[name]) for name, tensor in learner.full_tensors())
    test_sharding.accumulated(learner, test_sharding.EXAMPLES, 10_000)
    second = learner.step(0.1)
    moved = any(not torch.equal(tensor, before[name]) for name, tensor in learner.full_tensors())
    return first.skipped, unchanged, not second.skipped and moved and learner.updates.skipped_in_a_row == 0


def variance(learner: Sharded, limits: TrainConfig) -> dict[str, float]:
    given = test_grpo_loop.groups()
    judged = grpo_groups.judge(given, GRPO, seed=0)
    return gradient_variance.measured(learner, given, judged, GRPO, limits, seed=0)


def resumed(limits: TrainConfig, folder: str) -> tuple[dict[str, Tensor], list[float]]:
    """The weights of a learner that read the folder's checkpoint, and its losses from there to the end."""
    learner = arrived(limits, seed=0 if limits.lora_rank else 99)  # frozen weights are no part of it
    found = checkpoints.load(folder, learner.state())
    learner.refresh()
    assert found and found.step == CUT
    return learner.full_state(), trained(learner, limits, CUT)[0]


def without_compiler(folder: str) -> None:
    """Whatever a compiler would make from here on would lie in the folder."""
    os.environ["PATH"] = folder
    os.environ["TORCH_EXTENSIONS_DIR"] = folder


def two(nothing: str, folder: str) -> dict[str, Found]:
    """All variants, on one of two ranks; what some of them save stays in the folder."""
    without_compiler(nothing)
    every: dict[str, Found] = {}
    for name in VARIANTS:
        every[name] = found = Found() if name.endswith(("ing", "ed")) else looked_at(of(name))
        learner = arrived(of(name))

        def save(step: int, learner: Sharded = learner, name: str = name) -> None:
            if step == CUT and name in RESUMED:
                checkpoints.save(f"{folder}/{name}", step, learner.state(), {}, keep=1)
                every[name].saved = learner.full_state()

        found.variance = variance(learner, of(name))
        found.losses, found.norms = trained(learner, of(name), save=save)
        if name in READ_BY:
            found.versions = reinforced(of(name))
        if name in RESUMED:
            found.read, found.resumed = resumed(of(name), f"{folder}/{name}")
    return every


def one(nothing: str, folder: str) -> dict[str, Found]:
    """The strategies as they are, on one rank, and what it reads of what two ranks saved."""
    without_compiler(nothing)
    every: dict[str, Found] = {}
    for name in ("fsdp", *STAGES):
        every[name] = found = looked_at(of(name))
        learner = arrived(of(name))
        found.variance = variance(learner, of(name))
        found.losses, found.norms = trained(learner, of(name))
        found.versions = reinforced(of(name))
        found.read, found.resumed = resumed(of(READ_BY[name]), f"{folder}/{name}")
    return every


Every = dict[str, Found]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Every]]:
    """What each of two ranks found, and last what one alone did."""
    nothing, folder = tmp_path_factory.mktemp("nothing"), str(tmp_path_factory.mktemp("checkpoints"))
    yield [*ranks.run(two, 2, str(nothing), folder), *ranks.run(one, 1, str(nothing), folder)]
    assert list(nothing.iterdir()) == []  # no compiler was called


@pytest.mark.slow
def test_every_strategy_has_the_losses_and_gradient_norms_of_fsdp(found: list[Every]) -> None:
    plain, adapted = found[0]["fsdp"], found[0]["fsdp adapted"]
    assert len(plain.losses) == NUM_STEPS and plain.losses[-1] < plain.losses[0] - 1
    assert max(plain.norms) > LIMITS.grad_clip  # some of it is clipped
    assert adapted.losses[-1] < adapted.losses[0] - 0.1
    for every in found:
        for name, variant in every.items():
            if "bfloat16" not in name:
                reference = adapted if "adapted" in name else plain
                assert variant.losses == pytest.approx(reference.losses, abs=1e-5), name
                assert variant.norms == pytest.approx(reference.norms, rel=1e-4), name


@pytest.mark.slow
def test_every_strategy_has_the_losses_divergences_and_gradient_norms_of_fsdp_in_grpo(found: list[Every]) -> None:
    plain = found[0]["fsdp"].versions
    assert len(plain) == NUM_STEPS and plain[-1][1] > 0.01
    for every in found:
        for name in ("fsdp", *STAGES):
            for version, (loss, divergence, norm) in zip(every[name].versions, plain, strict=True):
                assert version[:2] == pytest.approx((loss, divergence), abs=1e-5), name
                assert version[2] == pytest.approx(norm, rel=1e-3), name


@pytest.mark.slow
def test_every_strategy_finds_the_gradients_variance_of_fsdp_and_forgets_what_it_measured(found: list[Every]) -> None:
    """That it forgets is what the losses and norms behind it show, above: the first norm would be of two gradients."""
    plain, adapted = found[0]["fsdp"].variance, found[0]["fsdp adapted"].variance
    assert 0.01 < plain["grpo/gradient_variance"] < 100 and plain["grpo/gradient_squared_norm"] > 0.01
    assert adapted["grpo/gradient_squared_norm"] != pytest.approx(plain["grpo/gradient_squared_norm"], rel=0.01)
    for every in found:
        for name, variant in every.items():
            if "bfloat16" not in name:
                assert variant.variance == pytest.approx(adapted if "adapted" in name else plain, rel=1e-5), name
            else:
                assert variant.variance == pytest.approx(plain, rel=0.1), name


@pytest.mark.slow
def test_every_strategy_trains_the_same_adapters_and_gathers_them_merged(found: list[Every]) -> None:
    before = dict(tiny.model().named_parameters())
    expected = found[0]["fsdp adapted"].saved
    assert expected.keys() == before.keys()
    changed = {name for name in before if not torch.equal(expected[name], before[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    for name in ("zero1 adapted", "zero2 adapted", "zero3 adapted"):
        torch.testing.assert_close(found[0][name].saved, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(found: list[Every]) -> None:
    for every in found[:2]:
        for name in ("fsdp bfloat16", "zero1 bfloat16", "zero3 bfloat16"):
            gap = [abs(a - b) for a, b in zip(every[name].losses, every["fsdp"].losses, strict=True)]
            assert 1e-4 < max(gap) < 0.15, name
    trained_weights = found[0]["zero3 bfloat16"].saved
    assert {tensor.dtype for tensor in trained_weights.values()} == {torch.float32}
    # Some of what was added to them is smaller than bfloat16 can tell.
    assert not all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in trained_weights.values())


@pytest.mark.slow
def test_any_micro_batches_packed_or_padded_give_the_undivided_gradient(found: list[Every]) -> None:
    expected = test_sharding.undivided()
    for every in found:
        for name in ("fsdp", *STAGES):
            assert len(every[name].gradients) == 4
            for gradients in every[name].gradients:
                test_sharding.same(gradients, expected)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any(found: list[Every]) -> None:
    for every in found:
        for name in ("fsdp", *STAGES, *(name for name in every if "bfloat16" in name)):
            assert every[name].poisoned == (True, True, True), name


@pytest.mark.slow
def test_clipping_scales_the_whole_gradient(found: list[Every]) -> None:
    norm = float(torch.cat([g.flatten() for g in test_sharding.undivided().values()]).norm())
    assert norm > LIMITS.grad_clip
    for every in found:
        for name in ("fsdp", *STAGES):
            # (1 - beta1) of the clipped gradient, whose norm is train.grad_clip.
            assert every[name].first_moment == pytest.approx((1 - 0.9) * 0.5, rel=1e-4), name


@pytest.mark.slow
def test_rank_0s_weights_reach_all_ranks_and_are_gathered_on_rank_0(found: list[Every]) -> None:
    expected = dict(tiny.model().named_parameters())
    for name in ("fsdp", *STAGES):
        gathered = found[0][name].gathered
        assert gathered.keys() == expected.keys()
        assert all(torch.equal(gathered[key], tensor) for key, tensor in expected.items()), name
        assert found[1][name].gathered == {}
        # The embedding's, two layers', and the last norm's.
        assert [every[name].exchanges for every in found[:2]] == [4, 4], name


@pytest.mark.slow
def test_a_restored_learner_goes_on_to_the_very_same_losses(found: list[Every]) -> None:
    for every in found[:2]:
        for name in RESUMED:
            assert every[name].resumed == every[name].losses[CUT:], name  # digit for digit
    for name in RESUMED:
        assert all(torch.equal(found[0][name].read[key], tensor) for key, tensor in found[0][name].saved.items()), name


@pytest.mark.slow
def test_another_number_of_ranks_and_another_zero_stage_read_a_checkpoint(found: list[Every]) -> None:
    saved, read = found[0], found[2]
    for name in READ_BY:
        assert read[name].read.keys() == saved[name].saved.keys()
        assert all(torch.equal(read[name].read[key], tensor) for key, tensor in saved[name].saved.items()), name
        assert read[name].resumed == pytest.approx(saved[name].losses[CUT:], abs=1e-5), name
