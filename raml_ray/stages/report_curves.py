"""L-hat along trajectories, as an analyze step left it."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from raml_ray import records
from raml_ray.stages.report_data import StepResult


class Curve(NamedTuple):
    """L-hat along one trajectory."""

    trajectory_id: str
    question_id: str
    probe: str
    """Which answer along which text, as records.ANSWER_CURVE names it."""
    group: str
    """`correct` or `wrong`."""
    position: list[int]
    """Response tokens of each prefix."""
    lhat: list[float]
    """Nats per answer token."""
    leak_position: int | None
    """Prefix that first holds the answer; None if none of the probed ones does."""
    num_tokens: int
    foil_margin: list[float] | None
    """L-hat of wrong answers minus this one, mean over them, nats per answer token; None where none were asked."""

    @property
    def leak_or_end(self) -> int:
        """The leak's position, behind the last probed one where no probed prefix holds the answer."""
        return self.position[-1] + 1 if self.leak_position is None else self.leak_position

    @property
    def num_before_leak(self) -> int:
        """Probed prefixes without the answer."""
        return bisect.bisect_left(self.position, self.leak_or_end)

    @property
    def share(self) -> list[float]:
        """Each position as a share of the last probed one, in [0, 1]."""
        return [position / max(self.position[-1], 1) for position in self.position]


def curves(step: StepResult) -> list[Curve]:
    """The answer curves of an analyze step, those with a point at least."""
    rows = (step.folder / "curves").read_tables("shard-", records.ANSWER_CURVE).to_pylist()
    found = []
    for row in rows:
        if row["lhat"]:
            leak = row["leak_position"]
            has_leak = leak is not None and 0 <= leak <= row["position"][-1]
            found.append(
                Curve(
                    row["trajectory_id"],
                    row["question_id"],
                    row["probe"],
                    row["group"],
                    row["position"],
                    row["lhat"],
                    leak if has_leak else None,
                    max(row["num_tokens"], 1),
                    row["foil_margin"],
                )
            )
    return found


def probed(step: StepResult, curves: Sequence[Curve]) -> str:
    """Which positions the step probed, in words: what its setting says, and what the curves hold."""
    until = step.settings.get("analyze.until")
    asked = f"every token up to and including {until}" if until else "every token of the trajectory"
    num_cut = sum(curve.position[-1] < curve.num_tokens for curve in curves)
    shares = [curve.position[-1] / curve.num_tokens for curve in curves]
    return (
        f"{asked}; {num_cut} of {len(curves)} trajectories go on behind the last probed token, which lies at"
        f" {100 * sum(shares) / len(shares):.0f} % of their tokens on average"
    )
