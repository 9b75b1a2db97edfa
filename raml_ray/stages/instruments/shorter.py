"""Trajectories shortened in several ways to the same budgets.   judged trajectories, policy -> summaries/, shortened/, answers/

Each budget is a share of a trajectory's thinking, filled with whole sentences; an answer is sampled behind what is left
(paper, 5.3: B8, B11). Deletion by L-hat knows the right answer: on wrong trajectories it tells where the policy went wrong,
and only on correct ones it is a way to shorten.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from raml_ray import records
from raml_ray.config import Config
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import answers, chosen, summaries
from raml_ray.stages.instruments.answers import Answer
from raml_ray.stages.instruments.chosen import Opened, Row
from raml_ray.stages.instruments.intervals import by_question, over_questions
from raml_ray.text import leak, shortening, suffix, thinking
from raml_ray.text.thinking import Thought
from raml_ray.workers.answer_loss import answer_loss

TRUNCATION, RANDOM, LHAT, SUMMARY = "truncation", "random", "lhat", "summary"
WHOLE, NONE = "whole", "none"
SHORTENED = chosen.Table(
    "shortened",
    pa.schema(
        [
            *((name, pa.string()) for name in ("trajectory_id", "question_id", "group", "way")),
            ("fraction", pa.float32()),
            ("num_thinking", pa.int32()),
            ("holds_answer", pa.bool_()),
            ("begun_token_ids", pa.list_(pa.int32())),
        ]
    ),
)
"""A trajectory shortened one way to one budget: tokens of thinking that are left, whether the right answer is among them,
and what an answer is sampled behind."""
COLUMNS = pa.schema([*chosen.CHOSEN, ("summary", pa.string())])


class Shortened(NamedTuple):
    """One trajectory, one way, one budget, answered."""

    question_id: str
    accuracy: float | None
    num_thinking: int
    holds_answer: bool


def run(context: Context) -> Outcome:
    settings = context.config.shorter
    rows = chosen.trajectories(context)
    summed = summaries.of(context, rows) if settings.summary_policy else summaries.Summaries({}, None)
    rows = [row | {"summary": summed.texts.get(row["trajectory_id"])} for row in rows]
    if LHAT in settings.ways:
        found = chosen.mapped(context, rows, GuidedWays, SHORTENED, COLUMNS)
    else:
        found = chosen.mapped(context, rows, Ways, SHORTENED, COLUMNS, open_policy=chosen.tokenizer_alone)
    by_id = {row["trajectory_id"]: row for row in rows}
    beginnings = [
        answers.beginning(by_id[one["trajectory_id"]], _name(one), one["begun_token_ids"]) for one in found.rows
    ]
    sampled = answers.sampled(context, beginnings, settings.num_samples)
    groups = {
        group: figures([one for one in found.rows if one["group"] == group], sampled.answers, context.config)
        for group in ("correct", "wrong")
    }
    counts = Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected)
    return Outcome(counts, {"groups": groups, "summaries": summed.figures, "answers": sampled.figures})


def _name(one: Row) -> str:
    return f"{one['way']}_{one['fraction']:g}"


class Ways(chosen.RowByRow):
    """Shortens trajectories in all ways that need no model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
        self._tokenizer, self._config = tokenizer, config

    def of(self, row: Row) -> Iterable[Row]:
        """A row per way and budget. Raises: ValueError if there is no thinking to shorten."""
        prompt_ids, ids = chosen.token_ids(self._tokenizer, row, self._config.prompt)
        thought = thinking.thought(self._tokenizer, ids, self._config.answers.cut_text)
        if not thought.num_tokens:
            raise ValueError("the trajectory does not think: there is nothing to shorten")
        yield self._row(row, thought, WHOLE, 1.0, thought.token_ids[thought.start : thought.end])
        yield self._row(row, thought, NONE, 0.0, [])
        lengths = [end - start for start, end in thought.sentences]
        orders = self.orders(row, prompt_ids, thought)
        for fraction in self._config.shorter.fractions:
            budget = round(fraction * thought.num_tokens)
            for way in self._config.shorter.ways:
                if way == TRUNCATION:
                    kept = shortening.truncated(lengths, budget)
                else:
                    kept = shortening.without(lengths, orders[way], budget)
                yield self._row(row, thought, way, fraction, _tokens(thought, kept))
            if row["summary"] is not None:
                yield self._row(row, thought, SUMMARY, fraction, self._summary(row["summary"], budget))

    def orders(self, row: Row, prompt_ids: Sequence[int], thought: Thought) -> dict[str, list[int]]:
        """Way -> the order in which it deletes sentences."""
        places = list(range(len(thought.sentences)))
        Random(records.seed_of(self._config.seed, "shorter", row["trajectory_id"])).shuffle(places)
        return {RANDOM: places}

    def _summary(self, summary: str, budget: int) -> list[int]:
        one = thinking.thought(self._tokenizer, thinking.encode(self._tokenizer, summary), "")
        kept = shortening.truncated([end - start for start, end in one.sentences], budget)
        return _tokens(one, kept)

    def _row(self, row: Row, thought: Thought, way: str, fraction: float, kept: list[int]) -> Row:
        return {
            "trajectory_id": row["trajectory_id"],
            "question_id": row["question_id"],
            "group": row["verdict"],
            "way": way,
            "fraction": fraction,
            "num_thinking": len(kept),
            "holds_answer": leak.position(self._tokenizer, kept, row["answer"]) is not None,
            "begun_token_ids": thinking.begun(self._tokenizer, thought, kept, self._config.answers.cut_text),
        }


