"""Thinking, not thinking, and cut thinking: accuracy against tokens.   judged trajectories, policy -> cuts/, answers/

Recorded trajectories are the thinking mode, as they were judged; each is cut in every way (paper, Figs. 5 and 11), and an
answer is sampled behind the cut. So all modes are of the same questions and of the same thoughts.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from raml_ray import records
from raml_ray.config import Config, ConfigError
from raml_ray.records import Verdict
from raml_ray.settings import AnswersConfig
from raml_ray.stages import rollouts
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import answers, chosen
from raml_ray.stages.instruments.answers import Answer
from raml_ray.stages.instruments.chosen import Row
from raml_ray.stages.instruments.intervals import by_question, over_questions
from raml_ray.text import prompts, thinking
from raml_ray.workers import policy as policies

THINKING, UNTHOUGHT, ENDED, BUDGET = "thinking", "no_thinking", "end_of_thought", "budget"
CUTS = chosen.Table(
    "cuts",
    pa.schema(
        [
            *((name, pa.string()) for name in ("trajectory_id", "question_id", "mode")),
            ("num_tokens", pa.int32()),
            ("begun_token_ids", pa.list_(pa.int32())),
        ]
    ),
)
"""What a trajectory is in each mode: of how many response tokens, and what an answer is sampled behind; null where the
mode leaves it as it was recorded."""
PER_QUESTION = pa.schema(
    [
        *((name, pa.string()) for name in ("mode", "question_id")),
        ("accuracy", pa.float64()),
        ("num_tokens", pa.float64()),
    ]
)
LENGTHS = {"max_tokens", "min_tokens", "stop_token_ids", "stop"}
"""Of how a response was sampled: what says when it ends, and not how tokens are drawn."""


class Shown(NamedTuple):
    """A trajectory in one mode."""

    question_id: str
    group: str
    """The verdict on it as it was recorded."""
    mode: str
    accuracy: float | None
    num_tokens: float
    is_forced: bool


def run(context: Context) -> Outcome:
    settings = context.config.modes
    rows = chosen.first_trajectories(context, settings.num_trajectories)
    own = _own(context, rows)
    found = chosen.mapped(context, rows, Cuts, CUTS, open_policy=chosen.tokenizer_alone)
    by_id = {row["trajectory_id"]: row for row in rows}
    beginnings = [
        answers.beginning(by_id[cut["trajectory_id"]], cut["mode"], cut["begun_token_ids"])
        for cut in found.rows
        if cut["begun_token_ids"] is not None
    ]
    sampled = answers.sampled(context, beginnings, settings.num_samples)
    outcomes = list(_outcomes(found.rows, by_id, sampled.answers))
    context.folder.write_table("per_question.parquet", _per_question(outcomes))
    summary = {
        "num": len(rows),
        "own": own,
        "modes": figures(outcomes, context.config.seed),
        "groups": {
            group: figures([one for one in outcomes if one.group == group], context.config.seed)
            for group in ("correct", "wrong")
        },
        "answers": sampled.figures,
    }
    counts = Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected)
    return Outcome(counts, summary, artifacts=("per_question.parquet",))


def _own(context: Context, rows: Sequence[Row]) -> int:
    """How many of the trajectories this very policy sampled.

    Raises: ConfigError if it drew their tokens otherwise than answers are to be drawn: the modes would differ in that.
    """
    path, _ = rollouts.opened_policy(context)
    weights = policies.policy_id(path, "").partition("@")[2]
    mine = [row for row in rows if row["policy_id"].partition("@")[2] == weights]
    wanted = json.loads(rollouts.sampling_of(answers.sampling(context.config.answers, 1)).to_json())
    for row in mine:
        was = json.loads(row["sampling"] or "{}")
        for name in sorted((was.keys() | wanted.keys()) - LENGTHS):
            if row["sampling"] and was.get(name) != wanted.get(name):
                remedy = f"set answers.{name} to that, or " if name in AnswersConfig.model_fields else ""
                raise ConfigError(
                    f"step {context.step.name!r}: its trajectories were sampled with {name}={was.get(name, 'off')}, and"
                    f" answers would be with {wanted.get(name, 'off')}: modes would differ in more than their thinking;"
                    f" {remedy}take other trajectories"
                )
    return len(mine)


class Cuts(chosen.RowByRow):
    """Cuts trajectories in every way."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
        self._tokenizer, self._config = tokenizer, config

    def of(self, row: Row) -> Iterable[Row]:
        """A row per mode. Raises: ValueError if not all of the trajectory is the policy's own."""
        if row["forced"]:
            raise ValueError("the trajectory holds tokens that were put there: it is no thinking that was left alone")
        _, ids = chosen.token_ids(self._tokenizer, row, self._config.prompt)
        thought = thinking.thought(self._tokenizer, ids, self._config.answers.cut_text)
        for mode, begun in self._modes(row, thought):
            yield {
                "trajectory_id": row["trajectory_id"],
                "question_id": row["question_id"],
                "mode": mode,
                "num_tokens": len(ids if begun is None else begun),
                "begun_token_ids": begun,
            }

    def _modes(self, row: Row, thought: thinking.Thought) -> Iterator[tuple[str, list[int] | None]]:
        settings, cut_text, tokenizer = self._config.modes, self._config.answers.cut_text, self._tokenizer
        yield THINKING, None
        prompt_text = prompts.prompt_text(tokenizer, row["problem"], self._config.prompt)
        for name, delimiter in settings.delimiters.items():
            text = thinking.unthought(prompt_text, delimiter)
            yield f"{UNTHOUGHT}_{name}", thinking.encode(tokenizer, text)
        for fraction in settings.fractions:
            end = thought.start + round(fraction * thought.num_tokens)
            kept = thought.token_ids[thought.start : end]
            yield f"{ENDED}_{fraction:g}", thinking.begun(tokenizer, thought, kept, cut_text)
        for budget in settings.budgets:
            # A budget counts the response's tokens, the tag that opens the thought included.
            kept = thought.token_ids[thought.start : min(budget, thought.end)]
            is_cut = budget < thought.closed
            yield f"{BUDGET}_{budget}", thinking.begun(tokenizer, thought, kept, cut_text) if is_cut else None


