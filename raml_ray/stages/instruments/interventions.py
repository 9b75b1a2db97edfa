"""Reflection words and others, each put in the other's place.   judged trajectories, policy -> interventions/, answers/

Two words at two places: whether a word or where it stands changes L-hat, and (interventions.num_samples) how often what the
policy then goes on to write is right. Everything is held against the same place without a word, so that what follows weighs
alike.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raml_ray.config import Config
from raml_ray.formulas.interventions import Cells, Effects, effects
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import answers, chosen
from raml_ray.stages.instruments.answers import Answer, Sampled
from raml_ray.stages.instruments.chosen import Opened, Row
from raml_ray.stages.instruments.intervals import over_trajectories
from raml_ray.text import leak, neutral, roles, suffix
from raml_ray.text.roles import Word
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers.answer_loss import answer_loss
from raml_ray.workers.pseudo_update import evenly

WORD = pa.struct(
    [
        *((name, pa.string()) for name in ("word", "partner")),
        *((name, pa.int32()) for name in ("start", "partner_start", "horizon")),
        ("log_frequency_ratio", pa.float32()),
        *((name, pa.float32()) for name in (*Cells._fields, "newline")),
    ]
)
"""A word and its partner, where they stand, log(the partner's frequency / the word's), and what each does to L-hat (nats per answer token) at either place, against the
place without it: `horizon` of the trajectory's tokens follow in both."""
CONTINUED = pa.struct([("word", pa.int32()), ("cell", pa.string()), ("token_ids", pa.list_(pa.int32()))])
"""Response tokens that are continued: up to a place, with what a cell has put there. `without` and `without_moved` are the
places alone, of the word and of its partner."""
INTERVENTIONS = chosen.Table(
    "interventions",
    pa.schema(
        [
            *((name, pa.string()) for name in ("trajectory_id", "question_id", "group")),
            ("num_apart", pa.int32()),
            ("words", pa.list_(WORD)),
            ("continued", pa.list_(CONTINUED)),
        ]
    ),
)
"""`num_apart`: words left out, whose partner is further from them in frequency than interventions.max_frequency_ratio."""
WITHOUT, WITHOUT_MOVED = "without", "without_moved"
PLACES = {"own": WITHOUT, "other_here": WITHOUT, "newline": WITHOUT, "moved": WITHOUT_MOVED, "other_own": WITHOUT_MOVED}
"""Cell -> the place without a word that it is held against."""
COLUMNS = pa.schema([*chosen.CHOSEN, ("frequencies", pa.string())])


def run(context: Context) -> Outcome:
    rows = chosen.trajectories(context)
    settings = context.config.interventions
    rules = (*settings.neutral, *context.config.roles.categories[settings.category])
    frequency = json.dumps(neutral.frequencies((row["text"] for row in rows), rules))
    rows = [row | {"frequencies": frequency} for row in rows]
    found = chosen.mapped(context, rows, Interventions, INTERVENTIONS, COLUMNS)
    sampled = _continued(context, rows, found.rows)
    groups = {}
    for group in ("correct", "wrong"):
        mine = [row for row in found.rows if row["group"] == group]
        groups[group] = figures(mine, context.config) | accuracies(mine, sampled.answers, context.config)
    counts = Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected)
    return Outcome(counts, {"groups": groups, "answers": sampled.figures})


def _continued(context: Context, rows: Sequence[Row], found: Sequence[Row]) -> Sampled:
    """The policy's own continuations from every place of every word."""
    by_id = {row["trajectory_id"]: row for row in rows}
    beginnings = [
        answers.beginning(by_id[row["trajectory_id"]], _name(one["word"], one["cell"]), one["token_ids"])
        for row in found
        for one in row["continued"]
    ]
    return answers.sampled(context, beginnings, context.config.interventions.num_samples)


def _name(word: int, cell: str) -> str:
    return f"{word}/{cell}"


