"""Pseudo-updates against updates that training makes, all of W_v.   judged trajectories, policy -> changes/

Of each trajectory three changes: the pseudo-update that stands in for it, steps of SGD on its question's answer, and an
adapter distilled from the policy that has read it; beside each random ones of its length. Each is made once for the whole
answer and, where the answer has several tokens, once more for the first alone, to see what the others get of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import pyarrow as pa

from raml_ray import records
from raml_ray.config import Config
from raml_ray.formulas.landscape import cosine, norm
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import chosen
from raml_ray.stages.instruments.chosen import Opened, Reject, Row
from raml_ray.stages.instruments.intervals import by_question, over_questions
from raml_ray.text import leak, suffix
from raml_ray.workers import real_updates
from raml_ray.workers.landscape import loss_after, noise_like, scaled
from raml_ray.workers.real_updates import KINDS, Case, Change, Effect
from raml_ray.workers.traced_attention import attention_modules

NOISE = "noise_"
PAIRS = tuple(combinations(KINDS, 2))
CHANGE = pa.schema(
    [
        *((name, pa.string()) for name in ("trajectory_id", "question_id", "group", "made_for", "change")),
        ("norm", pa.float32()),
        *((name, pa.float32()) for name in (*Effect._fields, "lhat_at_length", "lhat_others")),
        *((f"{null}{kind}", pa.float32()) for null in ("cosine_", "cosine_other_") for kind in KINDS),
    ]
)
"""A change of W_v, and what the policy then says of the answer without the trajectory. Changes: KINDS; `noise_KIND`, a random
one of that one's length; `none`; `trajectory`, the policy as it is behind the trajectory. `made_for` is `answer`, or `first`
of its tokens. `lhat_at_length`: scaled to the pseudo-update's length; `lhat_others`: of the shard's other questions;
`cosine_KIND`: with that change of the same trajectory, `cosine_other_KIND`: with another question's."""
CHANGES = chosen.Table("changes", CHANGE, rows_per_shard=4)


class _Made(NamedTuple):
    """A trajectory's changes, by the answer tokens that they are made for."""

    row: Row
    case: Case
    changes: dict[str, dict[str, Change]]


def run(context: Context) -> Outcome:
    rows = chosen.trajectories(context)
    found = chosen.mapped(context, rows, RealUpdates, CHANGES)
    groups = {
        group: figures([row for row in found.rows if row["group"] == group], context.config.seed)
        for group in ("correct", "wrong")
    }
    return Outcome(Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected), {"groups": groups})


class RealUpdates:
    """Makes the changes of a shard's trajectories, and holds each against the others."""

    def __init__(self, policy: Opened, config: Config) -> None:
        attention_modules(policy.model)  # refuses the policy here, not over each trajectory
        self._policy, self._config = policy, config

    def __call__(self, rows: Sequence[Row], reject: Reject) -> Iterator[Row]:
        made = []
        for row in rows:
            try:
                made.append(self._made(row))
            except ValueError as error:
                reject(row, error)
        for index, mine in enumerate(made):
            others: dict[str, _Made] = {}
            for other in (*made[index + 1 :], *made[:index]):
                others.setdefault(other.row["question_id"], other)
            others.pop(mine.row["question_id"], None)
            yield from self._measured(mine, list(others.values()))

    def _made(self, row: Row) -> _Made:
        tokenizer, settings = self._policy.tokenizer, self._config.analyze
        prompt_ids, response_ids = chosen.token_ids(tokenizer, row, self._config.prompt)
        last = leak.position_of_text(tokenizer, response_ids, settings.until) if settings.until else None
        ids = response_ids[:last]
        if not ids:
            raise ValueError("the response has no token before its end")
        answer = suffix.answer_suffix(tokenizer, suffix.text_of(settings.suffix), row["answer"])
        case = Case(prompt_ids, ids, answer)
        asked = {"answer": answer}
        if answer.num_answer_tokens > 1:
            asked["first"] = real_updates.first_token_alone(answer)
        changes = {
            made_for: real_updates.changes(self._policy.model, case, tokens, self._config.real_updates, self._seed(row))
            for made_for, tokens in asked.items()
        }
        return _Made(row, case, changes)

    def _seed(self, row: Row) -> int:
        return records.seed_of(self._config.seed, "real_updates", row["trajectory_id"])

    def _measured(self, mine: _Made, others: Sequence[_Made]) -> Iterator[Row]:
        """The rows of one trajectory. `others` are of other questions, the nearest one first."""
        model = self._policy.model

        def elsewhere(change: Change | None) -> float | None:
            # None of them is asked what the policy says behind its trajectory: most of what `effect` costs.
            values = [loss_after(model, change or {}, other.case.prompt_ids, other.case.suffix) for other in others]
            return sum(values) / len(values) if values else None

        head = {name: mine.row[name] for name in ("trajectory_id", "question_id")} | {"group": mine.row["verdict"]}
        unchanged = real_updates.effect(model, mine.case)._asdict()
        read = real_updates.effect(model, mine.case, with_trajectory=True)._asdict()
        for made_for, changes in mine.changes.items():
            at = head | {"made_for": made_for}
            yield at | unchanged | {"change": "none", "norm": 0.0, "lhat_others": elsewhere(None)}
            yield at | read | {"change": "trajectory"}
            length, there = norm(changes["pseudo"]), others[0].changes.get(made_for) if others else None
            for name, change in self._with_noise(mine.row, changes):
                row = at | {"change": name, "norm": norm(change), "lhat_others": elsewhere(change)}
                row |= real_updates.effect(model, mine.case, change)._asdict()
                if not name.startswith(NOISE):
                    same_length = scaled(change, length)
                    row["lhat_at_length"] = loss_after(model, same_length, mine.case.prompt_ids, mine.case.suffix)
                row |= {f"cosine_{kind}": cosine(change, changes[kind]) for kind in KINDS}
                row |= {f"cosine_other_{kind}": cosine(change, there[kind]) for kind in KINDS if there}
                yield row

    def _with_noise(self, row: Row, changes: Mapping[str, Change]) -> Iterator[tuple[str, Change]]:
        for kind, change in changes.items():
            yield kind, change
            for draw in range(self._config.real_updates.num_noise):
                yield f"{NOISE}{kind}", noise_like(change, records.seed_of(self._seed(row), kind, draw))


