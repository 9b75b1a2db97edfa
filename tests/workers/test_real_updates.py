"""Changes of W_v by training: what each step is, what it does to the answer, and that the policy stays as it was."""

import math

import pytest
import torch
from torch.linalg import matrix_rank, vector_norm

from raml_ray.formulas.landscape import norm
from raml_ray.settings import RealUpdatesConfig
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers import landscape, real_updates
from raml_ray.workers.answer_loss import answer_loss
from raml_ray.workers.real_updates import Case
from tests.workers.test_landscape import bits, grouped
from tests.workers.test_probe import SUFFIX, TOKENS

CASE = Case(TOKENS[:5], TOKENS[5:], SUFFIX)
SETTINGS = RealUpdatesConfig(lora_rank=2, lora_steps=40)


def test_one_step_of_sgd_is_the_rate_times_minus_the_gradient_and_more_steps_go_on_from_there() -> None:
    model = grouped()
    descent = landscape.descent(model, CASE.prompt_ids, SUFFIX)
    one = real_updates.descended(model, CASE.prompt_ids, SUFFIX, 1, 0.25)
    assert set(one) == {f"model.layers.{layer}.self_attn.v_proj.weight" for layer in range(3)}
    for name, change in one.items():
        assert torch.allclose(change, 0.25 * descent[name], atol=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in one:
                parameter += one[name]
    second = landscape.descent(model, CASE.prompt_ids, SUFFIX)
    two = real_updates.descended(grouped(), CASE.prompt_ids, SUFFIX, 2, 0.25)
    for name, change in two.items():
        assert torch.allclose(change, one[name] + 0.25 * second[name], atol=1e-6)


def test_a_distilled_adapter_says_without_the_trajectory_what_the_policy_says_with_it() -> None:
    model = grouped()
    change = real_updates.distilled(model, CASE, SUFFIX, SETTINGS, 0)
    before, after = real_updates.effect(model, CASE), real_updates.effect(model, CASE, change)
    assert after.kl < 0.2 * before.kl
    assert all(matrix_rank(part) <= 2 for part in change.values())
    same, other = (real_updates.distilled(model, CASE, SUFFIX, SETTINGS, seed) for seed in (0, 1))
    assert all(torch.equal(change[name], same[name]) for name in change)
    assert any(not torch.equal(change[name], other[name]) for name in change)


def test_every_change_leaves_the_policy_as_it_was() -> None:
    model = grouped()
    before = bits(model)
    made = real_updates.changes(model, CASE, SUFFIX, SETTINGS, 0)
    assert list(made) == list(real_updates.KINDS)
    for change in made.values():
        real_updates.effect(model, CASE, change)
    assert all(torch.equal(one, two) for one, two in zip(before, bits(model), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_the_policy_says_is_split_by_the_answers_tokens() -> None:
    model = grouped()
    found = real_updates.effect(model, CASE)
    first = real_updates.first_token_alone(SUFFIX)
    assert first == AnswerSuffix(SUFFIX.token_ids, [False, False, True, False, False])
    assert found.lhat == pytest.approx(answer_loss(model, CASE.prompt_ids, SUFFIX).item(), abs=1e-6)
    assert found.lhat_first == pytest.approx(answer_loss(model, CASE.prompt_ids, first).item(), abs=1e-6)
    assert found.lhat == pytest.approx((found.lhat_first + 2 * (found.lhat_rest or 0)) / 3, abs=1e-6)
    read = real_updates.effect(model, CASE, with_trajectory=True)
    assert read.kl == pytest.approx(0, abs=1e-6) and found.kl > 0.01
    assert (
        real_updates.effect(model, Case(CASE.prompt_ids, CASE.trajectory_ids, AnswerSuffix([4], [True]))).lhat_rest
        is None
    )


def test_what_is_made_for_one_token_hangs_on_that_token_alone() -> None:
    model, first = grouped(), real_updates.first_token_alone(SUFFIX)
    other = AnswerSuffix([*SUFFIX.token_ids[:3], 1, 2], SUFFIX.is_answer)
    one = real_updates.descended(model, CASE.prompt_ids, first, 3, 0.1)
    same = real_updates.descended(model, CASE.prompt_ids, real_updates.first_token_alone(other), 3, 0.1)
    assert all(torch.allclose(one[name], same[name], atol=1e-7) for name in one)
    whole = real_updates.descended(model, CASE.prompt_ids, SUFFIX, 3, 0.1)
    assert vector_norm(torch.stack([(whole[n] - one[n]).norm() for n in one])) > 0.1 * norm(one)


def test_the_divergence_by_hand() -> None:
    teacher_AV = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    logits_AV = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    # (log 2 + log 2/3) / 2 for the first token, none for the second, and the mean of the two
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert real_updates._divergence(teacher_AV, logits_AV).item() == pytest.approx(expected)


def test_a_change_that_is_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the change of W_v by lora is 0"):
        real_updates.changes(grouped(), CASE, SUFFIX, SETTINGS.model_copy(update={"lora_learning_rate": 0.0}), 0)
