import math

import pytest
import torch

from raml_ray.formulas import off_policy

OLD_BT = torch.tensor([[0.5, 0.9, 0.3]]).log()
ROLLOUT_BT = torch.tensor([[0.5, 0.1, 0.6]]).log()  # ratios 1, 9, 1/2


@pytest.mark.parametrize(("how", "weights"), [("tis", [1.0, 2.0, 0.5]), ("mis", [1.0, 0.0, 0.5]), ("none", [1.0] * 3)])
def test_importance_weights_are_truncated_or_masked_and_constant(how, weights):
    old_BT = OLD_BT.clone().requires_grad_()
    found = off_policy.correction(old_BT, ROLLOUT_BT, how, cap=2.0)
    assert found.weight_BT[0].tolist() == pytest.approx(weights)
    assert found.capped_BT[0].tolist() == [False, how != "none", False]
    assert not found.weight_BT.requires_grad
    with pytest.raises(ValueError, match="correction_cap"):
        off_policy.correction(OLD_BT, ROLLOUT_BT, how, cap=0.0)


def test_mismatch_by_hand():
    learner_BT = torch.tensor([[0.0, math.log(2.0), 7.0]])
    found = off_policy.mismatch(learner_BT, torch.zeros(1, 3), torch.tensor([[1, 1, 0]]))
    # deltas 0 and log 2; k3 = r - 1 - log r = 0 and 1 - log 2
    assert found.absolute.mean.item() == pytest.approx(math.log(2) / 2)
    assert found.largest.item() == pytest.approx(math.log(2))
    assert found.kl.mean.item() == pytest.approx((1 - math.log(2)) / 2)
    other = off_policy.mismatch(torch.tensor([[3.0]]), torch.zeros(1, 1), torch.ones(1, 1))
    both = found | other
    assert both.largest.item() == 3.0
    assert both.absolute.mean.item() == pytest.approx((math.log(2) + 3) / 3)
