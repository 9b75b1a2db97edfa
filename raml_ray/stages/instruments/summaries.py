"""Summaries of trajectories' thinking by a second policy, those left out that say the answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from raml_ray.config import Config
from raml_ray.records import Question
from raml_ray.settings import GenerateConfig, PolicyConfig, PromptConfig
from raml_ray.stages import rollouts
from raml_ray.stages.context import Context
from raml_ray.stages.instruments import answers
from raml_ray.stages.instruments.chosen import Row
from raml_ray.text import leak, thinking

PART = "summaries"
PLACE = re.compile(r"\{(problem|reasoning)\}")

Drawn = dict[tuple[str, int], str]
"""Trajectory and number of the draw -> text."""


class Summaries(NamedTuple):
    """By trajectory and draw; and for the step's summary how many were asked for, set aside, empty, left out with the
    answer, used."""

    texts: Drawn
    figures: dict[str, int] | None

    def of_trajectory(self, trajectory_id: str, num_draws: int) -> list[str | None]:
        """Its summaries in the order of their draws, None where one is left out."""
        return [self.texts.get((trajectory_id, draw)) for draw in range(num_draws)]


def of(context: Context, rows: Sequence[Row]) -> Summaries:
    """Summaries of each trajectory's thinking that say neither the right answer nor the trajectory's own.

    Raises: as `rollouts.sample`.
    """
    settings, second = context.config.shorter, _second(context)
    _, tokenizer = rollouts.opened_policy(context)
    _, reader = rollouts.opened_policy(second)
    asked = []
    for row in rows:
        ids = thinking.encode(tokenizer, row["text"])
        thought = thinking.thought(tokenizer, ids, context.config.answers.cut_text)
        text = str(tokenizer.decode(thought.token_ids[thought.start : thought.end])).strip()
        turn = request(settings.summary_instruction, row["problem"], beginning(reader, text, settings.summary_reads))
        asked.append(Question(row["trajectory_id"], turn, row["answer"], row["question_id"]))
    sampling = GenerateConfig(
        num_samples=settings.summary_draws,
        temperature=settings.summary_temperature,
        max_tokens=settings.summary_tokens,
        num_engines=context.config.answers.num_engines,
    )
    found = answers.texts(second, asked, sampling)
    # Of a policy that thinks before it writes, what it writes.
    written = {key: text.rpartition(thinking.CLOSE)[2].strip() for key, text in found.items()}
    return kept(rows, written, settings.summary_draws)


def request(instruction: str, problem: str, reasoning: str) -> str:
    """The summariser's user turn."""
    parts = {"problem": problem, "reasoning": reasoning}
    return PLACE.sub(lambda place: parts[place[1]], instruction)


def beginning(tokenizer: PreTrainedTokenizerBase, text: str, num_tokens: int) -> str:
    """The text's first tokens; all of it for 0."""
    ids = thinking.encode(tokenizer, text) if num_tokens else []
    return str(tokenizer.decode(ids[:num_tokens])) if len(ids) > num_tokens else text


def kept(rows: Sequence[Row], found: Mapping[tuple[str, int], str], num_draws: int) -> Summaries:
    """The summaries that are some text without an answer."""
    by_id = {row["trajectory_id"]: row for row in rows}
    told = {key: text for key, text in found.items() if text}
    texts = {key: text for key, text in told.items() if not _says_answer(by_id[key[0]], text)}
    figures = {
        "asked": len(rows) * num_draws,
        "rejected": len(rows) * num_draws - len(found),
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
    settings, engine = context.config.shorter, context.config.engine
    longest = settings.summary_max_model_len or engine.max_model_len
    config: Config = context.config.model_copy(
        update={
            "policy": PolicyConfig(path=settings.summary_policy),
            "prompt": PromptConfig(template=settings.summary_template, instruction="{problem}"),
            "engine": engine.model_copy(update={"max_model_len": longest}),
        }
    )
    return replace(context, config=config, step=context.step.model_copy(update={"policy": ""}), part=PART)
