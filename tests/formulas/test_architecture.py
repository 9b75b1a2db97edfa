"""Parameters and operations from config.json's numbers, against hand counts and against real models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from raml_ray.formulas import architecture
from raml_ray.formulas.architecture import Architecture, Passes, model_flops, peak_tflops

# q, k, v, o of 2 x 2 and gate, up, down of 2 x 3: 16 + 18 = 34 in the one layer's matrices; a head of 5 x 2.
SMALL = Architecture("llama", 1, 2, 3, 1, 1, 2, 5, False, False, False)


def passes(lengths: list[int], scored: int) -> Passes:
    found = Passes()
    found.add(lengths, scored)
    return found


def test_parameters_are_counted_by_hand() -> None:
    # The layer: 34 and two norms of 2; input embedding, head and last norm: 10 + 10 + 2.
    assert SMALL.num_parameters == 38 + 22
    assert SMALL._replace(is_tied=True).num_parameters == 38 + 12
    # Rank 3: q has 3 x (2 + 2), down has 3 x (3 + 2).
    assert SMALL.adapter_parameters(3, ["q_proj", "down_proj"]) == 12 + 15
    assert SMALL.adapter_parameters(1, []) == 4 * 4 + 3 * 5


def test_operations_are_counted_by_hand() -> None:
    one = passes([3], 2)
    assert one == Passes(tokens=3, scored=2, pairs=1 + 2 + 3)
    # 2 x 34 x 3 in matrices, 2 x 10 x 2 in the head, and 2 x 2 x 2 for each of 6 pairs (query . key, weight x value).
    assert model_flops(SMALL, one, Passes()) == 204 + 40 + 48
    assert model_flops(SMALL, Passes(), one) == 3 * 292
    # An adapter of rank 1 at q: 4 more parameters, and no gradient of the 34 and the head: 3 (228 + 40 + 48) - 244.
    assert model_flops(SMALL, Passes(), one, adapters=4) == 704


def test_sequences_of_one_row_attend_to_themselves_alone() -> None:
    assert passes([3, 2], 4).pairs == 6 + 3


@pytest.mark.parametrize("kind", architecture.KNOWN)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_real_model(kind: str, tied: bool) -> None:
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = architecture.of(config.to_dict())
    assert found is not None
    assert found.num_parameters == sum(p.numel() for p in model.parameters())
    named = dict(model.named_modules())
    assert all(
        (named[name].in_features, named[name].out_features) == found.linears[name.rpartition(".")[2]]
        for name in named
        if name.endswith("_proj")
    )


def test_operations_of_matrices_are_those_that_torch_counts() -> None:
    config = AutoConfig.for_model(
        "qwen2", vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(12).view(1, 12)).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    found = architecture.of(config.to_dict())
    assert found is not None
    expected = model_flops(found, Passes(), passes([12], 12)) - 12 * 2 * 32 * passes([12], 0).pairs
    assert sum(n for op, n in counted.items() if "attention" not in str(op)) == expected


def test_an_architecture_whose_shapes_are_not_known_is_not_guessed_at() -> None:
    assert architecture.of({"model_type": "mamba"}) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_device_is_known_by_the_words_of_its_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
