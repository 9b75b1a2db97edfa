"""Answers of engines behind what an instrument made a response begin with, judged as `verify` judges.

A part of the step's work with a folder of its own inside the step's: questions.parquet with what each response begins
with, trajectories/, verdicts/, rejected/, as in a step that samples. Shards that are there stay.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from raml_ray.records import Begun, Question, Verdict
from raml_ray.settings import AnswersConfig, GenerateConfig
from raml_ray.stages import judging, rollouts
from raml_ray.stages.context import Context
from raml_ray.stages.instruments.chosen import Row
from raml_ray.stages.sources import Found

PART = "answers"
SHARD_QUESTIONS = 64


class Answer(NamedTuple):
    """What came out behind one beginning, over its samples."""

    accuracy: float | None
    """Of the samples that the judge could decide on, in [0, 1]; None without any."""
    num_tokens: float
    """Of whole responses, what they began with included and without their end of sequence: the mean."""


@dataclass
class _Tally:
    num_correct: int = 0
    num_judged: int = 0
    num_tokens: list[int] = field(default_factory=list)

    def answer(self) -> Answer:
        accuracy = self.num_correct / self.num_judged if self.num_judged else None
        return Answer(accuracy, sum(self.num_tokens) / len(self.num_tokens))


class Sampled(NamedTuple):
    """Answers by the beginnings' ids; one whose samples were all set aside has none."""

    answers: dict[str, Answer]
    figures: dict[str, Any]
    """For the summary: `sampled`, `tokens`, `truncated`, `rejected`, `rejected_reasons`, `verdicts`."""


def beginning(row: Row, name: str, token_ids: list[int]) -> Begun:
    """The question of a chosen trajectory with another beginning of its response, which the name tells apart."""
    return Begun(
        question_id=f"{row['trajectory_id']}/{name}",
        problem=row["problem"],
        answer=row["answer"],
        source=row["question_id"],
        begun_token_ids=token_ids,
    )


def sampled(context: Context, beginnings: Sequence[Begun], num_samples: int) -> Sampled:
    """`num_samples` answers behind each beginning.

    Raises: as `rollouts.sample` and `judging.judge` do.
    """
    if not beginnings:
        return Sampled({}, {"sampled": 0})
    part, config = replace(context, part=PART), context.config
    counts, figures = rollouts.sample(
        part, Found(list(beginnings), [], []), sampling(config.answers, num_samples), shard_questions=SHARD_QUESTIONS
    )
    _, verdicts = judging.judge(context.step.name, part.folder, [part.folder], config.verify, config.data)
    told = {name: figures[name] for name in ("tokens", "truncated", "rejected_reasons", "engine_failures")}
    told |= {"sampled": counts.rows_out, "rejected": counts.rejected, "verdicts": verdicts["verdicts"]}
    return Sampled(_answers(part), told)


def texts(context: Context, questions: Sequence[Question], settings: GenerateConfig) -> dict[tuple[str, int], str]:
    """The responses to each question, by its id and their number, unjudged; those that were set aside are left out."""
    rollouts.sample(context, Found(list(questions), [], []), settings, shard_questions=SHARD_QUESTIONS)
    shards = context.folder / "trajectories"
    columns = ["question_id", "sample_index", "text"]
    tables = [shards.read_table(name, columns) for name in shards.names("shard-", ".parquet")]
    return {(row["question_id"], row["sample_index"]): row["text"] for table in tables for row in table.to_pylist()}


def sampling(answers: AnswersConfig, num_samples: int) -> GenerateConfig:
    """How answers are drawn, as the settings of a sampling stage."""
    same = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "num_engines")
    return GenerateConfig(num_samples=num_samples, **{name: getattr(answers, name) for name in same})


def _answers(part: Context) -> dict[str, Answer]:
    """Read shard by shard: the tokens of all answers need not fit into memory."""
    tallies: dict[str, _Tally] = defaultdict(_Tally)
    for shard in judging.shards([part.folder]):
        columns = ["question_id", "token_ids", "finish_reason"]
        rows = (part.folder / "trajectories").read_table(shard.file, columns).to_pylist()
        verdicts = (part.folder / judging.VERDICTS).read_table(shard.verdicts, ["verdict"])["verdict"].to_pylist()
        for row, verdict in zip(rows, map(Verdict, verdicts), strict=True):
            tally = tallies[row["question_id"]]
            tally.num_correct += verdict is Verdict.CORRECT
            tally.num_judged += verdict.is_judgement
            tally.num_tokens.append(len(row["token_ids"]) - (row["finish_reason"] == "stop"))
    return {key: tally.answer() for key, tally in tallies.items()}