class GuidedWays(Ways):
    """And by what each sentence is worth to a policy."""

    def __init__(self, policy: Opened, config: Config) -> None:
        super().__init__(policy.tokenizer, config)
        self._model = policy.model

    def orders(self, row: Row, prompt_ids: Sequence[int], thought: Thought) -> dict[str, list[int]]:
        asked = suffix.answer_suffix(self._tokenizer, suffix.text_of(self._config.analyze.suffix), row["answer"])
        before = [*prompt_ids, *thought.token_ids[: thought.start]]
        every = range(len(thought.sentences))
        # What L-hat is with all of them is the same for each, and changes no order.
        with torch.inference_mode():
            worth = [
                float(answer_loss(self._model, [*before, *_tokens(thought, [p for p in every if p != place])], asked))
                for place in every
            ]
        return super().orders(row, prompt_ids, thought) | {LHAT: shortening.by_worth(worth)}


def _tokens(thought: Thought, kept: Sequence[int]) -> list[int]:
    return [token for place in kept for token in thought.token_ids[slice(*thought.sentences[place])]]


def figures(rows: Sequence[Row], found: Mapping[str, Answer], config: Config) -> dict[str, Any]:
    """Of one group by way and budget: what `_figures` says, with what truncation has more where both are there."""
    answered: dict[str, dict[str, list[Shortened]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if answer := found.get(f"{row['trajectory_id']}/{_name(row)}"):
            one = Shortened(row["question_id"], answer.accuracy, row["num_thinking"], row["holds_answer"])
            answered[row["way"]][f"{row['fraction']:g}"].append(one)
    cut = {budget: _accuracy(listed) for budget, listed in answered[TRUNCATION].items()}
    ways = {
        way: {
            budget: _figures(listed, cut.get(budget), config.seed, f"{way} {budget}")
            for budget, listed in budgets.items()
        }
        for way, budgets in answered.items()
        if budgets
    }
    return {"num": len({row["trajectory_id"] for row in rows}), "ways": ways}


def _figures(
    listed: Sequence[Shortened], truncated: Mapping[str, float] | None, seed: int, name: str
) -> dict[str, Any]:
    accuracy = _accuracy(listed)
    unleaked = _accuracy([one for one in listed if not one.holds_answer])
    lead = {key: value - truncated[key] for key, value in accuracy.items() if key in truncated} if truncated else {}
    tokens = by_question((one.question_id, one.num_thinking) for one in listed)
    return {
        "trajectories": len(listed),
        "holds_answer": sum(one.holds_answer for one in listed) / len(listed),
        "tokens": over_questions(tokens, seed, f"tokens {name}"),
        "accuracy": over_questions(accuracy, seed, f"accuracy {name}"),
        "accuracy_without_answer": over_questions(unleaked, seed, f"unleaked {name}"),
        "lead_over_truncation": over_questions(lead, seed, f"lead {name}"),
    }


def _accuracy(listed: Sequence[Shortened]) -> dict[str, float]:
    return by_question((one.question_id, one.accuracy) for one in listed)
