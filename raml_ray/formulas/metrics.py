"""Pass@k, G-Pass@k and mG-Pass@k of one question, and intervals over questions.

All three are about J, the number of correct ones among k trajectories drawn without replacement from n of which c are
correct: hypergeometric. Thresholds are integers, so no float decides whether 7 of 25 are enough.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """A mean over questions with its percentile interval: `Interval(0.41, 0.35, 0.47)`."""

    mean: float
    low: float
    high: float


def at_least(n: int, c: int, k: int, threshold: int) -> float:
    """Probability in [0, 1] that at least `threshold` of k drawn trajectories are correct.

    Raises: ValueError if the counts are impossible (k > n, c > n, or a negative one).
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n={n}, c={c}, k={k} are impossible: 0 <= c <= n and 1 <= k <= n must hold")
    favourable = sum(math.comb(c, j) * math.comb(n - c, k - j) for j in range(max(threshold, 0), min(c, k) + 1))
    return favourable / math.comb(n, k)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability in [0, 1] that one of k trajectories is correct, when c of n were.

    Raises: ValueError if k > n or c > n.

    Source: RaML, arXiv:2505.19815, Eq. 22.
    """
    return at_least(n, c, k, 1)


def g_pass_at_k(n: int, c: int, k: int, tau: float | Fraction) -> float:
    """Probability in [0, 1] that a share `tau` of k trajectories is correct; `tau` = 0 is Pass@k.

    Raises: ValueError if k > n or c > n, or tau is outside [0, 1].

    Source: Liu et al. 2024, "Are Your LLMs Capable of Stable Reasoning?", arXiv:2412.13147.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"tau={tau} is no share: 0 <= tau <= 1")
    # 25 * 0.28 is 7.000000000000001 in floats: the share that was meant is the simple fraction beside the float.
    share = Fraction(tau).limit_denominator(10**6)
    return at_least(n, c, k, max(math.ceil(share * k), 1))


def mg_pass_at_k(n: int, c: int, k: int) -> float:
    """Mean of G-Pass@k over tau in [0.5, 1], in [0, 1]: how far beyond a bare majority the k trajectories get.

    An odd k never reaches 1: the most is (k - 1) / k.

    Raises: ValueError if k > n or c > n.

    Source: RaML, arXiv:2505.19815, Eq. 23.
    """
    at_least(n, c, k, k)
    return 2 / k * math.fsum(at_least(n, c, k, i) for i in range((k + 1) // 2 + 1, k + 1))


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[np.float64], *, num_resamples: int, seed: int, level: float = 0.95
) -> Interval:
    """Mean over questions and the percentile interval of its bootstrap, in the unit of the values.

    One question alone gives an interval of width zero: it says nothing about others.

    Raises: ValueError if there are no values, no resamples, or the level is outside (0, 1).
    """
    value_Q = np.asarray(values, dtype=np.float64)
    if value_Q.ndim != 1 or value_Q.size == 0:
        raise ValueError(f"an interval needs one value per question, got shape {value_Q.shape}")
    if num_resamples < 1 or not 0 < level < 1:
        raise ValueError(f"num_resamples={num_resamples} must be >= 1 and level={level} in (0, 1)")
    generator = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    block = max(1, 2_000_000 // value_Q.size)  # index arrays of 16 MB, however many questions there are
    for start in range(0, num_resamples, block):
        stop = min(start + block, num_resamples)
        means[start:stop] = value_Q[generator.integers(value_Q.size, size=(stop - start, value_Q.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value_Q.mean()), float(low), float(high))
