import numpy as np
import pytest

from raml_ray.formulas import metrics


def test_four_of_eight_by_hand():
    # C(8,4) = 70; three or more of four: (C(4,3) C(4,1) + 1) / 70 = 17/70; all four: 1/70; (2/4) (17 + 1) / 70
    assert metrics.at_least(8, 4, 4, 3) == pytest.approx(17 / 70)
    assert metrics.mg_pass_at_k(8, 4, 4) == pytest.approx(9 / 70)


def test_seven_of_twenty_five_is_a_share_of_seven_twenty_fifths():
    # ceil(25 * 0.28) is 8 in floats
    assert metrics.g_pass_at_k(25, 7, 25, 7 / 25) == 1.0
    assert metrics.g_pass_at_k(25, 6, 25, 7 / 25) == 0.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 2), (4, 2, 5), (4, -1, 2), (4, 2, 0), (0, 0, 1)])
def test_impossible_counts_are_refused(n, c, k):
    for metric in (metrics.pass_at_k, metrics.mg_pass_at_k):
        with pytest.raises(ValueError, match="impossible"):
            metric(n, c, k)


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match="tau"):
        metrics.g_pass_at_k(4, 2, 2, 1.5)


def test_the_interval_of_equal_values_has_no_width():
    assert metrics.bootstrap_interval([0.25] * 7, num_resamples=100, seed=0) == (0.25, 0.25, 0.25)


def test_the_interval_of_a_binomial_mean_has_its_known_width():
    # 400 questions, half of them solved: standard error sqrt(0.25 / 400) = 0.025, so 0.5 -+ 1.96 * 0.025
    interval = metrics.bootstrap_interval([0.0, 1.0] * 200, num_resamples=20_000, seed=1)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.451, abs=0.004)
    assert interval.high == pytest.approx(0.549, abs=0.004)


def test_the_same_seed_gives_the_same_interval():
    values = list(np.linspace(0, 1, 11))
    one = metrics.bootstrap_interval(values, num_resamples=500, seed=3)
    assert one == metrics.bootstrap_interval(values, num_resamples=500, seed=3)
    assert one != metrics.bootstrap_interval(values, num_resamples=500, seed=4)


def test_intervals_refuse_nothing_and_impossible_levels():
    with pytest.raises(ValueError, match="one value per question"):
        metrics.bootstrap_interval([], num_resamples=10, seed=0)
    with pytest.raises(ValueError, match="level"):
        metrics.bootstrap_interval([1.0], num_resamples=10, seed=0, level=1.0)
