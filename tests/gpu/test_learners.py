"""Learners on one GPU: strategies, attention kernels, memory, and how much of the card they use."""

import gc
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import is_flash_attn_2_available

from raml_ray.formulas import losses
from raml_ray.settings import TrainConfig
from raml_ray.text.batches import Example, batches
from raml_ray.workers import checkpoints, sharding
from raml_ray.workers.sharding import Sharded

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("group")]

GPU = TrainConfig(gpus_per_worker=1, dtype="bfloat16", max_tokens_per_micro_batch=16_384)
SMALL = Qwen2Config(
    vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
)  # fmt: skip
HALF_BILLION = Qwen2Config(
    vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    num_key_value_heads=2, max_position_embeddings=32_768, tie_word_embeddings=True,
)  # fmt: skip
"""The shape of Qwen2.5-0.5B."""
STRATEGIES = {
    "fsdp": {"strategy": "fsdp"},
    **{f"zero{stage}": {"strategy": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)},
}
PEAK_BFLOAT16 = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Operations per second, dense, as the vendor states them."""


def model(config: Qwen2Config = SMALL, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config)


def examples(count: int, length: int, vocab_size: int = SMALL.vocab_size) -> list[Example]:
    draw = torch.Generator().manual_seed(1)
    drawn = [torch.randint(vocab_size, (length - 7 * row,), generator=draw).tolist() for row in range(count)]
    return [Example(ids[:8], ids[8:]) for ids in drawn]


def accumulated(learner: Sharded, given: Sequence[Example], limits: TrainConfig) -> float:
    """The mean negative log-likelihood per response token, whose gradient the learner now has."""
    count, total = sum(len(example.response_token_ids) for example in given), 0.0
    [batch] = batches(given, limits.max_tokens_per_micro_batch, 1, packing=limits.packing)
    part = losses.cross_entropy(learner.token_logprobs(batch), batch.response_mask_BT.to(learner.device))
    learner.accumulate(part.total / count, last=True)
    total += float(part.total.detach())
    return total / count


def trained(learner: Sharded, limits: TrainConfig, num_steps: int) -> list[float]:
    found = []
    for _ in range(num_steps):
        found.append(accumulated(learner, examples(4, 128), limits))
        learner.step(1e-3)
    return found


def changed(**changes: object) -> TrainConfig:
    return GPU.model_copy(update=changes)


@pytest.mark.parametrize("name", STRATEGIES)
def test_bfloat16_training_loses_as_float32_on_the_cpu_does(name: str) -> None:
    reference = trained(sharding.wrap(model(), TrainConfig()), TrainConfig(), 20)
    learner = sharding.wrap(model(), changed(**STRATEGIES[name]))
    assert learner.device.type == "cuda"
    found = trained(learner, GPU, 20)
    assert found == pytest.approx(reference, abs=0.1)
    assert found[-1] < found[0] - 0.3
    assert {tensor.dtype for tensor in learner.full_state().values()} == {torch.float32}


@pytest.mark.parametrize("name", STRATEGIES)
def test_float32_losses_are_those_of_the_cpu(name: str) -> None:
    limits = changed(**STRATEGIES[name], dtype="float32")
    reference = trained(sharding.wrap(model(), TrainConfig()), TrainConfig(), 5)
    assert trained(sharding.wrap(model(), limits), limits, 5) == pytest.approx(reference, abs=1e-3)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_offloaded_does_not_lie_on_the_gpu_and_changes_no_loss(name: str) -> None:
    found, memory = [], []
    for offload in (False, True):
        free()
        before = torch.cuda.memory_allocated()
        learner = sharding.wrap(model(), changed(**STRATEGIES[name], offload=offload))
        found.append(trained(learner, GPU, 3))
        memory.append(torch.cuda.memory_allocated() - before)
        del learner
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    # AdamW's two moments and, for ZeRO, the float32 weights: at least half of what lay there.
    assert memory[1] < memory[0] / 2


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_gradient_that_is_taken_is_the_steps_and_leaves_nothing_behind(name: str, offload: bool) -> None:
    limits = changed(**STRATEGIES[name], offload=offload)
    learner = sharding.wrap(model(), limits)
    accumulated(learner, examples(4, 128), limits)
    taken = sum(float(part.double().square().sum()) for part in learner.take_gradient()) ** 0.5
    accumulated(learner, examples(4, 128), limits)
    assert taken == pytest.approx(learner.step(1e-3).grad_norm, rel=1e-3)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_checkpoint_is_read_back_exactly(name: str, tmp_path: Path) -> None:
    limits = changed(**STRATEGIES[name])
    first = sharding.wrap(model(), limits)
    trained(first, limits, 2)
    checkpoints.save(str(tmp_path), 2, first.state(), {}, keep=1)
    second = sharding.wrap(model(seed=9), limits)
    assert checkpoints.load(str(tmp_path), second.state())
    second.refresh()
    expected = first.full_state()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in second.full_state().items())


@pytest.mark.parametrize("packing", [True, False])
def test_flash_attention_and_torchs_give_the_same_log_probabilities(packing: bool) -> None:
    if not is_flash_attn_2_available():
        pytest.skip("flash-attn is not installed")
    given, found, norms = examples(4, 512), [], []
    for attention in ("flash_attention_2", "sdpa"):
        limits = changed(attention=attention, packing=packing)
        learner = sharding.wrap(model(), limits)
        [batch] = batches(given, limits.max_tokens_per_micro_batch, 1, packing=packing)
        found.append(learner.token_logprobs(batch).detach())
        accumulated(learner, given, limits)
        norms.append(learner.step(0.0).grad_norm)
    assert float((found[0] - found[1]).abs().max()) < 0.1  # rounding of bfloat16 through eight layers
    assert float((found[0] - found[1]).abs().mean()) < 0.01
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


def test_recomputing_activations_saves_most_of_their_memory() -> None:
    peaks = []
    for recomputes in (False, True):
        free()
        limits = changed(activation_checkpointing=recomputes)
        learner = sharding.wrap(model(), limits)
        learner.train()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        accumulated(learner, examples(4, 3000), limits)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del learner
    assert peaks[1] < peaks[0] / 2


def test_how_much_of_the_card_a_half_billion_policy_uses(record_property: pytest.FixtureRequest) -> None:
    """Model FLOPs utilisation of SFT steps on eight packed sequences of 2,048 tokens.

    Source: Chowdhery et al. 2022, "PaLM", arXiv:2204.02311, appendix B: 6 operations per weight and token, and 12 per
    layer, hidden unit, token and token before it (half of them under a causal mask).
    """
    card = next((name for name in PEAK_BFLOAT16 if name in torch.cuda.get_device_name()), None)
    if card is None:
        pytest.skip(f"no stated peak of {torch.cuda.get_device_name()}")
    free()
    length, count = 2048, 8
    learner = sharding.wrap(model(HALF_BILLION), GPU)
    learner.train()
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(HALF_BILLION.vocab_size, (length,), generator=draw).tolist() for _ in range(count)]
    given = [Example(row[:8], row[8:]) for row in ids]
    num_weights = sum(tensor.numel() for _, tensor in learner.full_tensors())
    attention = 6 * HALF_BILLION.num_hidden_layers * HALF_BILLION.hidden_size * length
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        accumulated(learner, given, GPU)
        learner.step(1e-5)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    tokens_per_s = length * count / sorted(seconds[3:])[2]
    utilisation = tokens_per_s * (6 * num_weights + attention) / PEAK_BFLOAT16[card]
    record_property("mfu", utilisation)  # type: ignore[operator]
    print(f"{card}: {tokens_per_s:.0f} tokens/s, MFU {utilisation:.3f}")
    assert 0.1 < utilisation < 1


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
