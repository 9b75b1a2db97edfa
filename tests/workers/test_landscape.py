"""Planes through a real policy's weights: its own in the middle, untouched afterwards, and what the measured update does."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from raml_ray.formulas import landscape as formulas
from raml_ray.formulas.landscape import Point
from raml_ray.workers import landscape, probe
from raml_ray.workers.answer_loss import answer_loss, answer_losses
from raml_ray.workers.probe_text import Probe
from tests.workers.test_probe import SUFFIX, TOKENS, policy

PROMPT, TRAJECTORY = TOKENS[:5], TOKENS[5:]


def grouped(**changed: object) -> PreTrainedModel:
    return policy("qwen2", num_hidden_layers=3, head_dim=32, **changed)


def bits(model: PreTrainedModel) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_middle_is_the_policy_and_the_policy_stays_as_it_was(dtype: torch.dtype) -> None:
    model = grouped().to(dtype)
    before = bits(model)
    plane = landscape.random_plane(model, 0, "filter")
    prefixes = [PROMPT, TOKENS]
    points = [Point(1.0, 0.0), Point(0.0, 0.0), Point(0.0, 1.0), Point(0.0, 0.0)]
    far, middle, other, again = landscape.losses(model, plane, points, prefixes, SUFFIX)
    with torch.no_grad():
        assert middle == again == answer_losses(model, prefixes, SUFFIX).tolist()
    assert abs(far[0] - middle[0]) > 1e-3 < abs(other[1] - middle[1])
    assert all(torch.equal(one, two) for one, two in zip(before, bits(model), strict=True))


def test_losses_are_those_of_a_policy_that_has_the_moved_weights() -> None:
    model, plane = grouped(), landscape.random_plane(grouped(), 0, "tensor")
    (found,) = landscape.losses(model, plane, [Point(0.5, -0.25)], [TOKENS], SUFFIX)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in plane.first:
                parameter += 0.5 * plane.first[name] - 0.25 * plane.second[name]
    ((expected,),) = probe.answer_nll(model, [Probe(TOKENS, [len(TOKENS)], [SUFFIX])], memory_mib=64)
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_losses_of_one_pass_are_those_of_a_pass_for_each_prefix() -> None:
    for model in (grouped(), policy("mistral", sliding_window=8)):
        prefixes = [TOKENS, PROMPT, TOKENS[:11]]
        with torch.no_grad():
            together = answer_losses(model, prefixes, SUFFIX)
            apart = [answer_loss(model, prefix, SUFFIX).item() for prefix in prefixes]
        assert together.tolist() == pytest.approx(apart, abs=1e-5)
        assert len(set(apart)) == 3


def test_embeddings_and_the_output_head_stay_where_they_are() -> None:
    for tied in (False, True):
        names = set(landscape.weights_of(grouped(tie_word_embeddings=tied)))
        assert not names & {"lm_head.weight", "model.embed_tokens.weight"}
        assert {"model.norm.weight", "model.layers.0.self_attn.v_proj.bias"} <= names


def test_directions_hang_on_the_seed_and_the_weights_scale() -> None:
    model = grouped()
    one, same, other = (landscape.random_plane(model, seed, "filter") for seed in (0, 0, 1))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(one.first[name], same.first[name])
    assert not torch.equal(one.first[name], other.first[name])
    assert not torch.equal(one.first[name], one.second[name])
    weight = landscape.weights_of(model)[name]
    assert torch.allclose(one.first[name].norm(dim=1), weight.norm(dim=1), rtol=1e-5)
    assert one.first["model.norm.weight"].abs().max() == 0


def test_a_trajectorys_update_and_the_gradient_span_its_plane() -> None:
    model = grouped()
    found = landscape.update_plane(model, PROMPT, TRAJECTORY, SUFFIX)
    at = formulas.projected(found.update, found.plane)
    assert at.x**2 + at.y**2 == pytest.approx(1.0, rel=1e-4)
    small = 0.01 / found.plane.length
    (start,), (down,) = landscape.losses(model, found.plane, [Point(0.0, 0.0), Point(small, 0.0)], [PROMPT], SUFFIX)
    slope = formulas.norm(landscape.descent(model, PROMPT, SUFFIX))
    assert down - start == pytest.approx(-0.01 * slope, rel=0.1)
    # the patched weights, and the plane's point for them, are the same place
    (there,) = landscape.losses(model, found.plane, [at], [PROMPT], SUFFIX)
    assert there == pytest.approx([landscape.loss_after(model, found.update, PROMPT, SUFFIX)], abs=1e-4)


def test_the_path_ends_where_the_whole_trajectory_lies() -> None:
    model = grouped()
    found = landscape.update_plane(model, PROMPT, TRAJECTORY, SUFFIX)
    places = [0, 10, len(TRAJECTORY)]
    (_, start, _), (_, middle, off), (last, end, on) = landscape.path(
        model, found.plane, PROMPT, TRAJECTORY, SUFFIX, places
    )
    assert (start, last) == (Point(0.0, 0.0), len(TRAJECTORY))
    assert end == pytest.approx(formulas.projected(found.update, found.plane), abs=1e-6)
    assert on < 1e-2 < off < 1
    assert middle.x**2 + middle.y**2 > 0


def test_changes_are_compared_at_one_length() -> None:
    change = {"a": torch.tensor([3.0, 4.0])}
    assert landscape.scaled(change, 10.0)["a"].tolist() == pytest.approx([6.0, 8.0])
    noise = landscape.noise_like(change, 0)
    assert formulas.norm(noise) == pytest.approx(5.0)
    assert torch.equal(noise["a"], landscape.noise_like(change, 0)["a"])
    with pytest.raises(ValueError, match="no direction"):
        landscape.scaled({"a": torch.zeros(2)}, 1.0)