def _outcomes(cuts: Sequence[Row], by_id: Mapping[str, Row], found: Mapping[str, Answer]) -> Iterator[Shown]:
    """Each trajectory in each mode; cuts behind which no answer could be sampled are left out."""
    for cut in cuts:
        row = by_id[cut["trajectory_id"]]
        head = row["question_id"], row["verdict"], cut["mode"]
        if cut["begun_token_ids"] is None:
            verdict = Verdict(row["verdict"])
            accuracy = float(verdict is Verdict.CORRECT) if verdict.is_judgement else None
            yield Shown(*head, accuracy, cut["num_tokens"], is_forced=False)
        elif answer := found.get(f"{cut['trajectory_id']}/{cut['mode']}"):
            yield Shown(*head, answer.accuracy, answer.num_tokens, is_forced=True)


def figures(outcomes: Sequence[Shown], seed: int) -> dict[str, Any]:
    """By mode: accuracy, tokens and what thinking has more of the former, with intervals over questions."""
    of_mode = _by_mode(outcomes)
    thought = by_question((one.question_id, one.accuracy) for one in of_mode.get(THINKING, []))
    found = {}
    for mode, listed in of_mode.items():
        accuracy = by_question((one.question_id, one.accuracy) for one in listed)
        lead = {question: thought[question] - value for question, value in accuracy.items() if question in thought}
        tokens = by_question((one.question_id, one.num_tokens) for one in listed)
        found[mode] = {
            "questions": len(accuracy),
            "forced": sum(one.is_forced for one in listed) / len(listed),
            "tokens": over_questions(tokens, seed, f"tokens {mode}"),
            "accuracy": over_questions(accuracy, seed, f"accuracy {mode}"),
            "thinking_lead": None if mode == THINKING else over_questions(lead, seed, f"lead {mode}"),
        }
    return found


def _by_mode(outcomes: Sequence[Shown]) -> dict[str, list[Shown]]:
    found: dict[str, list[Shown]] = defaultdict(list)
    for one in outcomes:
        found[one.mode].append(one)
    return found


def _per_question(outcomes: Sequence[Shown]) -> pa.Table:
    """What the intervals are over."""
    rows = []
    for mode, listed in _by_mode(outcomes).items():
        tokens = by_question((one.question_id, one.num_tokens) for one in listed)
        accuracy = by_question((one.question_id, one.accuracy) for one in listed)
        rows += [
            {"mode": mode, "question_id": key, "accuracy": accuracy.get(key), "num_tokens": mean}
            for key, mean in tokens.items()
        ]
    return records.table(rows, PER_QUESTION)
