"""Whether an engine holds the learner's weights, judged by the log-probabilities that both give the same tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from raml_ray.workers import weights
from raml_ray.workers.weights import Agreement


class SyncMismatch(ValueError):
    """Engine and learner give the same tokens different log-probabilities: what is sampled is not what is trained."""


class Probe(NamedTuple):
    """Sequences, and what the learner makes of them."""

    sequences: list[list[int]]
    logprobs: list[np.ndarray]
    """Of every token but a sequence's first, nats."""


class Bound(NamedTuple):
    """How far engine and learner may be apart: `Bound("max_abs", 1e-4, "grpo.sync_tolerance")`."""

    measure: str
    """A field of `weights.Agreement`."""
    limit: float
    setting: str

    def allows(self, apart: Agreement) -> bool:
        """False for a NaN too."""
        return bool(self.of(apart) <= self.limit)

    def of(self, apart: Agreement) -> float:
        return float(apart._asdict()[self.measure])

    def told(self, apart: Agreement) -> str:
        """The distance beside its bound, in words."""
        unit = "nats" if self.measure == "max_abs" else "nats per token (k3)"
        return f"{self.of(apart):.2g} {unit} apart on a probe ({self.setting}={self.limit:g})"


def bound(engine_dtype: str, learner_dtype: str, *, tolerance: float, tolerance_k3: float) -> Bound:
    """What engine and learner of these dtypes are held to.

    Two float32 forward passes agree token by token. Where one of them rounds to 8 bits, single tokens are tenths of a
    nat apart, and only the divergence of the distributions says whether the weights are the same.
    """
    if engine_dtype == learner_dtype == "float32":
        return Bound("max_abs", tolerance, "grpo.sync_tolerance")
    return Bound("k3", tolerance_k3, "grpo.sync_tolerance_k3")


class Checked(NamedTuple):
    """The verdict on all engines: `Checked(Agreement(2e-6, 1e-12), 0, True)`."""

    apart: Agreement
    """The largest of each measure over the engines; NaN if one is."""
    worst: int
    """The engine that is farthest from the learner in what is bounded."""
    agree: bool


def check(engines: Sequence[Sequence[np.ndarray]], learner: Sequence[np.ndarray], bound: Bound) -> Checked:
    """Compare every engine's log-probabilities of the probe sequences with the learner's."""
    apart = [weights.compare(engine, learner) for engine in engines]
    largest = Agreement(*(float(value) for value in np.max(np.asarray(apart), axis=0)))
    return Checked(largest, int(np.argmax([bound.of(one) for one in apart])), all(bound.allows(one) for one in apart))
