"""Summaries of trajectories' thinking by a second policy, those left out that say the answer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from raml_ray.config import Config
from raml_ray.records import Question
from raml_ray.settings import PolicyConfig, PromptConfig
from raml_ray.stages import rollouts
from raml_ray.stages.context import Context
from raml_ray.stages.instruments import answers
from raml_ray.stages.instruments.chosen import Row
from raml_ray.text import leak, thinking

PART = "summaries"


class Summaries(NamedTuple):
    """By trajectory; and for the step's summary how many were asked for, set aside, empty, left out with the answer, used."""

    texts: dict[str, str]
    figures: dict[str, int] | None


def of(context: Context, rows: Sequence[Row]) -> Summaries:
    """A summary of each trajectory's thinking that says neither the right answer nor the trajectory's own.

    Raises: as `rollouts.sample`.
    """
    _, tokenizer = rollouts.opened_policy(context)
    asked = []
    for row in rows:
        ids = thinking.encode(tokenizer, row["text"])
        thought = thinking.thought(tokenizer, ids, context.config.answers.cut_text)
        text = str(tokenizer.decode(thought.token_ids[thought.start : thought.end])).strip()
        problem = f"{row['problem']}\n\n{text}"
        asked.append(Question(row["trajectory_id"], problem, row["answer"], row["question_id"]))
    second = _second(context)
    sampling = answers.sampling(
        context.config.answers.model_copy(update={"max_tokens": context.config.shorter.summary_tokens}), 1
    )
    found = {
        key: text.rpartition(thinking.CLOSE)[2].strip() for key, text in answers.texts(second, asked, sampling).items()
    }
    return kept(rows, found)


def kept(rows: Sequence[Row], found: dict[str, str]) -> Summaries:
    """The summaries that are some text without an answer."""
    by_id = {row["trajectory_id"]: row for row in rows}
    told = {key: text for key, text in found.items() if text}
    texts = {key: text for key, text in told.items() if not _says_answer(by_id[key], text)}
    figures = {
        "asked": len(rows),
        "rejected": len(rows) - len(found),
        "empty": len(found) - len(told),
        "with_answer": len(told) - len(texts),
        "used": len(texts),
    }
    return Summaries(texts, figures)


def _says_answer(row: Row, text: str) -> bool:
    known = (row["answer"], row["extracted"])
    return any(leak.character(text, answer) is not None for answer in known if answer)


def _second(context: Context) -> Context:
    """The step as the second policy's, which is asked in its own way."""
    settings = context.config.shorter
    config: Config = context.config.model_copy(
        update={
            "policy": PolicyConfig(path=settings.summary_policy),
            "prompt": PromptConfig(template=settings.summary_template, instruction=settings.summary_instruction),
        }
    )
    return replace(context, config=config, step=context.step.model_copy(update={"policy": ""}), part=PART)
