"""Pseudo-updates of real policies: what attention gave, what patched weights give, and the gradient beside them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.linalg import vector_norm
from transformers import PreTrainedModel

from raml_ray.workers import probe, pseudo_update, traced_attention
from raml_ray.workers.answer_loss import answer_loss
from raml_ray.workers.probe_text import Probe
from tests.workers.test_probe import SUFFIX, TOKENS, policy

FIRST = 5
"""The first token of the trajectory."""
MODELS = ("llama", "qwen2", "qwen3", "gemma3_text")


def grouped(model_type: str, **changed: object) -> PreTrainedModel:
    return policy(model_type, num_hidden_layers=3, head_dim=32, **changed)


def update(model: PreTrainedModel, token_ids: list[int] = TOKENS) -> pseudo_update.TokenUpdate:
    return pseudo_update.token_update(model, token_ids, first_position=FIRST, suffix=SUFFIX, seed=0)


@pytest.mark.parametrize("model_type", MODELS)
def test_traced_attention_is_that_of_transformers_own_eager_one(model_type: str) -> None:
    layers = traced_attention.traced(grouped(model_type), TOKENS, [3, 29])
    eager = grouped(model_type, attn_implementation="eager")
    with torch.no_grad():
        expected = eager(torch.tensor([TOKENS]), output_attentions=True).attentions
    for layer, attention_1HTT in zip(layers, expected, strict=True):
        assert torch.allclose(layer.logit_HKT.softmax(-1), attention_1HTT[0][:, [3, 29]], atol=1e-6)
        value_HTE = layer.input_TD @ layer.value_weight_HDE + layer.value_bias_HE[:, None]
        assert torch.allclose(layer.value_HTE, value_HTE, atol=1e-6)


def test_tracing_leaves_the_policy_as_it_was() -> None:
    model = grouped("qwen2")
    before = model(torch.tensor([TOKENS])).logits
    traced_attention.traced(model, TOKENS, [3])
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(torch.tensor([TOKENS])).logits, before)


def test_attention_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    exact: Callable[..., tuple[Tensor, None]] = traced_attention.sdpa_attention_forward

    def off(*arguments: object, **kwargs: object) -> tuple[Tensor, None]:
        return exact(*arguments, **kwargs)[0] * 1.0001, None

    monkeypatch.setattr(traced_attention, "sdpa_attention_forward", off)
    with pytest.raises(ValueError, match="layer 0 of this qwen2 policy attends in another way"):
        traced_attention.traced(grouped("qwen2"), TOKENS, [3])


def test_architectures_without_a_value_projection_are_refused() -> None:
    with pytest.raises(ValueError, match="gpt_neox policies cannot be traced"):
        traced_attention.traced(policy("gpt_neox", num_key_value_heads=None), TOKENS, [3])


@pytest.mark.parametrize("model_type", MODELS)
def test_patched_heads_give_without_the_token_what_they_gave_with_it(model_type: str) -> None:
    found = update(grouped(model_type))
    for reader in pseudo_update.READERS:
        heads = found.heads[reader]
        assert heads.mass.shape == (3, 4)
        assert heads.reconstruction_error.max() < 1e-5
        assert heads.mass.min() > 0
    assert vector_norm(found.heads["answer"].mass - found.heads["token"].mass) > 0.01


def test_masses_directions_and_cosines_are_those_of_the_policys_own_tensors() -> None:
    model = grouped("llama", attn_implementation="eager")
    found = update(grouped("llama")).heads["answer"]
    # the last suffix token before the answer reads the trajectory's last token
    place, query = len(TOKENS) - 1, len(TOKENS) + 1
    ids = torch.tensor([TOKENS + SUFFIX.token_ids])
    model.zero_grad()
    answer_loss(model, TOKENS[:-1], SUFFIX).backward()
    with torch.no_grad():
        outputs = model(ids, output_attentions=True, output_hidden_states=True)
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        block, group = model.model.layers[layer], head // 2
        attention_T = outputs.attentions[layer][0, head, query]
        with torch.no_grad():
            input_TD = block.input_layernorm(outputs.hidden_states[layer])[0]
        weight_DE = block.self_attn.v_proj.weight.detach()[32 * group : 32 * group + 32].T
        gradient_DE = block.self_attn.v_proj.weight.grad[32 * group : 32 * group + 32].T
        mass = attention_T[place]
        old_T = attention_T.clone()
        old_T[place] = 0
        old_T /= old_T.sum()
        read_D = old_T @ input_TD
        direction_E = (input_TD[place] - read_D) @ weight_DE
        patch_DE = torch.outer(read_D, mass * direction_E) / (read_D @ read_D)
        assert found.mass[layer, head].item() == pytest.approx(mass.item(), rel=1e-4)
        assert found.direction_norm[layer, head].item() == pytest.approx(vector_norm(direction_E).item(), rel=1e-4)
        assert found.patch_norm[layer, head].item() == pytest.approx(vector_norm(patch_DE).item(), rel=1e-4)
        cosine = torch.cosine_similarity(patch_DE.flatten(), -gradient_DE.flatten(), dim=0)
        assert found.cosine[layer, head].item() == pytest.approx(cosine.item(), abs=1e-4)


def test_lhat_beside_an_update_is_the_probes() -> None:
    model = grouped("qwen2")
    found = update(model)
    ((expected,),) = probe.answer_nll(model, [Probe(TOKENS, [29, 30], [SUFFIX])], memory_mib=64)
    assert [found.lhat_before, found.lhat_after] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_gradient_says_how_the_loss_changes() -> None:
    model = grouped("qwen2").double()
    loss, gradients = pseudo_update.value_gradients(model, TOKENS, SUFFIX)
    weight = model.model.layers[1].self_attn.v_proj.weight
    with torch.no_grad():  # of group 1, which query heads 2 and 3 share
        weight[32:] += 1e-5 * gradients[1][2].T / vector_norm(gradients[1][2])
        moved = float(answer_loss(model, TOKENS, SUFFIX))
    assert (moved - loss) / 1e-5 == pytest.approx(float(vector_norm(gradients[1][2])), rel=1e-2)
    assert torch.equal(gradients[1][2], gradients[1][3])


def test_the_nulls_are_decided_by_the_seed_and_need_another_token() -> None:
    model = grouped("qwen2")
    one, same = update(model), update(model)
    assert torch.equal(one.heads["answer"].cosine_random, same.heads["answer"].cosine_random)
    assert torch.isfinite(one.heads["token"].cosine_shuffled).all()
    alone = update(model, TOKENS[: FIRST + 1])
    assert alone.heads["answer"].cosine_shuffled.isnan().all()


@pytest.mark.parametrize("model_type", MODELS)
def test_one_patch_stands_in_for_a_whole_trajectory_in_all_heads(model_type: str) -> None:
    """In the policy's own first layer, whose inputs no patch changes: the trajectory's keys hidden, W_v patched."""
    model = grouped(model_type)
    new = range(FIRST, len(TOKENS))
    patches = pseudo_update.value_patches(model, TOKENS, SUFFIX, new)
    ids = torch.tensor([TOKENS + SUFFIX.token_ids])
    answer = [place - 1 for place in range(len(TOKENS) + 2, len(TOKENS) + 5)]
    attention = model.model.layers[0].self_attn
    outputs: list[Tensor] = []
    attention.register_forward_hook(lambda *a: outputs.append(a[2][0][0, answer].detach()))
    seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with torch.no_grad():
        model(ids)
        seen[answer, FIRST : len(TOKENS)] = False
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
        model(ids, attention_mask=mask)
        attention.v_proj.weight += patches["model.layers.0.self_attn.v_proj.weight"]
        model(ids, attention_mask=mask)
    whole, hidden, patched = outputs
    assert vector_norm(patched - whole) < 1e-5 * vector_norm(whole)
    assert vector_norm(hidden - whole) > 0.1 * vector_norm(whole)


def test_what_has_no_update_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype=float32"):
        update(grouped("qwen2").bfloat16())
    with pytest.raises(ValueError, match="no trajectory behind a prompt"):
        update(grouped("qwen2"), TOKENS[:FIRST])


def test_positions_are_spread_evenly_and_never_twice() -> None:
    assert pseudo_update.evenly(1, 9, 3) == [1, 5, 9]
    assert pseudo_update.evenly(1, 2, 5) == [1, 2]
    assert pseudo_update.evenly(1, 0, 5) == []
