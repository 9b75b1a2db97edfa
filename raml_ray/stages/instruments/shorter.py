"""Trajectories shortened in several ways to the same budgets.   judged trajectories, policy -> summaries/, shortened/,
answers/, answered.parquet

Each budget is a share of a trajectory's thinking, or as many tokens as a summary of it has, filled with whole sentences; an
answer is sampled behind what is left (paper, 5.3: B8, B11). Deletion by L-hat knows the right answer: on wrong trajectories it tells where the policy went wrong,
and only on correct ones it is a way to shorten.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from raml_ray import records
from raml_ray.config import Config
from raml_ray.stages import beside
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
AS_SUMMARY = "summary"
"""The budget of as many tokens as a summary has."""
WHAT = [
    *((name, pa.string()) for name in ("trajectory_id", "question_id", "group", "way", "budget")),
    ("draw", pa.int32()),
    ("num_thinking", pa.int32()),
    ("holds_answer", pa.bool_()),
]
"""A trajectory shortened one way to one budget (a share of its tokens, or AS_SUMMARY); the number of the summary that it is,
or is held against; tokens of thinking that are left, and whether the right answer is among them."""
SHORTENED = chosen.Table("shortened", pa.schema([*WHAT, ("begun_token_ids", pa.list_(pa.int32()))]))
"""With what an answer is sampled behind."""
ANSWERED, ANSWERED_ROW = "answered.parquet", pa.schema([*WHAT, ("set", pa.string()), ("accuracy", pa.float32())])
"""With its question's set and the share of its answers that are right, null where none could be judged; what has no answer is
left out."""
COLUMNS = pa.schema([*chosen.CHOSEN, ("summaries", pa.list_(pa.string()))])


def run(context: Context) -> Outcome:
    settings, sets = context.config.shorter, evaluated_sets(context)
    beside.check("shorter.summary_published", settings.summary_published, sets)
    rows = chosen.trajectories(context)
    summed = summaries.of(context, rows) if settings.summary_policy else summaries.Summaries({}, None)
    num_draws = settings.summary_draws if settings.summary_policy else 0
    rows = [row | {"summaries": summed.of_trajectory(row["trajectory_id"], num_draws)} for row in rows]
    if LHAT in settings.ways:
        found = chosen.mapped(context, rows, GuidedWays, SHORTENED, COLUMNS)
    else:
        found = chosen.mapped(context, rows, Ways, SHORTENED, COLUMNS, open_policy=chosen.tokenizer_alone)
    by_id = {row["trajectory_id"]: row for row in rows}
    beginnings = [
        answers.beginning(by_id[one["trajectory_id"]], _name(one), one["begun_token_ids"]) for one in found.rows
    ]
    sampled = answers.sampled(context, beginnings, settings.num_samples)
    told = answered(found.rows, sampled.answers, {key: row["source"] for key, row in by_id.items()})
    context.folder.write_table(ANSWERED, records.table(told, ANSWERED_ROW))
    seed = context.config.seed
    groups = {
        group: {
            "num": len({one["trajectory_id"] for one in found.rows if one["group"] == group}),
            "ways": figures([one for one in told if one["group"] == group], seed),
        }
        for group in ("correct", "wrong")
    }
    counts = Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected)
    by_set = of_sets(told, seed) if num_draws else {}
    compared = beside_the_paper(settings.summary_published, sets, by_set)
    beside.tell(compared)
    said = {"groups": groups, "sets": by_set, "summaries": summed.figures, "published": compared}
    return Outcome(counts, said | {"answers": sampled.figures})


def evaluated_sets(context: Context) -> dict[str, str]:
    """Name -> path of the question sets of the evaluations whose trajectories are shortened."""
    sets: dict[str, str] = {}
    for name in context.step.data:
        if context.whole.step(name).stage == "evaluate":
            sets |= context.whole.for_step(name).evaluate.sets
    return sets


def answered(rows: Sequence[Row], found: Mapping[str, Answer], sets: Mapping[str, str]) -> list[Row]:
    """ANSWERED_ROW of every shortened trajectory behind which there is an answer; `sets` by trajectory."""
    return [
        {name: row[name] for name, _ in WHAT} | {"set": sets[row["trajectory_id"]], "accuracy": answer.accuracy}
        for row in rows
        if (answer := found.get(f"{row['trajectory_id']}/{_name(row)}"))
    ]


def _name(one: Row) -> str:
    return f"{one['way']}_{one['budget']}_{one['draw']}"


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
        yield self._row(row, thought, WHOLE, "1", thought.token_ids[thought.start : thought.end])
        yield self._row(row, thought, NONE, "0", [])
        orders = self.orders(row, prompt_ids, thought)
        shares = {f"{share:g}": round(share * thought.num_tokens) for share in self._config.shorter.fractions}
        for budget, most in shares.items():
            yield from self._shortened(row, thought, orders, budget, most)
        for draw, summary in enumerate(row["summaries"]):
            if summary is not None:
                told = thinking.thought(self._tokenizer, thinking.encode(self._tokenizer, summary), "")
                for budget, most in (shares | {AS_SUMMARY: told.num_tokens}).items():
                    kept = shortening.truncated(_lengths(told), most)
                    yield self._row(row, thought, SUMMARY, budget, _tokens(told, kept), draw)
                yield from self._shortened(row, thought, orders, AS_SUMMARY, told.num_tokens, draw)

    def _shortened(
        self, row: Row, thought: Thought, orders: Mapping[str, Sequence[int]], budget: str, most: int, draw: int = 0
    ) -> Iterator[Row]:
        """To `most` tokens, in every way of shorter.ways."""
        lengths = _lengths(thought)
        for way in self._config.shorter.ways:
            if way == TRUNCATION:
                kept = shortening.truncated(lengths, most)
            else:
                kept = shortening.without(lengths, orders[way], most)
            yield self._row(row, thought, way, budget, _tokens(thought, kept), draw)

    def orders(self, row: Row, prompt_ids: Sequence[int], thought: Thought) -> dict[str, list[int]]:
        """Way -> the order in which it deletes sentences."""
        places = list(range(len(thought.sentences)))
        Random(records.seed_of(self._config.seed, "shorter", row["trajectory_id"])).shuffle(places)
        return {RANDOM: places}

    def _row(self, row: Row, thought: Thought, way: str, budget: str, kept: list[int], draw: int = 0) -> Row:
        return {
            "trajectory_id": row["trajectory_id"],
            "question_id": row["question_id"],
            "group": row["verdict"],
            "way": way,
            "budget": budget,
            "draw": draw,
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


def _lengths(thought: Thought) -> list[int]:
    return [end - start for start, end in thought.sentences]


def figures(rows: Sequence[Row], seed: int) -> dict[str, dict[str, Any]]:
    """Of ANSWERED_ROWs by way and budget: what `_figures` says, with what truncation has more where both are there."""
    by_way: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_way[row["way"]][row["budget"]].append(row)
    cut = {budget: _accuracy(listed) for budget, listed in by_way[TRUNCATION].items()}
    return {
        way: {budget: _figures(listed, cut.get(budget), seed, f"{way} {budget}") for budget, listed in budgets.items()}
        for way, budgets in by_way.items()
        if budgets
    }


def _figures(listed: Sequence[Row], truncated: Mapping[str, float] | None, seed: int, name: str) -> dict[str, Any]:
    accuracy = _accuracy(listed)
    unleaked = _accuracy([one for one in listed if not one["holds_answer"]])
    lead = {key: value - truncated[key] for key, value in accuracy.items() if key in truncated} if truncated else {}
    tokens = by_question((one["question_id"], one["num_thinking"]) for one in listed)
    return {
        "trajectories": len({one["trajectory_id"] for one in listed}),
        "holds_answer": sum(one["holds_answer"] for one in listed) / len(listed),
        "tokens": over_questions(tokens, seed, f"tokens {name}"),
        "accuracy": over_questions(accuracy, seed, f"accuracy {name}"),
        "accuracy_without_answer": over_questions(unleaked, seed, f"unleaked {name}"),
        "lead_over_truncation": over_questions(lead, seed, f"lead {name}"),
    }


def of_sets(rows: Sequence[Row], seed: int) -> dict[str, dict[str, Any]]:
    """Question set -> way -> accuracy of its trajectories, right and wrong ones, and the share of questions that any of
    them answers: whole, none, and as long as their summaries are (the paper's Fig. 11)."""
    by_set: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["budget"] == AS_SUMMARY or row["way"] in (WHOLE, NONE):
            by_set[row["set"]][row["way"]].append(row)
    return {
        name: {way: _of_set(listed, seed, f"{name} {way}") for way, listed in ways.items()}
        for name, ways in by_set.items()
    }


def beside_the_paper(
    published: str, sets: Mapping[str, str], by_set: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What summaries reach (of `of_sets`) beside the paper's row, of the sets in which there are summaries."""
    found = {name: ways[SUMMARY] for name, ways in by_set.items() if SUMMARY in ways}
    ours = {
        name: {"num_questions": one["questions"], "accuracy": one["accuracy"], "pass_at_k": one["solved"]}
        for name, one in found.items()
    }
    return list(beside.rows(published, {name: path for name, path in sets.items() if name in ours}, ours))


def _of_set(listed: Sequence[Row], seed: int, name: str) -> dict[str, Any]:
    """Draws count alike: of each the share of questions that some trajectory's answers are right on."""
    drawn: dict[tuple[str, int], list[float]] = defaultdict(list)
    for one in listed:
        if one["accuracy"] is not None:
            drawn[one["question_id"], one["draw"]].append(one["accuracy"])
    solved = by_question((question, float(max(each) > 0)) for (question, _), each in drawn.items())
    tokens = by_question((one["question_id"], one["num_thinking"]) for one in listed)
    return {
        "questions": len(solved),
        "tokens": over_questions(tokens, seed, f"tokens {name}"),
        "accuracy": over_questions(_accuracy(listed), seed, f"accuracy {name}"),
        "solved": over_questions(solved, seed, f"solved {name}"),
    }


def _accuracy(listed: Sequence[Row]) -> dict[str, float]:
    return by_question((one["question_id"], one["accuracy"]) for one in listed)