class Interventions(chosen.RowByRow):
    """Puts words in each other's places, and looks at L-hat."""

    def __init__(self, policy: Opened, config: Config) -> None:
        self._policy, self._config = policy, config
        self._newline = list(policy.tokenizer(config.interventions.newline, add_special_tokens=False)["input_ids"])

    def of(self, row: Row) -> Iterable[Row]:
        """One row, of no words where the trajectory has none, or none to hold them against."""
        tokenizer, settings = self._policy.tokenizer, self._config.analyze
        prompt_ids, response_ids = chosen.token_ids(tokenizer, row, self._config.prompt)
        last = leak.position_of_text(tokenizer, response_ids, settings.until) if settings.until else None
        leaked = leak.position(tokenizer, response_ids, row["answer"])
        # The token that completes the answer, and all behind it, is no place to look for a word.
        ids = response_ids[: min(len(response_ids), last or len(response_ids), (leaked or len(response_ids) + 1) - 1)]
        answer = suffix.answer_suffix(tokenizer, suffix.text_of(settings.suffix), row["answer"])
        frequency = json.loads(row["frequencies"])
        found = self._pairs(ids, frequency)
        pairs = [pair for pair in found if not self._is_apart(neutral.log_ratio(*pair, frequency))]
        yield {
            "trajectory_id": row["trajectory_id"],
            "question_id": row["question_id"],
            "group": row["verdict"],
            "num_apart": len(found) - len(pairs),
            "words": [
                self._measured(prompt_ids, ids, answer, word, partner, horizon)
                | {"log_frequency_ratio": neutral.log_ratio(word, partner, frequency)}
                for word, partner in pairs
                for horizon in dict.fromkeys((0, self._config.interventions.horizon))
            ],
            "continued": [
                {"word": place, "cell": cell, "token_ids": begun}
                for place, (word, partner) in enumerate(pairs if self._config.interventions.num_samples else ())
                for cell, begun in self._beginnings(ids, word, partner).items()
            ],
        }

    def _is_apart(self, log_ratio: float) -> bool:
        most = self._config.interventions.max_frequency_ratio
        return most is not None and abs(log_ratio) > math.log(most) + 1e-9

    def _beginnings(self, ids: list[int], word: Word, partner: Word) -> dict[str, list[int]]:
        """Cell -> the response up to the place, and what the cell has put there."""
        one, other = (ids[each.start : each.start + each.num_tokens] for each in (word, partner))
        here, there = ids[: word.start], ids[: partner.start]
        return {
            WITHOUT: here,
            "own": here + one,
            "other_here": here + other,
            "newline": here + self._newline,
            WITHOUT_MOVED: there,
            "moved": there + one,
            "other_own": there + other,
        }

    def _pairs(self, ids: list[int], frequency: dict[str, int]) -> list[tuple[Word, Word]]:
        settings, categories = self._config.interventions, self._config.roles.categories
        text, spans = roles.token_spans(self._policy.tokenizer, ids)
        words = [word for word in roles.words(text, spans, categories) if word.category == settings.category]
        others = neutral.candidates(text, spans, categories, settings.neutral)
        picked = [words[index] for index in evenly(0, len(words) - 1, settings.num_words)]
        pairs = [(word, neutral.partner(word, others, frequency)) for word in picked]
        return [(word, partner) for word, partner in pairs if partner is not None]

    def _measured(
        self, prompt_ids: list[int], ids: list[int], answer: AnswerSuffix, word: Word, partner: Word, horizon: int
    ) -> dict[str, Any]:
        one, other = (ids[each.start : each.start + each.num_tokens] for each in (word, partner))

        def changes(at: Word, *put: list[int]) -> list[float]:
            end = at.start + at.num_tokens
            before, behind = [*prompt_ids, *ids[: at.start]], ids[end : end + horizon]
            with torch.inference_mode():
                without, *found = (
                    float(answer_loss(self._policy.model, [*before, *each, *behind], answer)) for each in ([], *put)
                )
            return [value - without for value in found]

        own, other_here, newline = changes(word, one, other, self._newline)
        moved, other_own = changes(partner, one, other)
        cells = Cells(own, other_here, moved, other_own)._asdict()
        names = {"word": word.text, "partner": partner.text, "start": word.start, "partner_start": partner.start}
        return names | {"horizon": horizon, "newline": newline} | cells


def figures(rows: Sequence[Row], config: Config) -> dict[str, Any]:
    """Of one group, by horizon: the cells and effects, means over each trajectory's words, intervals over trajectories; and how
    far words and partners are apart in frequency."""
    found: dict[str, Any] = {"num": len(rows), "num_words": 0, "num_apart": sum(row["num_apart"] for row in rows)}
    apart = [abs(word["log_frequency_ratio"]) for row in rows for word in row["words"] if word["horizon"] == 0]
    found["log_frequency_ratio"] = {"median": float(np.median(apart)), "worst": max(apart)} if apart else None
    for horizon in dict.fromkeys((0, config.interventions.horizon)):
        columns: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            words = [word for word in row["words"] if word["horizon"] == horizon]
            for name, values in _values(words).items():
                columns[name].append(float(np.mean(values)))
        found["num_words"] = sum(word["horizon"] == horizon for row in rows for word in row["words"])
        found[f"after_{horizon}"] = {
            name: over_trajectories(columns[name], config.seed, f"{name} {horizon}")
            for name in (*Cells._fields, "newline", *Effects._fields)
        }
    return found


def accuracies(rows: Sequence[Row], found: Mapping[str, Answer], config: Config) -> dict[str, Any]:
    """Of one group `accuracy`: the cells and effects as changes of accuracy, as `figures` has those of L-hat, and how often
    the continuations without a word are right; nothing where none were sampled.

    A word counts if each of its places has a continuation that could be judged.
    """
    if not config.interventions.num_samples:
        return {}
    columns: dict[str, list[float]] = defaultdict(list)
    num_words = 0
    for row in rows:
        words = [each for word in _by_word(row, found).values() if (each := _changes(word)) is not None]
        num_words += len(words)
        for name, values in _values(words).items():
            columns[name].append(float(np.mean(values)))
        if words:
            columns[WITHOUT].append(float(np.mean([word[WITHOUT] for word in words])))
    names = (*Cells._fields, "newline", *Effects._fields, WITHOUT)
    means = {name: over_trajectories(columns[name], config.seed, f"accuracy {name}") for name in names}
    return {"accuracy": {"num_words": num_words, **means}}


def _by_word(row: Row, found: Mapping[str, Answer]) -> dict[int, dict[str, float | None]]:
    """Word -> cell -> accuracy of its continuations, in [0, 1]."""
    words: dict[int, dict[str, float | None]] = defaultdict(dict)
    for one in row["continued"]:
        answer = found.get(f"{row['trajectory_id']}/{_name(one['word'], one['cell'])}")
        words[one["word"]][one["cell"]] = answer.accuracy if answer else None
    return words


def _changes(accuracy: Mapping[str, float | None]) -> dict[str, float] | None:
    """Cell -> its accuracy less that of its place without a word, and the latter of the word's own place."""
    there = {cell: value for cell, value in accuracy.items() if value is not None}
    if len(there) < len(accuracy):
        return None
    return {cell: there[cell] - there[place] for cell, place in PLACES.items()} | {WITHOUT: there[WITHOUT]}


def _values(words: Sequence[Row]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for word in words:
        cells = Cells(*(word[name] for name in Cells._fields))
        for name, value in (cells._asdict() | effects(cells)._asdict() | {"newline": word["newline"]}).items():
            found[name].append(value)
    return found
