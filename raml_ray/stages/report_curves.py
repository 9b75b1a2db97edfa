"""L-hat along trajectories, as an analyze step left it."""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from raml_ray import records
from raml_ray.formulas.lhat import PaperCurve, paper_curve
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
    think_position: int
    """Response tokens of the first prefix behind `<think>`; 0 where the prompt opens the thought, or nothing does."""
    num_suffix: int
    """Tokens of suffix and answer."""

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

    def as_paper(self, alpha: float) -> PaperCurve:
        """What the released notebook draws of it: from the first prefix behind `<think>` on, without the response's last
        `num_suffix` prefixes, without zeros, over the normalised index; smoothed. `point` counts all probed positions.

        Source: RaML's pseudo_gradient_descent notebook.
        """
        first = bisect.bisect_left(self.position, self.think_position)
        end = bisect.bisect_right(self.position, self.num_tokens - self.num_suffix)
        drawn = paper_curve(self.lhat[first:end], alpha)
        return drawn._replace(point=drawn.point + first)


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
                    row["think_position"],
                    row["num_suffix"],
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
