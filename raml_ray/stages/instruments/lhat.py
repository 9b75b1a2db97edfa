"""L-hat of every token of chosen trajectories.   judged trajectories, policy -> curves/

For correct trajectories and, with the gold answer just the same, for wrong ones (paper, section 2.2 and Fig. 16).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from raml_ray import records
from raml_ray.config import Config
from raml_ray.formulas import lhat, metrics
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import chosen
from raml_ray.stages.instruments.chosen import Opened, Reject, Row
from raml_ray.text import leak, suffix
from raml_ray.workers import probe

PROBE_NAME = "gold"
NUM_RESAMPLES = 2000
CURVES = chosen.Table("curves", records.ANSWER_CURVE)


def run(context: Context) -> Outcome:
    rows = chosen.trajectories(context)
    found = chosen.mapped(context, rows, Curves, CURVES)
    figures = {
        "groups": {
            name: _figures([curve for curve in found.rows if curve["group"] == name], context.config.seed)
            for name in ("correct", "wrong")
        }
    }
    return Outcome(Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected), figures)


class Curves:
    """Scores the answer after every prefix of trajectories."""

    def __init__(self, policy: Opened, config: Config) -> None:
        self._policy, self._settings, self._prompt = policy, config.analyze, config.prompt

    def __call__(self, rows: Sequence[Row], reject: Reject) -> Iterator[Row]:
        return chosen.one_by_one(rows, reject, self.of)

    def of(self, row: Row) -> Iterable[Row]:
        """L-hat after 0 .. n response tokens, n being where `until` ends, or all of the response."""
        tokenizer, settings = self._policy.tokenizer, self._settings
        prompt_ids, response_ids = chosen.token_ids(tokenizer, row, self._prompt)
        last = leak.position_of_text(tokenizer, response_ids, settings.until) if settings.until else None
        lhat_K = probe.answer_nll(
            self._policy.model,
            prompt_ids + response_ids[:last],
            first_position=len(prompt_ids),
            suffix=suffix.answer_suffix(tokenizer, settings.suffix, row["answer"]),
            positions_per_chunk=settings.positions_per_chunk,
        )
        yield {
            "trajectory_id": row["trajectory_id"],
            "probe": PROBE_NAME,
            "position": list(range(len(lhat_K))),
            "lhat": lhat_K.tolist(),
            "foil_margin": None,
            "leak_position": leak.position(tokenizer, response_ids, row["answer"]),
            "group": row["verdict"],
            "question_id": row["question_id"],
            "num_tokens": len(response_ids),
        }


def _figures(curves: Sequence[Row], seed: int) -> dict[str, Any]:
    """Start, end and drop of L-hat, the leak's share of the drop, and the trend before the leak, with intervals."""
    if not curves:
        return {"num": 0}
    raw = [np.asarray(curve["lhat"], dtype=np.float64) for curve in curves]
    # A leak that was not probed, or that there is none of, lies behind the last position.
    leaked = [c["leak_position"] is not None and c["leak_position"] <= c["position"][-1] for c in curves]
    leaks = [c["leak_position"] if is_there else len(c["lhat"]) for c, is_there in zip(curves, leaked, strict=True)]
    splits = [lhat.leak_split(c["position"], c["lhat"], leak) for c, leak in zip(curves, leaks, strict=True)]
    columns: dict[str, list[float]] = {
        "start": [float(values[0]) for values in raw],
        "end": [float(values[-1]) for values in raw],
        "drop": [float(values[0] - values[-1]) for values in raw],
        "share_at_leak": [
            s.share_near for s, is_there in zip(splits, leaked, strict=True) if s.share_near is not None and is_there
        ],
        "tau_before_leak": [s.kendall_tau for s in splits if s.kendall_tau is not None],
        "slope_before_leak": [s.slope for s in splits if s.slope is not None],
    }
    figures: dict[str, Any] = {"num": len(curves), "leaked": sum(leaked)}
    for name, values in columns.items():
        drawn = records.seed_of(seed, "analyze", name)
        interval = metrics.bootstrap_interval(values, num_resamples=NUM_RESAMPLES, seed=drawn) if values else None
        figures[name] = interval._asdict() if interval else None
    return figures
