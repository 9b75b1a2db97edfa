"""What a learner takes, by hand and against what autograd keeps."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from raml_ray.formulas import architecture, memory
from raml_ray.formulas.architecture import Architecture
from raml_ray.formulas.memory import GIB, Split
from raml_ray.text.batches import Example, collate
from raml_ray.workers import attention, policy

# One layer of 38 parameters, embeddings, head and last norm of 22: 60 (tests/formulas/test_architecture.py).
SMALL = Architecture("llama", 1, 2, 3, 1, 1, 2, 5, False, False, False)


def state(split: Split) -> tuple[int, int, int]:
    return memory.estimate(SMALL, split, 0, on_host=False)[:3]


def test_weights_gradients_and_moments_are_counted_by_hand() -> None:
    # 4 x 60, and whole at a time 4 x (22 + 2 x 38); 4 x 60; 8 x 60.
    assert state(Split(1, 4)) == (240 + 392, 240, 480)
    # Two ranks hold halves, and sums of gradients whole before they are halved; half the bytes while they compute.
    assert state(Split(2, 2)) == (120 + 196, 240 + 120, 240)
    # Adapters alone are trained: 12 parameters beside 60 frozen ones.
    assert state(Split(1, 4, adapters=12)) == (4 * 72 + 392, 48, 96)
    assert state(Split(1, 4, reference=True)) == (2 * (240 + 392), 240, 480)
    # Elsewhere are weights, halved gradients and moments.
    assert state(Split(2, 2, offload=True)) == (196, 240, 0)


def test_deepspeed_s_stages_split_one_thing_more_each() -> None:
    # Its own float32 weights, halved, beside those in two bytes: whole, whole, and halved with what is whole at a time.
    assert state(Split(2, 2, stage=1)) == (120 + 120, 240 + 120, 240)
    assert state(Split(2, 2, stage=2)) == (120 + 120, 120, 240)
    assert state(Split(2, 2, stage=3)) == (120 + 60 + 196, 120, 240)


def test_activations_and_logits_are_counted_by_hand() -> None:
    found = memory.estimate(SMALL, Split(1, 4), 10, on_host=False)
    # A token: two norms of 2 x 12; 3 x 2 x 4 + 2 x 2 x 4 around attention; 4 x 3 x 4 in the MLP; then the last norm, what
    # is picked from it, and three gradients of the MLP's width.
    assert found.activations == 10 * (48 + 40 + 48 + 24 + 8 + 36)
    assert found.logits == 10 * 5 * 12
    assert memory.estimate(SMALL, Split(1, 4), 5000, on_host=False).logits == 1024 * 5 * 12
    # The host's heap keeps holes.
    assert memory.estimate(SMALL, Split(1, 4), 10, on_host=True).activations == 2040 * 1.25


def test_recomputed_layers_keep_what_goes_into_them() -> None:
    deep = SMALL._replace(num_layers=10)
    whole, again = (
        memory.estimate(deep, Split(1, 4, recompute=recompute), 1, on_host=False).activations
        for recompute in (False, True)
    )
    assert whole - again == 9 * 136 - 10 * 2 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_layer_keeps_is_what_autograd_saves(dtype: torch.dtype) -> None:
    kept = []
    for num_layers in (1, 2):
        config = Qwen2Config(
            vocab_size=50, hidden_size=128, intermediate_size=352, num_hidden_layers=num_layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256,
        )  # fmt: skip
        model = Qwen2ForCausalLM(config).to(dtype)
        model.set_attn_implementation(attention.PACKED)
        batch = collate([Example([1], [2] * 99)] * 2, packing=True)
        kept.append(_saved(model, batch.input_ids_BT, batch.position_ids_BT) / 200)
    made = architecture.of(config.to_dict())
    assert made is not None
    split = Split(1, dtype.itemsize)
    layers = [memory._bytes_per_token(made._replace(num_layers=num), split) for num in (1, 2)]
    assert kept[1] - kept[0] == pytest.approx(layers[1] - layers[0], rel=0.05)


def _saved(model: Qwen2ForCausalLM, input_ids_BT: torch.Tensor, position_ids_BT: torch.Tensor) -> int:
    """Bytes of the storages, weights aside, that the backward pass will read."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.token_logprobs(model, input_ids_BT, None, position_ids_BT)
        return sum(storage.nbytes() for storage in storages.values())


def test_the_longest_that_fits_fits_and_one_token_more_does_not() -> None:
    made = Architecture("qwen2", 24, 896, 4864, 14, 2, 64, 151936, True, True, False)  # Qwen2.5-0.5B
    split = Split(1, 2)
    found = memory.longest(made, split, 80 * GIB, on_host=False)
    assert memory.estimate(made, split, found, on_host=False).total <= 80 * GIB
    assert memory.estimate(made, split, found + 1, on_host=False).total > 80 * GIB
    assert memory.longest(made, split, 80 * GIB, on_host=True) < found
    assert memory.longest(made, split, 4 * GIB, on_host=False) == 0
