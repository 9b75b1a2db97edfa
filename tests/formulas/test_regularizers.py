import math

import pytest
import torch

from raml_ray.formulas import regularizers

# Twice, half, and as likely as under the reference; the last one is padding.
DIFFERENCE = [math.log(2.0), -math.log(2.0), 0.0]


@pytest.mark.parametrize(
    ("estimator", "values", "gradients"),
    [
        ("k1", DIFFERENCE, DIFFERENCE),
        ("k2", [math.log(2.0) ** 2 / 2, math.log(2.0) ** 2 / 2, 0.0], DIFFERENCE),
        # exp(-d) - 1 + d and 1 - exp(-d) of d = log 2 and -log 2
        ("k3", [math.log(2.0) - 0.5, 1 - math.log(2.0), 0.0], [0.5, -1.0, 0.0]),
    ],
)
def test_the_three_estimators_by_hand(estimator, values, gradients):
    ref_BT = torch.full((1, 4), -3.0)
    logprob_BT = (ref_BT + torch.tensor([[*DIFFERENCE, math.inf]])).requires_grad_()
    mask_BT = torch.tensor([[1, 1, 1, 0]])
    found_BT = regularizers.kl(logprob_BT, ref_BT, mask_BT, estimator)
    assert found_BT[0].tolist() == pytest.approx([*values, 0.0], abs=1e-6)
    found_BT.sum().backward()
    assert logprob_BT.grad[0].tolist() == pytest.approx([*gradients, 0.0], abs=1e-6)


def policy_and_reference():
    torch.manual_seed(1)
    return torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)


def expected(values_V, probability_V):
    """Of a value per token its expectation, and that of its gradient: the tokens' own probabilities are not moved."""
    return (probability_V.detach() * values_V).sum()


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_the_expected_gradient_is_that_of_the_divergence(estimator):
    logits_V, reference_V = policy_and_reference()
    log_p_V, log_q_V = logits_V.log_softmax(0), reference_V.log_softmax(0)
    (exact_V,) = torch.autograd.grad((log_p_V.exp() * (log_p_V - log_q_V)).sum(), logits_V, retain_graph=True)
    kl_V = regularizers.kl(log_p_V[None], log_q_V[None], torch.ones(1, 5), estimator)[0].double()
    (found_V,) = torch.autograd.grad(expected(kl_V, log_p_V.exp()), logits_V)
    torch.testing.assert_close(found_V, exact_V, atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_expected_value_is_the_divergence(estimator):
    logits_V, reference_V = policy_and_reference()
    log_p_V, log_q_V = logits_V.log_softmax(0), reference_V.log_softmax(0)
    exact = (log_p_V.exp() * (log_p_V - log_q_V)).sum()
    kl_V = regularizers.kl(log_p_V[None], log_q_V[None], torch.ones(1, 5), estimator)[0].double()
    assert expected(kl_V, log_p_V.exp()).item() == pytest.approx(exact.item(), abs=1e-6)


def test_the_entropy_and_its_gradient_are_met_in_expectation():
    logits_V, _ = policy_and_reference()
    log_p_V = logits_V.log_softmax(0)
    exact = (log_p_V.exp() * log_p_V).sum()
    (exact_V,) = torch.autograd.grad(exact, logits_V, retain_graph=True)
    found = expected(regularizers.negative_entropy(log_p_V[None], torch.ones(1, 5))[0].double(), log_p_V.exp())
    assert found.item() == pytest.approx(exact.item(), abs=1e-6)
    (found_V,) = torch.autograd.grad(found, logits_V)
    torch.testing.assert_close(found_V, exact_V, atol=1e-6, rtol=0)
