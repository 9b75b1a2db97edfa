"""What tokens of chosen trajectories write into attention, as changes of W_v.   judged trajectories, policy -> updates/

One row per token, reader, layer and head: the paper's pseudo-update made exact, its cosine with minus the gradient of the
answer's loss (Eq. 4) beside two nulls, and how little of it serves another query. Of the miniature's twins, whose heads keep a
state, it is the change of that state, which serves every query.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raml_ray import records
from raml_ray.config import Config
from raml_ray.formulas.lhat import kendall_tau
from raml_ray.formulas.pseudo_update import joined_cosine
from raml_ray.miniature import TWIN
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import chosen
from raml_ray.stages.instruments.chosen import Opened, Row
from raml_ray.stages.instruments.intervals import over_trajectories
from raml_ray.text import leak, suffix
from raml_ray.workers import pseudo_update, state_update
from raml_ray.workers.pseudo_update import READERS, HeadUpdates
from raml_ray.workers.traced_attention import attention_modules

MEASURES = tuple(each.name for each in fields(HeadUpdates))
TOKEN = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("question_id", pa.string()),
        ("group", pa.string()),
        ("position", pa.int32()),
        ("token", pa.string()),
        ("lhat_before", pa.float32()),
        ("lhat_after", pa.float32()),
        ("reader", pa.string()),
        *((f"{name}_whole", pa.float32()) for name in ("cosine", "cosine_random", "cosine_shuffled", "patch_norm")),
        ("num_layers", pa.int32()),
        *((name, pa.list_(pa.float32())) for name in MEASURES),
    ]
)
"""A token for one reader. `.._whole` is over all layers and heads together; lists hold layer after layer, head after
head. `position` counts the response's tokens up to this one."""
UPDATES = chosen.Table("updates", TOKEN)


def run(context: Context) -> Outcome:
    rows = chosen.trajectories(context)
    found = chosen.mapped(context, rows, Updates, UPDATES)
    groups = {
        group: {
            reader: figures([row for row in found.rows if (row["group"], row["reader"]) == (group, reader)], context)
            for reader in READERS
        }
        for group in ("correct", "wrong")
    }
    return Outcome(Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected), {"groups": groups})


class Updates(chosen.RowByRow):
    """Measures evenly spread tokens of trajectories."""

    def __init__(self, policy: Opened, config: Config) -> None:
        self._policy, self._config = policy, config
        is_twin = policy.model.config.model_type == TWIN
        if not is_twin:
            attention_modules(policy.model)  # refuses the policy here, not over each trajectory
        self._token_update = state_update.token_update if is_twin else pseudo_update.token_update

    def of(self, row: Row) -> Iterable[Row]:
        """A row per token and reader. Raises: ValueError if the trajectory has no token, or as `token_update` does."""
        model, tokenizer = self._policy
        prompt_ids, response_ids = chosen.token_ids(tokenizer, row, self._config.prompt)
        until = self._config.analyze.until
        last = leak.position_of_text(tokenizer, response_ids, until) if until else None
        answer = suffix.answer_suffix(tokenizer, suffix.text_of(self._config.analyze.suffix), row["answer"])
        places = pseudo_update.evenly(
            1, len(response_ids) if last is None else last, self._config.pseudo_update.num_positions
        )
        if not places:
            raise ValueError("the response has no token before its end")
        for place in places:
            found = self._token_update(
                model,
                prompt_ids + response_ids[:place],
                first_position=len(prompt_ids),
                suffix=answer,
                seed=records.seed_of(self._config.seed, "pseudo_update", row["trajectory_id"], place),
            )
            for reader, heads in found.heads.items():
                yield {
                    "trajectory_id": row["trajectory_id"],
                    "question_id": row["question_id"],
                    "group": row["verdict"],
                    "position": place,
                    "token": str(tokenizer.decode(response_ids[place - 1])),
                    "lhat_before": found.lhat_before,
                    "lhat_after": found.lhat_after,
                    "reader": reader,
                    **_whole(heads),
                    "num_layers": heads.mass.shape[0],
                    **{name: getattr(heads, name).flatten().tolist() for name in MEASURES},
                }


def _whole(heads: HeadUpdates) -> dict[str, float]:
    """Cosines and norm of the token's changes in all layers and heads together."""
    gradient = heads.gradient_norm.flatten()
    norms = {
        "cosine": heads.patch_norm,
        "cosine_random": heads.patch_norm,
        "cosine_shuffled": heads.patch_norm_shuffled,
    }
    found = {
        f"{name}_whole": float(joined_cosine(getattr(heads, name).flatten(), norm.flatten(), gradient))
        for name, norm in norms.items()
    }
    return found | {"patch_norm_whole": float(torch.linalg.vector_norm(heads.patch_norm))}


def figures(rows: Sequence[Row], context: Context) -> dict[str, Any]:
    """Of one group and reader: means over each trajectory's tokens, with intervals over trajectories."""
    by_trajectory = defaultdict(list)
    for row in rows:
        by_trajectory[row["trajectory_id"]].append(row)
    columns: dict[str, list[float]] = defaultdict(list)
    for tokens in by_trajectory.values():
        cosine, random, shuffled = (
            np.array([token[f"{name}_whole"] for token in tokens], dtype=np.float64)
            for name in ("cosine", "cosine_random", "cosine_shuffled")
        )
        columns["cosine"].append(float(cosine.mean()))
        columns["cosine_random"].append(float(random.mean()))
        if np.isfinite(shuffled).any():
            columns["cosine_shuffled"].append(float(np.nanmean(shuffled)))
            columns["cosine_excess"].append(float(np.nanmean(cosine - shuffled)))
        if np.isfinite(mass := np.mean([token["mass"] for token in tokens])):
            columns["mass"].append(float(mass))
        columns["transfer_error"].append(float(np.nanmedian([token["transfer_error"] for token in tokens])))
        change = np.array([abs(token["lhat_after"] - token["lhat_before"]) for token in tokens])
        order = np.argsort([token["patch_norm_whole"] for token in tokens])
        if (tau := kendall_tau(change[order])) is not None:
            columns["tau_norm_change"].append(tau)
    names = ("cosine", "cosine_random", "cosine_shuffled", "cosine_excess", "mass", "transfer_error", "tau_norm_change")
    return {
        "num": len(by_trajectory),
        "tokens": len(rows),
        "reconstruction_error_max": max((max(row["reconstruction_error"]) for row in rows), default=None),
        **{name: over_trajectories(columns[name], context.config.seed, name) for name in names},
    }