def figures(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Of one group: means over trajectories and draws of a question, with intervals over questions."""
    whole = [row for row in rows if row["made_for"] == "answer"]
    narrow = [row for row in rows if row["made_for"] == "first"]
    return {
        "num": len({row["trajectory_id"] for row in whole}),
        "num_several_tokens": len({row["trajectory_id"] for row in narrow}),
        "cosines": {f"{one}_{other}": _cosines(whole, one, other, seed) for one, other in PAIRS},
        "without": _mean(whole, "none", lambda row: row["lhat"], seed),
        "with": _mean(whole, "trajectory", lambda row: row["lhat"], seed),
        "effects": {kind: _effects(whole, kind, seed) for kind in KINDS},
        "tokens": {kind: _tokens(narrow, kind, seed) for kind in KINDS},
    }


def _cosines(rows: Sequence[Row], one: str, other: str, seed: int) -> dict[str, Any]:
    own, foreign = f"cosine_{other}", f"cosine_other_{other}"
    return {
        "own": _mean(rows, one, lambda row: row[own], seed),
        "other": _mean(rows, one, lambda row: row[foreign], seed),
        "excess": _mean(rows, one, lambda row: less(row[own], row[foreign]), seed),
        "noise": _mean(rows, f"{NOISE}{one}", lambda row: row[own], seed),
    }


def _effects(rows: Sequence[Row], kind: str, seed: int) -> dict[str, Any]:
    none = {row["trajectory_id"]: row for row in rows if row["change"] == "none"}

    def fall(row: Row) -> float:
        return float(none[row["trajectory_id"]]["lhat"]) - float(row["lhat"])

    return {
        "norm": _mean(rows, kind, lambda row: row["norm"], seed),
        "lhat": _mean(rows, kind, lambda row: row["lhat"], seed),
        "fall": _mean(rows, kind, fall, seed),
        "fall_noise": _mean(rows, f"{NOISE}{kind}", fall, seed),
        "lhat_noise": _mean(rows, f"{NOISE}{kind}", lambda row: row["lhat"], seed),
        "lhat_at_length": _mean(rows, kind, lambda row: row["lhat_at_length"], seed),
        "kl": _mean(rows, kind, lambda row: row["kl"], seed),
        "fall_others": _mean(
            rows, kind, lambda row: less(none[row["trajectory_id"]]["lhat_others"], row["lhat_others"]), seed
        ),
    }


def _tokens(rows: Sequence[Row], kind: str, seed: int) -> dict[str, Any]:
    """How far the answer's first token, and its further ones, fall by what was made for the first."""
    none = {row["trajectory_id"]: row for row in rows if row["change"] == "none"}

    def fall(column: str) -> Callable[[Row], float | None]:
        return lambda row: less(none[row["trajectory_id"]][column], row[column])

    return {
        "fall_first": _mean(rows, kind, fall("lhat_first"), seed),
        "fall_rest": _mean(rows, kind, fall("lhat_rest"), seed),
        "fall_rest_noise": _mean(rows, f"{NOISE}{kind}", fall("lhat_rest"), seed),
    }


def less(one: float | None, other: float | None) -> float | None:
    """The difference; None where one is missing."""
    return None if one is None or other is None else one - other


def _mean(rows: Sequence[Row], change: str, value: Callable[[Row], float | None], seed: int) -> dict[str, Any] | None:
    found = by_question((row["question_id"], value(row)) for row in rows if row["change"] == change)
    return over_questions(found, seed, change)
