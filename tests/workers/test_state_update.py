"""A token of a recurrent policy as one change of its states: exact for every query, and for the policy as a whole."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from raml_ray.miniature import base, twins
from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import BaseConfig
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers import probe, state_update
from raml_ray.workers.answer_loss import answer_loss
from raml_ray.workers.probe_text import Probe
from tests.workers.test_probe import SUFFIX, TOKENS, one_forward_per_prefix

KINDS = ("linear", "delta")
FIRST = 5


def twin(kind: str) -> PreTrainedModel:
    settings = BaseConfig(attention=kind, hidden_size=64, num_heads=2, num_layers=3, intermediate_size=64)
    return base.initial(settings, miniature.build(), seed=0).eval()


def update(model: PreTrainedModel, token_ids: list[int] = TOKENS) -> state_update.TokenUpdate:
    return state_update.token_update(model, token_ids, first_position=FIRST, suffix=SUFFIX, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_serves_every_query(kind: str) -> None:
    heads = update(twin(kind)).heads["answer"]
    assert heads.patch_norm.shape == (3, 1)
    assert heads.reconstruction_error.max() < 1e-5
    assert heads.transfer_error.max() < 1e-4
    assert heads.patch_norm.min() > 0.01
    assert heads.mass.isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_change_would_be_noticed(kind: str) -> None:
    model, whole = twin(kind), twins.Memory()
    states = state_update.states_after(model, TOKENS[:-1])
    with torch.no_grad():
        model.base_model(input_ids=torch.tensor([TOKENS + SUFFIX.token_ids]), use_cache=False, memory=whole)
    place = len(TOKENS) - 1
    right = state_update.change(whole.written[1], states[1], place)
    error_G, left_G = state_update._errors(whole.written[1], states[1][0], 0.9 * right, place)
    assert left_G.item() == pytest.approx(0.1, abs=1e-4)  # a state is affine in the one before
    assert error_G > 1e-3
    error_G, left_G = state_update._errors(whole.written[1], states[1][0], right, place)
    assert left_G < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_changed_states_stand_in_for_the_token_in_the_whole_policy(kind: str) -> None:
    model, whole = twin(kind), twins.Memory()
    found = update(model)
    states = state_update.states_after(model, TOKENS[:-1])
    with torch.no_grad():
        model.base_model(input_ids=torch.tensor([TOKENS + SUFFIX.token_ids]), use_cache=False, memory=whole)
        place = len(TOKENS) - 1
        patched = {at: states[at] + state_update.change(whole.written[at], states[at], place) for at in states}
        instead = state_update.loss_from(model, patched, len(TOKENS), SUFFIX).item()
    assert found.lhat_before == pytest.approx(answer_loss(model, TOKENS[:-1], SUFFIX).item(), abs=1e-5)
    assert found.lhat_after == pytest.approx(instead, abs=1e-5)
    assert abs(found.lhat_after - found.lhat_before) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_says_how_the_loss_changes_with_the_state(kind: str) -> None:
    model = twin(kind)
    states = state_update.states_after(model, TOKENS)
    loss, gradients = state_update.state_gradients(model, states, len(TOKENS), SUFFIX)
    step = 1e-2 * gradients[1] / gradients[1].norm()
    with torch.no_grad():
        there, back = (
            state_update.loss_from(model, states | {1: states[1] + sign * step}, len(TOKENS), SUFFIX).item()
            for sign in (1, -1)
        )
    assert (there - back) / 2e-2 == pytest.approx(float(gradients[1].norm()), rel=2e-2)
    assert loss == pytest.approx(answer_loss(model, TOKENS, SUFFIX).item(), abs=1e-5)


def test_nulls_need_another_token_and_what_has_no_update_is_refused() -> None:
    model = twin("delta")
    assert torch.isfinite(update(model).heads["answer"].cosine_shuffled).all()
    assert update(model, TOKENS[: FIRST + 1]).heads["answer"].cosine_shuffled.isnan().all()
    bare = AnswerSuffix([4, 9], [True, True])
    with pytest.raises(ValueError, match=r"set analyze\.suffix to some text"):
        state_update.token_update(model, TOKENS, first_position=FIRST, suffix=bare, seed=0)
    with pytest.raises(ValueError, match="no trajectory behind a prompt"):
        update(model, TOKENS[:FIRST])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory_mib", [0.4, 64])
def test_the_probe_reads_a_twin_by_its_states(kind: str, memory_mib: float) -> None:
    model = twin(kind)
    ((found,),) = probe.answer_logprobs(model, [Probe(TOKENS, range(1, 31), [SUFFIX])], memory_mib=memory_mib)
    assert np.abs(found.numpy() - one_forward_per_prefix(model, range(1, 31), SUFFIX)).max() < 1e-5
