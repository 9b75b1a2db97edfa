"""The paper's word statistic, and the one with equal windows, a sign, a floor and medians."""

import math

import numpy as np
import pytest

from raml_ray.formulas import roles

NONE = np.zeros(12, dtype=bool)


def test_words_at_the_edge_or_after_a_zero_have_no_change() -> None:
    halved = [8.0, 4.0, 2.0, 1.0, 0.5]
    assert roles.paper_word_change(halved, 0, 1) is None
    assert roles.paper_word_change(halved, 3, 1) == (2.0 - 0.5) / 2.0
    assert roles.paper_word_change(halved, 4, 1) is None
    assert roles.paper_word_change([0.0, 1.0, 2.0], 1, 1) is None
    assert roles.paper_changes([0.0, 1.0, 0.5]).tolist() == [0.5]


def test_log_ratios_have_a_sign_a_window_and_a_floor() -> None:
    found = roles.log_ratios([4.0, 2.0, 4.0, 1e-9], 1, floor=0.5)
    assert found.tolist() == pytest.approx([-math.log(2), math.log(2), -math.log(8)])
    # back and forth is no change over both tokens
    assert roles.log_ratios([4.0, 2.0, 4.0, 1e-9], 2, floor=0.5).tolist() == pytest.approx([0.0, -math.log(4)])
    assert roles.log_ratios([4.0], 2, floor=0.5).tolist() == []
    # another unit of L-hat changes nothing
    assert roles.log_ratios([40.0, 20.0], 1, floor=5).tolist() == pytest.approx([-math.log(2)])
    with pytest.raises(ValueError, match="floor=0"):
        roles.log_ratios([1.0, 2.0], 1, floor=0)


def test_controls_are_the_nearest_windows_without_the_role() -> None:
    is_role = NONE.copy()
    is_role[[5, 6, 8]] = True  # the word stands at 5 and 6; 8 is another of its role
    found = roles.matched_windows(5, 2, is_role, last=12, num=4, radius=5)
    # windows [3, 4], [2, 3], [1, 2], [9, 10] or [0, 1]: 9 is four away like 1, and later
    assert found == [3, 2, 1, 9]
    assert roles.matched_windows(5, 2, is_role, last=10, num=9, radius=5) == [3, 2, 1, 0]
    assert roles.matched_windows(5, 2, is_role, last=12, num=9, radius=2) == [3]
    assert roles.matched_windows(5, 2, ~NONE, last=12, num=9, radius=9) == []
    assert roles.matched_windows(0, 9, NONE, last=4, num=9, radius=9) == []


def test_a_rank_is_the_share_of_the_others_that_are_smaller_and_half_of_those_as_large() -> None:
    assert roles.rank_above(2.0, [1.0, 2.0, 3.0, 0.5]) == 2.5 / 4 - 0.5
    assert roles.rank_above(9.0, [1.0]) == 0.5
    assert roles.rank_above(0.0, [0.0, 0.0]) == 0.0
    with pytest.raises(ValueError, match="needs others"):
        roles.rank_above(1.0, [])


@pytest.mark.parametrize("values", [[0.0, 0.1, 0.2, 9.0], [1.0, 1.0, 1.0, 5.0], [-3.0, 0.0, 0.0, 7.0]])
def test_the_ranks_of_everyone_among_the_rest_are_zero_on_average_however_skewed_they_are(values: list[float]) -> None:
    ranks = [roles.rank_above(value, values[:at] + values[at + 1 :]) for at, value in enumerate(values)]
    assert sum(ranks) == pytest.approx(0.0)


def test_medians_come_with_intervals_over_trajectories() -> None:
    found = roles.median_interval([[1.0, 2.0], [], [9.0]], num_resamples=200, seed=0)
    assert found is not None
    # of the pooled values 2 is the middle; resamples are [1, 2, 1, 2], all three, or [9, 9]
    assert found.median == 2.0
    assert (found.low, found.high) == (1.5, 9.0)
    assert roles.median_interval([[], []], num_resamples=200, seed=0) is None
    one = roles.median_interval([[3.0, 5.0]], num_resamples=10, seed=0)
    assert one == (4.0, 4.0, 4.0)
    with pytest.raises(ValueError, match="num_resamples=0"):
        roles.median_interval([[1.0]], num_resamples=0, seed=0)
