"""How weights reach the ranks: none but rank 0 ever holds the model whole."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import DogeConfig, DogeForCausalLM, Qwen2Config, Qwen2ForCausalLM

from raml_ray.settings import TrainConfig
from raml_ray.workers import arrival, policy, sharding
from tests.workers import ranks, tiny

LARGE = Qwen2Config(
    vocab_size=1000,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=8,
)
"""Twelve layers of 16 MiB in float32."""


def peak_mib() -> float:
    """The most memory that this process held since `forget_peak`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def forget_peak() -> float:
    """Start measuring anew; what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def grown(strategies: list[TrainConfig]) -> list[float]:
    """MiB that each strategy's learner cost this rank while it was made."""
    found = []
    for limits in strategies:
        sharding.wrap(tiny.model(), limits)  # imports and buffers of the process group
        before = forget_peak()
        if dist.get_rank() == 0:
            model = Qwen2ForCausalLM(LARGE)
        else:
            with torch.device("meta"):
                model = Qwen2ForCausalLM(LARGE)
        learner = sharding.wrap(model, limits)
        found.append(peak_mib() - before)
        del model, learner
    return found


@pytest.mark.slow
def test_a_rank_that_is_not_the_first_never_holds_the_model_whole() -> None:
    whole = sum(p.numel() * 4 for p in Qwen2ForCausalLM(LARGE).parameters()) / 2**20
    first, second = ranks.run(grown, 2, [TrainConfig()])
    assert first[0] > whole  # it read, or drew, all of them: the meter sees it
    # Half of the model is its share; on top a layer that is being split, and what is on its way.
    assert whole / 2 * 0.9 < second[0] < whole / 2 + 60


def mixed() -> str:
    """One rank's policy cannot be packed, the other has no weights to see it by."""
    config = DogeConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    with torch.device("cpu" if dist.get_rank() == 0 else "meta"):
        model = DogeForCausalLM(config)
    try:
        sharding.wrap(model, TrainConfig())
    except ValueError as error:
        return str(error)
    return ""


def test_what_rank_0_alone_can_see_stops_all_ranks() -> None:
    first, second = ranks.run(mixed, 2)
    assert first == second
    assert "set train.packing=false" in first


def test_tied_weights_and_buffers_arrive_at_every_place_that_had_them() -> None:
    with ranks.alone():
        model = tiny.model()
        expected = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        coming = arrival.Arrival(model, torch.device("cpu"), torch.bfloat16)
        for layer in model.model.layers:
            coming.bring(layer)
        assert model.model.norm.weight.dtype is torch.float32  # not yet
        coming.bring(model)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        assert tensor.dtype is (torch.bfloat16 if is_parameter else torch.float32)
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


def test_a_model_without_weights_costs_none_and_has_the_folders_shapes(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    state = torch.get_rng_state()
    bare, whole = policy.load_model(str(tmp_path), without_weights=True), policy.load_model(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    assert {t.device.type for t in [*bare.parameters(), *bare.buffers()]} == {"meta"}
    shapes = [{name: (p.shape, p.dtype) for name, p in of.named_parameters()} for of in (bare, whole)]
    assert shapes[0] == shapes[1]
