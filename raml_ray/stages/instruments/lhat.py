"""L-hat along chosen trajectories, with its controls.   judged trajectories, policy -> curves/

For correct trajectories and, with the gold answer just the same, for wrong ones (paper, section 2.2 and Fig. 16).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from raml_ray import records
from raml_ray.config import Config
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import chosen, lhat_controls, lhat_figures
from raml_ray.stages.instruments.chosen import Opened, Reject, Row
from raml_ray.stages.instruments.lhat_controls import Asked
from raml_ray.workers import probe, probe_support

CURVES = chosen.Table("curves", records.ANSWER_CURVE)
COLUMNS = pa.schema([*chosen.CHOSEN, ("foreign_text", pa.string()), ("other_answers", pa.list_(pa.string()))])
"""Beside what was chosen: a trajectory of another question, and right answers of others."""
MOST_OTHER_ANSWERS = 50


def run(context: Context) -> Outcome:
    rows = with_others(chosen.trajectories(context))
    found = chosen.mapped(context, rows, Curves, CURVES, COLUMNS)
    figures = lhat_figures.figures(found.rows, context.config.seed)
    return Outcome(Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected), figures)


def with_others(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each with the next one of another question and the same verdict (round about; None if there is none), and
    with right answers of other questions."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row["verdict"]].append(place)
    answers = list({row["question_id"]: row["answer"] for row in rows}.values())[:MOST_OTHER_ANSWERS]
    found = []
    for place, row in enumerate(rows):
        same = places[row["verdict"]]
        later = same.index(place)
        others = (rows[other] for other in (*same[later + 1 :], *same[:later]))
        foreign = next((other["text"] for other in others if other["question_id"] != row["question_id"]), None)
        found.append(row | {"foreign_text": foreign, "other_answers": answers})
    return found


class Curves:
    """Scores answers after the prefixes of trajectories, those of a shard together."""

    def __init__(self, policy: Opened, config: Config) -> None:
        self._policy, self._config = policy, config
        probe_support.use_blocks(policy.model)

    def __call__(self, rows: Sequence[Row], reject: Reject) -> Iterator[Row]:
        asked: list[tuple[Row, Asked]] = []
        for row in rows:
            try:
                asked += [(row, one) for one in lhat_controls.asked(self._policy, self._config, row)]
            except ValueError as error:
                reject(row, error)
        found = probe.answer_nll(
            self._policy.model,
            [one.probe for _, one in asked],
            memory_mib=self._config.analyze.probe_memory_mib,
        )
        for (row, one), lhat_JK in zip(asked, found, strict=True):
            yield from _curves(row, one, lhat_JK)


def _curves(row: Row, asked: Asked, lhat_JK: Sequence[Any]) -> Iterator[Row]:
    """The curve of each answer; the gold one's has the mean of its foils' L-hat minus its own."""
    foils_JK = [lhat_K for name, lhat_K in zip(asked.names, lhat_JK, strict=True) if name == lhat_controls.FOIL]
    columns = zip(asked.names, asked.answers, asked.leak_positions, asked.probe.suffixes, lhat_JK, strict=True)
    for name, answer, leak_position, suffix, lhat_K in columns:
        is_held = name == lhat_controls.GOLD and foils_JK
        yield {
            "trajectory_id": row["trajectory_id"],
            "probe": name,
            "answer": answer,
            "position": list(asked.positions),
            "lhat": lhat_K.tolist(),
            "foil_margin": (sum(foils_JK) / len(foils_JK) - lhat_K).tolist() if is_held else None,
            "leak_position": leak_position,
            "group": row["verdict"],
            "question_id": row["question_id"],
            "num_tokens": asked.num_tokens,
            "think_position": asked.think_position,
            "num_suffix": len(suffix.token_ids),
        }
