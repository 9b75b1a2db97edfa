import math

import numpy as np
import pytest
import torch

from raml_ray.formulas import lhat


def test_lhat_is_the_mean_over_the_answers_tokens():
    logprob_KA = torch.tensor([[0.5, 0.125], [1.0, 1.0]]).log()
    # (log 2 + log 8) / 2 = 2 log 2
    assert lhat.lhat(logprob_KA).tolist() == pytest.approx([2 * math.log(2), 0.0])


def test_an_answer_without_tokens_is_refused():
    with pytest.raises(ValueError, match="answer token"):
        lhat.lhat(torch.zeros(3, 0))


def test_the_average_of_the_raw_curve_keeps_zeros():
    # 0.5 * 0 + 0.5 * 4 = 2
    assert lhat.ema([4.0, 0.0], alpha=0.5).tolist() == [4.0, 2.0]


def test_one_point_lies_at_zero():
    assert lhat.normalised_index(1).tolist() == [0.0]
    assert lhat.normalised_index(3).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_an_average_without_memory_or_beyond_it_is_refused(alpha):
    with pytest.raises(ValueError, match=r"lhat\.ema_alpha"):
        lhat.ema([1.0], alpha)


def test_a_step_at_the_leak_is_all_drop_after_it():
    value_K = [2.0] * 50 + [0.5] * 50
    split = lhat.leak_split(range(100), value_K, leak_position=50)
    assert (split.drop_before, split.drop_after, split.share_near) == (0.0, 1.5, 1.0)
    assert (split.before, split.drop_at) == (2.0, 1.5)
    assert (split.share_near_before, split.share_near_after) == (0.0, 1.0)
    assert split.tau_before is None and split.tau_after is None  # flat: no variation to order
    assert (split.slope_before, split.slope_after) == (0.0, 0.0)


def test_a_steady_descent_lies_where_its_tokens_lie():
    split = lhat.leak_split(range(101), 10.0 - 0.1 * np.arange(101), leak_position=60, radius=20)
    # first value 10, last before the leak 10 - 5.9; tokens 40 to 80 hold 4 of the 10 nats
    assert split.drop_before == pytest.approx(5.9)
    assert split.drop_after == pytest.approx(4.1)
    assert split.share_near == pytest.approx(0.4)
    # tokens 40 to 59, and 59 to 80: the token that completes the answer is after
    assert (split.share_near_before, split.share_near_after) == pytest.approx((0.19, 0.21))
    assert (split.tau_before, split.tau_after) == pytest.approx((-1.0, -1.0))
    assert (split.slope_before, split.slope_after) == pytest.approx((-0.1, -0.1))


def test_what_comes_after_the_leak_is_apart_from_what_came_before() -> None:
    # from 5 to 1, up by 1 a token to 4, to 2 as the answer is written, and from there down by 0.5 a token
    value_K = [5.0, 1.0, 2.0, 3.0, 4.0, 2.0, 1.5, 1.0, 0.5, 0.0]
    split = lhat.leak_split(range(10, 20), value_K, leak_position=15, radius=2)
    assert (split.drop_before, split.drop_at, split.drop_after) == (1.0, 2.0, 4.0)
    assert split.tau_after == pytest.approx(-1.0)
    assert split.slope_after == pytest.approx(-0.5)
    # of 10 pairs before, (5, 1) to (5, 4) fall and six rise
    assert split.tau_before == pytest.approx(0.2)
    # of 5 nats: -1 over tokens 13 and 14, then 4 - 1 over 15 to 17
    assert (split.share_near_before, split.share_near_after) == pytest.approx((-0.2, 0.6))
    short = lhat.leak_split(range(4), [4.0, 3.0, 2.0, 1.0], leak_position=2)
    assert (short.tau_after, short.slope_after) == (None, None)  # two prefixes are no trend


def test_of_a_radius_without_a_probed_prefix_before_the_leak_nothing_lies_before_it() -> None:
    # probed at 0, 50 and 60; the leak at 50 has nothing within 20 tokens before it
    split = lhat.leak_split([0, 50, 60], [4.0, 2.0, 0.0], leak_position=50)
    assert (split.share_near_before, split.share_near_after) == (0.0, 0.5)


def test_a_curve_that_never_leaks_is_all_before_it():
    split = lhat.leak_split([0, 10, 20], [3.0, 2.0, 1.0], leak_position=30)
    assert (split.drop_before, split.drop_after, split.share_near) == (2.0, 0.0, 0.5)
    assert (split.before, split.drop_at) == (1.0, None)
    assert (split.share_near_before, split.share_near_after) == (0.5, 0.0)
    assert (split.tau_before, split.slope_before, split.tau_after, split.slope_after) == (None, None, None, None)


def test_a_rising_curve_has_no_share():
    assert lhat.leak_split(range(10), np.arange(10.0), leak_position=5).share_near is None


def test_a_leak_at_the_first_prefix_leaves_nothing_before_it():
    split = lhat.leak_split(range(4), [1.0, 0.5, 0.5, 0.5], leak_position=0)
    assert (split.drop_before, split.drop_after) == (0.0, 0.5)
    assert (split.before, split.drop_at) == (None, None)


def test_curves_that_are_none_are_refused():
    for position, value in ([[], []], [[0, 0], [1.0, 1.0]], [[0, 1], [1.0]]):
        with pytest.raises(ValueError, match="ascending positions"):
            lhat.leak_split(position, value, leak_position=0)


def test_kendalls_tau_by_hand():
    # of 10 pairs, (2, 1), (3, 1) are discordant and (3, 3) is tied: (7 - 2) / sqrt(10 * 9)
    assert lhat.kendall_tau([2.0, 3.0, 1.0, 3.0, 4.0]) == pytest.approx(5 / math.sqrt(90))
