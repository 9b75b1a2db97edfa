"""What layers pass on, with and without a subspace; greedy responses against the library's own."""

import pytest
import torch
from transformers import GenerationConfig

from raml_ray.formulas import subspaces
from raml_ray.workers import greedy, residual_stream
from tests.workers import tiny

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_states_are_those_that_the_library_gives() -> None:
    model = tiny.model().eval()
    found_LKD = residual_stream.states(model, residual_stream.layers(model, ()), IDS, [2, 7])
    with torch.no_grad():
        expected = model.base_model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    assert found_LKD.shape == (2, 2, 32)
    # after the first layer; what the library gives after the last one has the final norm in it
    assert torch.allclose(found_LKD[0], expected[1][0, [2, 7]], atol=1e-6)
    assert torch.allclose(model.base_model.norm(found_LKD[1]), expected[2][0, [2, 7]], atol=1e-5)


def test_layers_that_are_not_there_are_refused() -> None:
    model = tiny.model()
    assert list(residual_stream.layers(model, (2,))) == [2]
    with pytest.raises(ValueError, match=r"features\.layers: the policy has layers 1 \.\. 2, not \[3\]"):
        residual_stream.layers(model, (3,))


def test_a_projected_layer_passes_on_nothing_in_the_subspace_within_the_block_alone() -> None:
    model = tiny.model().eval()
    layers, basis_DR = residual_stream.layers(model, ()), subspaces.random_subspace(32, 3, 0).float()
    mean_D = torch.full((32,), 0.5)
    before_LKD = residual_stream.states(model, layers, IDS, range(8))
    with residual_stream.projected(layers[1], basis_DR, mean_D):
        # hooks run in the order of their coming: what is read is what the next layer gets
        inside_LKD = residual_stream.states(model, layers, IDS, range(8))
    assert torch.allclose((inside_LKD[0] - mean_D) @ basis_DR, torch.zeros(8, 3), atol=1e-5)
    assert torch.allclose(inside_LKD[0], subspaces.without(before_LKD[0], basis_DR, mean_D), atol=1e-5)
    assert not torch.allclose(inside_LKD[1], before_LKD[1], atol=1e-2)
    assert residual_stream.states(model, layers, IDS, range(8)).equal(before_LKD)


def test_greedy_responses_are_the_librarys_whatever_stands_beside_them() -> None:
    model = tiny.model().eval()
    prompts = [IDS, [7, 7], [8, 3, 8, 3, 8]]
    found = greedy.responses(model, prompts, {0}, max_tokens=12)
    for prompt, response in zip(prompts, found, strict=True):
        config = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=0, pad_token_id=0)
        (alone,) = model.generate(torch.tensor([prompt]), generation_config=config)
        assert response == alone[len(prompt) :].tolist()


def test_a_response_ends_with_the_token_that_stops_it() -> None:
    model = tiny.model().eval()
    (whole,) = greedy.responses(model, [IDS], set(), max_tokens=10)
    model.generation_config.repetition_penalty = 5.0
    assert greedy.responses(model, [IDS], set(), max_tokens=10) == [whole]
    stop = whole[3]
    (ended,) = greedy.responses(model, [IDS], {stop}, max_tokens=10)
    assert ended == whole[: whole.index(stop) + 1]
    with pytest.raises(ValueError, match=r"features\.max_tokens=60"):
        greedy.responses(model, [IDS], {0}, max_tokens=60)
