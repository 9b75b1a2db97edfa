"""How L-hat changes over words: the paper's statistic, and one whose windows, sign and tails can be compared.

The paper's curve has the value after token i at i. All others here have it at i + 1: `lhat_K[k]` is the value after k
tokens, so that a word of m tokens at `start` changes it from `lhat_K[start]` to `lhat_K[start + m]`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Median(NamedTuple):
    """A median with the percentile interval of its bootstrap: `Median(-0.12, -0.2, -0.05)`."""

    median: float
    low: float
    high: float


def paper_changes(lhat_K: npt.ArrayLike) -> Floats:
    """|L_i - L_{i-1}| / L_{i-1} of every token but the first; tokens after a value of exactly 0 are left out.

    Source: RaML, arXiv:2505.19815, Fig. 6.
    """
    values = np.asarray(lhat_K, dtype=np.float64)
    before, after = values[:-1], values[1:]
    nonzero = before != 0
    return np.asarray(np.abs(after - before)[nonzero] / before[nonzero], dtype=np.float64)


def paper_word_change(lhat_K: npt.ArrayLike, start: int, num_tokens: int) -> float | None:
    """|L_{i+m} - L_{i-1}| / L_{i-1} of a word of m tokens at i, as the notebook has it: one token beyond the word.

    Its window is m + 1 tokens, against 1 of `paper_changes`, so the two do not compare. None where the window leaves
    the curve or starts at 0.

    Source: RaML's pseudo_gradient_descent notebook.
    """
    values = np.asarray(lhat_K, dtype=np.float64)
    before, after = start - 1, start + num_tokens
    if before < 0 or after >= len(values) or values[before] == 0:
        return None
    return float(abs(values[after] - values[before]) / values[before])


def log_ratios(lhat_K: npt.ArrayLike, num_tokens: int, floor: float) -> Floats:
    """log(L after the window / L before it) of the windows of so many tokens that start at 0, 1, ..; negative: L falls.

    Values below the floor (nats) count as the floor: near 0 their ratios would be noise.

    Raises: ValueError if the floor is not positive or the window is empty.
    """
    if floor <= 0 or num_tokens < 1:
        raise ValueError(f"roles.floor={floor:g} must be above 0 and a window hold a token, got {num_tokens}")
    logs = np.log(np.maximum(np.asarray(lhat_K, dtype=np.float64), floor))
    return np.asarray(logs[num_tokens:] - logs[:-num_tokens], dtype=np.float64)


def matched_windows(
    start: int, num_tokens: int, is_role_T: Sequence[bool] | npt.NDArray[np.bool_], *, last: int, num: int, radius: int
) -> list[int]:
    """Starts of the nearest windows of the same length that hold no token of the role and end by `last`.

    At most `num` of them, at most `radius` tokens away, the nearer first; of two equally near ones the earlier.
    """
    role_before = np.concatenate([[0], np.cumsum(np.asarray(is_role_T, dtype=np.int64))])
    starts = np.arange(max(start - radius, 0), min(start + radius, last - num_tokens) + 1)
    free = starts[role_before[starts + num_tokens] == role_before[starts]] if len(starts) else starts
    nearest = sorted(free.tolist(), key=lambda other: (abs(other - start), other))
    return nearest[:num]


def rank_above(value: float, others: Sequence[float] | Floats) -> float:
    """The share of the others that are smaller, ties counting half, less 1/2: in [-0.5, 0.5], its mean 0 where the value is
    exchangeable with them, however they are distributed.

    The value less their median has no such mean: of skewed sizes it is above 0 (of abs(t) with 2 degrees of freedom, averaged
    over some twenty questions, by more than its 95 % interval in a third of all draws).

    Raises: ValueError if there are no others.
    """
    if not len(others):
        raise ValueError("a rank needs others to stand among")
    other_C = np.asarray(others, dtype=np.float64)
    return float(((other_C < value) + (other_C == value) / 2).mean() - 0.5)


def median_interval(
    groups: Sequence[Sequence[float]], *, num_resamples: int, seed: int, level: float = 0.95
) -> Median | None:
    """Median of all values, with the interval of a bootstrap that draws whole groups (trajectories): what one of them
    says twice is no second witness. None without a value.

    Raises: ValueError if there are no resamples, or the level is outside (0, 1).
    """
    if num_resamples < 1 or not 0 < level < 1:
        raise ValueError(f"num_resamples={num_resamples} must be >= 1 and level={level} in (0, 1)")
    filled = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    if not filled:
        return None
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(filled), size=(num_resamples, len(filled)))
    medians = [np.median(np.concatenate([filled[index] for index in indices])) for indices in drawn]
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return Median(float(np.median(np.concatenate(filled))), float(low), float(high))
