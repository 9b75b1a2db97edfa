"""L-hat, the loss of the true answer after each prefix of a trajectory: the paper's statistics and the corrected ones.

`lhat_K[i]` belongs to the prefix that ends with token i. What is called `paper_...` reproduces the released notebook,
quirks included; the rest is what its figures should be read beside.
"""

import bisect
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

Floats = npt.NDArray[np.float64]

MIN_TREND_POINTS = 5


class PaperCurve(NamedTuple):
    """A curve as the paper draws it: x in [0, 1], the raw values that were kept, and their moving average (nats)."""

    point: npt.NDArray[np.int64]
    """Which of the raw values were kept."""
    position: Floats
    kept: Floats
    smooth: Floats


class LeakSplit(NamedTuple):
    """Where a curve falls, relative to the first place at which the trajectory states the answer.

    `LeakSplit(before=2.2, drop_before=0.2, drop_after=2.1, drop_at=1.9, share_near_before=0.05, share_near_after=0.85,
    tau_before=-0.1, tau_after=-0.4, slope_before=-0.003, slope_after=-0.02)`, nats.
    """

    before: float | None
    """L-hat at the last prefix before the leak; None if the first one is not before it."""
    drop_before: float
    """L-hat at the first prefix minus at the last one before the leak."""
    drop_after: float
    """L-hat at the last prefix before the leak minus at the last prefix: `drop_at`, and what falls behind it."""
    drop_at: float | None
    """L-hat at the last prefix before the leak minus at the first one with it; None if one of them is not there."""
    share_near_before: float | None
    """Share of the whole drop that lies within the radius before the leak, up to the last prefix before it; None unless the
    curve drops at all."""
    share_near_after: float | None
    """Share that lies between there and the radius behind the leak, `drop_at` included; None as above."""
    tau_before: float | None
    """Trend before the leak, -1 (always falling) to 1; None with fewer than MIN_TREND_POINTS prefixes or all equal."""
    tau_after: float | None
    """Trend from the first prefix with the leak on, as above."""
    slope_before: float | None
    """Least-squares slope before the leak, nats per token; None with fewer than MIN_TREND_POINTS prefixes."""
    slope_after: float | None
    """Slope from the first prefix with the leak on, as above."""

    @property
    def share_near(self) -> float | None:
        """Share of the whole drop that lies within the radius around the leak; None unless the curve drops at all."""
        if self.share_near_before is None or self.share_near_after is None:
            return None
        return self.share_near_before + self.share_near_after


def lhat(logprob_KA: Tensor) -> Tensor:
    """Mean negative log-probability of the answer's tokens after each prefix, (K,), nats per answer token.

    Raises: ValueError if the answer has no token.

    Source: RaML, arXiv:2505.19815, Algorithm 3.
    """
    if logprob_KA.dim() != 2 or logprob_KA.shape[1] == 0:
        raise ValueError(
            f"L-hat needs log-probabilities (K, A) of at least one answer token, got {tuple(logprob_KA.shape)}"
        )
    return -logprob_KA.float().mean(dim=1)


def normalised_index(num_points: int) -> Floats:
    """i / (N - 1) for N points, in [0, 1]; a single point lies at 0."""
    return np.arange(num_points, dtype=np.float64) / max(num_points - 1, 1)


def ema(raw_K: npt.ArrayLike, alpha: float) -> Floats:
    """Exponential moving average that starts at the first value, (K,).

    It lags: with alpha = 0.01 a step needs about 379 points to fall from 4.5 to 0.1.

    Raises: ValueError if alpha is outside (0, 1].
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"lhat.ema_alpha={alpha} must be in (0, 1]")
    smooth = np.array(raw_K, dtype=np.float64)
    for i in range(1, len(smooth)):
        smooth[i] = alpha * smooth[i] + (1 - alpha) * smooth[i - 1]
    return smooth


def paper_curve(raw_K: npt.ArrayLike, alpha: float = 0.01) -> PaperCurve:
    """The paper's curve: values that are exactly 0 are dropped (not drawn as 0), the rest averaged, spread over [0, 1].

    Source: RaML's pseudo_gradient_descent notebook.
    """
    raw = np.asarray(raw_K, dtype=np.float64)
    point = np.flatnonzero(raw)
    return PaperCurve(point, normalised_index(len(point)), raw[point], ema(raw[point], alpha))


def leak_split(position_K: npt.ArrayLike, lhat_K: npt.ArrayLike, leak_position: int, radius: int = 20) -> LeakSplit:
    """The curve's drop, its trend and what of its drop is near the leak, before it and after it.

    Positions are tokens, ascending; the radius counts tokens. The leak is the first position whose prefix holds the answer; a trajectory that
    never states it has its leak behind the last position.

    Raises: ValueError if the curve is empty, not ascending, or of another length than its positions.
    """
    position, value = np.asarray(position_K, dtype=np.float64), np.asarray(lhat_K, dtype=np.float64)
    if position.shape != value.shape or position.ndim != 1 or len(position) == 0 or np.any(np.diff(position) <= 0):
        raise ValueError(
            f"a curve needs ascending positions and as many values, got {position.shape} and {value.shape}"
        )
    num_before = int(np.searchsorted(position, leak_position))
    total = float(value[0] - value[-1])
    last_before = value[max(num_before - 1, 0)]
    first_near = int(np.searchsorted(position, leak_position - radius))
    last_near = int(np.searchsorted(position, leak_position + radius, side="right")) - 1
    near_before = near_after = 0.0
    if first_near <= last_near:
        between = value[max(first_near, num_before - 1)]
        near_before, near_after = float(value[first_near] - between), float(between - value[last_near])
    return LeakSplit(
        before=float(last_before) if num_before else None,
        drop_before=float(value[0] - last_before),
        drop_after=float(last_before - value[-1]),
        drop_at=float(last_before - value[num_before]) if 0 < num_before < len(value) else None,
        share_near_before=near_before / total if total > 0 else None,
        share_near_after=near_after / total if total > 0 else None,
        tau_before=kendall_tau(value[:num_before]),
        tau_after=kendall_tau(value[num_before:]),
        slope_before=least_squares_slope(position[:num_before], value[:num_before]),
        slope_after=least_squares_slope(position[num_before:], value[num_before:]),
    )


def kendall_tau(value_K: npt.ArrayLike) -> float | None:
    """Kendall's tau-b of the values against their order, in [-1, 1].

    None with fewer than MIN_TREND_POINTS values, or if all are equal.
    """
    values = np.asarray(value_K, dtype=np.float64)
    num_pairs = len(values) * (len(values) - 1) // 2
    _, sizes = np.unique(values, return_counts=True)
    num_untied = num_pairs - int((sizes * (sizes - 1) // 2).sum())
    if len(values) < MIN_TREND_POINTS or num_untied == 0:
        return None
    seen: list[float] = []
    balance = 0
    for value in values.tolist():
        lower = bisect.bisect_left(seen, value)
        higher = len(seen) - bisect.bisect_right(seen, value)
        balance += lower - higher
        bisect.insort(seen, value)
    return balance / float(np.sqrt(num_pairs * num_untied))


def least_squares_slope(position_K: npt.ArrayLike, value_K: npt.ArrayLike) -> float | None:
    """Slope of the least-squares line, value units per token; None with fewer than MIN_TREND_POINTS points."""
    position, value = np.asarray(position_K, dtype=np.float64), np.asarray(value_K, dtype=np.float64)
    if len(position) < MIN_TREND_POINTS:
        return None
    centred = position - position.mean()
    return float((centred * (value - value.mean())).sum() / (centred**2).sum())
