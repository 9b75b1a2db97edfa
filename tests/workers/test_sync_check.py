"""What engine and learner are held to after a weight sync."""

import math

import numpy as np
import pytest

from raml_ray.workers import sync_check

LEARNER = [np.array([-1.0, -2.0]), np.array([-3.0])]
EXACT = sync_check.bound("float32", "float32", tolerance=1e-4, tolerance_k3=5e-3)


def shifted(by: float) -> list[np.ndarray]:
    return [LEARNER[0], LEARNER[1] + by]


def test_the_engine_farthest_from_the_learner_is_found() -> None:
    checked = sync_check.check([shifted(1e-5), shifted(-0.5), shifted(0.0)], LEARNER, EXACT)
    assert checked.apart.max_abs == pytest.approx(0.5)
    # one of three tokens, the learner 0.5 above the engine: (e^0.5 - 1 - 0.5) / 3
    assert checked.apart.k3 == pytest.approx((math.exp(0.5) - 1.5) / 3)
    assert checked.worst == 1 and not checked.agree
    assert "0.5 nats apart on a probe (grpo.sync_tolerance=0.0001)" in EXACT.told(checked.apart)


@pytest.mark.parametrize("engines", [[1e-6, math.nan], [math.nan, 1e-6]])
def test_an_engine_that_answers_nan_does_not_agree_wherever_it_stands(engines: list[float]) -> None:
    checked = sync_check.check([shifted(by) for by in engines], LEARNER, EXACT)
    assert not checked.agree
    assert math.isnan(checked.apart.max_abs)
    assert math.isnan(engines[checked.worst])


def test_engines_within_the_bound_agree() -> None:
    assert sync_check.check([shifted(1e-5), shifted(-9e-5)], LEARNER, EXACT).agree


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_where_one_of_them_rounds_the_divergence_is_bounded_and_not_the_single_token(dtypes: tuple[str, str]) -> None:
    rounded = sync_check.bound(*dtypes, tolerance=1e-4, tolerance_k3=5e-3)
    near, far = np.zeros(100), np.zeros(100)
    near[0], far[:] = 0.2, 0.2
    learner = [np.zeros(100)]
    # a token 0.2 nats off: (e^0.2 - 1.2) / 100 = 0.0002; all of them: 0.02
    assert sync_check.check([[-near]], learner, rounded).agree
    assert not sync_check.check([[-far]], learner, rounded).agree
    assert not sync_check.check([[near * math.nan]], learner, rounded).agree
    assert not sync_check.check([[-near]], learner, EXACT).agree
