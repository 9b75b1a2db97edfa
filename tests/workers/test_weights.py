"""The wire format of weights, and what is found out about an engine that did not take them over."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from raml_ray.settings import EngineConfig
from raml_ray.workers import weights
from raml_ray.workers.engine import Engine
from raml_ray.workers.sampling import Completion, Request, Sampling

VOCAB_SIZE = 61
SETTINGS = EngineConfig(max_model_len=64, kv_cache_gib=0.05, max_num_seqs=16)


def policy(tied: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(7)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return Qwen2ForCausalLM(config).eval()


def perturb(module: nn.Module, scale: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


SEQUENCES = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7, 9], [60, 0]]


def agreement(engine: Engine, model: nn.Module) -> weights.Agreement:
    return weights.compare(engine.token_logprobs(SEQUENCES), list(weights.token_logprobs(model, SEQUENCES)))


def test_packed_weights_give_back_names_shapes_and_values() -> None:
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor(7.5),
        "steps": torch.tensor([1, 2**40]),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    arrays, layout = weights.pack(tensors.items())
    back = weights.views(arrays, layout)
    assert list(back) == ["a", "b", "steps", "turned"]
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert [array.nbytes for array in arrays] == [24, 4, 16, 24]
    assert layout.num_bytes == 68


def test_what_is_sent_as_it_lies_there_is_not_copied() -> None:
    kept, cast = torch.ones(4), torch.ones(4, dtype=torch.float64)
    arrays, _ = weights.pack([("kept", kept), ("cast", cast)])
    kept[0] = cast[0] = 3
    assert [array.view(np.float32)[0] for array in arrays] == [3, 1]


def test_bfloat16_travels_at_half_the_size() -> None:
    tensors = {"w": torch.full((64,), 1.0 + 2**-10)}
    arrays, layout = weights.pack(tensors.items(), torch.bfloat16)
    # bfloat16 keeps 8 bits of mantissa: 1 + 2^-10 becomes 1
    assert weights.views(arrays, layout)["w"].tolist() == [1.0] * 64
    assert arrays[0].nbytes == 128


def test_read_only_arrays_are_viewed_without_a_copy_or_a_warning() -> None:
    (array,), layout = weights.pack([("w", torch.ones(4))])
    array.flags.writeable = False
    assert weights.views([array], layout)["w"].data_ptr() == array.ctypes.data


def test_the_checksum_knows_every_byte_and_every_name() -> None:
    (array,), layout = weights.pack([("w", torch.zeros(4))])
    changed = array.copy()
    changed[3] ^= 1
    renamed = weights.layout_of([("v", torch.zeros(4))], torch.float32)
    sums = {weights.checksum([array], layout), weights.checksum([changed], layout), weights.checksum([array], renamed)}
    assert len(sums) == 3
    assert weights.checksum([array.copy()], layout) == weights.checksum([array], layout)


def test_a_checksum_of_many_parts_knows_their_order() -> None:
    part = weights._HASHED_AT_ONCE
    (array,), layout = weights.pack([("w", torch.zeros(2 * part // 4 + 16))])
    found = set()
    for place in (0, part, 2 * part, None):  # in the first part, the second, the last, and nowhere
        changed = array.copy()
        if place is not None:
            changed[place] = 1
        assert weights.checksum([changed], layout) == weights.checksum([changed], layout)
        found.add(weights.checksum([changed], layout))
    assert len(found) == 4


def test_buckets_hold_no_more_than_asked_and_one_large_tensor_is_one() -> None:
    tensors = [(name, torch.ones(num)) for name, num in (("a", 16), ("b", 16), ("c", 40), ("d", 1), ("e", 16))]
    # 64, 64, 160, 4 and 64 bytes
    parts = list(weights.buckets(tensors, torch.float32, 128))
    assert [[entry.name for entry in layout.entries] for _, layout in parts] == [["a", "b"], ["c"], ["d", "e"]]
    assert [layout.num_bytes for _, layout in parts] == [128, 160, 68]
    found = {name: tensor for part in parts for name, tensor in weights.views(*part).items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors)
    assert list(weights.buckets([], torch.float32, 128)) == []


def test_a_scratch_gives_the_bytes_of_fresh_memory_whatever_lay_in_it() -> None:
    scratch, half = weights.Scratch(), torch.bfloat16
    (first,), _ = weights.pack([("a", torch.full((40,), 7.0))], half, scratch)
    tensors = [("b", torch.ones(3)), ("c", torch.ones(5))]
    found, layout = weights.pack(tensors, half, scratch)
    expected, _ = weights.pack(tensors, half)
    assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]
    assert weights.checksum(found, layout) == weights.checksum(expected, layout)
    assert np.shares_memory(first, found[0])
    assert not np.shares_memory(found[0], found[1])


def test_arrays_that_are_not_what_their_layout_says_are_refused() -> None:
    (array,), layout = weights.pack([("w", torch.zeros(4))])
    for wrong in ([array[:-1]], [array, array], [], [array.view(np.float32)], [array.reshape(4, 4)]):
        with pytest.raises(ValueError, match="layout says"):
            weights.views(wrong, layout)


def test_agreement_is_the_largest_difference_and_k3() -> None:
    engine = [np.array([-1.0, -2.0]), np.array([-3.0])]
    learner = [np.array([-1.0, -2.0 + math.log(2)]), np.array([-3.0])]
    found = weights.compare(engine, learner)
    assert found.max_abs == pytest.approx(math.log(2))
    # ratio 2 at one of three tokens: (2 - 1 - ln 2) / 3
    assert found.k3 == pytest.approx((1 - math.log(2)) / 3)


def test_log_probabilities_of_other_tokens_are_not_compared() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        weights.compare([np.zeros(3)], [np.zeros(4)])
    with pytest.raises(ValueError, match="no token"):
        weights.compare([], [])


def test_the_first_module_that_differs_is_named_and_nan_differs() -> None:
    same = np.ones((2, 3))
    engine = {"embed_tokens": same, "layers.0": same, "norm": same + 1}
    learner = {"embed_tokens": same, "layers.0": same, "norm": same}
    assert weights.first_difference(engine, learner, 1e-6) == "norm"
    assert weights.first_difference(learner, learner, 0.0) is None
    assert weights.first_difference(learner, learner | {"layers.0": same * np.nan}, 1e-6) == "layers.0"


def test_the_learners_outputs_lead_from_the_embedding_to_the_logits() -> None:
    model = policy(tied=True)
    outputs = weights.learner_outputs(model, SEQUENCES[0])
    assert list(outputs) == ["embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "lm_head"]
    embedding = model.get_input_embeddings().weight.detach()
    assert np.array_equal(outputs["embed_tokens"], embedding[SEQUENCES[0]].numpy())
    assert outputs["lm_head"] == pytest.approx((embedding @ torch.from_numpy(outputs["norm"][-1])).numpy(), abs=1e-5)


@pytest.mark.vllm
@pytest.mark.parametrize("tied", [True, False])
def test_an_engine_agrees_with_the_learner_after_every_load(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raml_ray.workers import engine_extension

    model = policy(tied)
    model.save_pretrained(tmp_path)
    engine = Engine(str(tmp_path), SETTINGS, seed=0)
    assert agreement(engine, model).max_abs < 1e-5

    for version in (1, 2):
        perturb(model)
        assert agreement(engine, model).max_abs > 1e-2
        # In one bucket, and in many.
        made = weights.buckets(model.named_parameters(), torch.float32, 2**30 if version == 1 else 20_000)
        parts = [([array.copy() for array in arrays], layout) for arrays, layout in made]
        assert (len(parts) > 5) == (version == 2)
        for array in (array for arrays, _ in parts for array in arrays):
            array.flags.writeable = version == 1  # an array out of an object store is not
        assert engine.load_weights(iter(parts), version) == [weights.checksum(*part) for part in parts]
        assert engine.version == version
        if version == 1:
            for array in parts[0][0]:
                array[:] = 0  # the engine must not go on reading what it was sent
        assert agreement(engine, model).max_abs < 1e-5
    outputs = engine.module_outputs(SEQUENCES[0])
    assert weights.first_difference(outputs, weights.learner_outputs(model, SEQUENCES[0]), 1e-4) is None
    completion = engine.generate([Request([3, 1, 4], 5)], Sampling(1.0, 1.0, -1, 4))[0]
    assert isinstance(completion, Completion)
    assert completion.version == 2

    perturb(model.model.layers[1].mlp)
    outputs = engine.module_outputs(SEQUENCES[0])
    assert weights.first_difference(outputs, weights.learner_outputs(model, SEQUENCES[0]), 1e-4) == "layers.1"

    monkeypatch.setattr(engine_extension, "repack_tied_head", lambda model: None)
    perturb(model)
    engine.load_weights([weights.pack(model.named_parameters())], 3)
    if tied:
        assert agreement(engine, model).max_abs > 1e-4
        outputs = engine.module_outputs(SEQUENCES[0])
        assert weights.first_difference(outputs, weights.learner_outputs(model, SEQUENCES[0]), 1e-4) == "lm_head"
    else:
        assert agreement(engine, model).max_abs < 1e-5
    engine.close()


@pytest.mark.vllm
def test_another_vllm_than_the_one_it_was_written_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    from raml_ray.workers.engine_extension import WorkerExtension

    monkeypatch.setattr(vllm, "__version__", "0.33.0")
    with pytest.raises(RuntimeError, match=r"needs it, and this is vLLM 0\.33\.0"):
        WorkerExtension().raml_start_load()
