"""Trajectories of every question.   questions (+ policy) -> questions.parquet, trajectories/, rejected/

From an engine (`generate.source=policy`), from the miniature's oracle, or taken over from a published table.
"""

import logging
from collections.abc import Iterator
from typing import Any

from raml_ray import records
from raml_ray.config import ConfigError
from raml_ray.records import Question, Trajectory
from raml_ray.stages import rollouts, sources
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.text import questions as reading
from raml_ray.workers.engine import Sampling

logger = logging.getLogger(__name__)


def run(context: Context) -> Outcome:
    config = context.config
    questions, rejected = sources.questions(config, config.data, stage="generate")
    context.reject(rejected, "questions")
    if config.generate.source == "policy":
        settings = config.generate
        counts, figures = rollouts.sample(
            context,
            questions,
            sampling=Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_tokens),
            num_samples=settings.num_samples,
            num_engines=settings.num_engines,
            shard_questions=settings.shard_questions,
        )
        return Outcome(counts, figures | {"questions": len(questions), "questions_rejected": len(rejected)})
    made = _oracle(context, questions) if config.generate.source == "oracle" else _imported(context, questions)
    return _written(context, questions, made, len(rejected))


def _oracle(context: Context, questions: list[Question]) -> Iterator[tuple[Trajectory, bool | None]]:
    from raml_ray.miniature import task

    config = context.config
    for question in questions:
        texts = task.oracle(
            question.problem,
            config.miniature,
            num=config.generate.num_samples,
            seed=records.seed_of(config.seed, "oracle", question.question_id),
            length=config.generate.oracle_length,
        )
        for index, text in enumerate(texts):
            yield _text_row(question, f"oracle@{config.generate.oracle_length}", index, text), None


def _imported(context: Context, questions: list[Question]) -> Iterator[tuple[Trajectory, bool | None]]:
    """Published texts, with their published verdicts where data.labels names them."""
    data = context.config.data
    if not data.texts:
        raise ConfigError("generate.source=import needs data.texts: policy name -> the column of its trajectory")
    accepted = {question.question_id: question for question in questions}
    for _, row in sources.rows(data):
        found = reading.question_of(row, data) if row is not None else ""
        question = accepted.pop(found.question_id, None) if isinstance(found, Question) else None
        if question is None or row is None:
            continue
        for policy, column in data.texts.items():
            texts = _listed(reading.lookup(row, column))
            labels = _listed(reading.lookup(row, data.labels[policy])) if policy in data.labels else [None] * len(texts)
            if len(labels) != len(texts):
                raise ConfigError(
                    f"data.labels.{policy}: {len(labels)} labels for {len(texts)} texts of question {question.question_id}"
                )
            for index, (text, label) in enumerate(zip(texts, labels, strict=True)):
                yield _text_row(question, policy, index, text), None if label is None else bool(label)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text_row(question: Question, policy: str, index: int, text: str) -> Trajectory:
    return Trajectory(
        trajectory_id=records.trajectory_id(question.question_id, policy, "", index),
        question_id=question.question_id,
        sample_index=index,
        text=text,
        finish_reason="imported",
        policy_id=policy,
        sampling="",
        seed=0,
    )


def _written(
    context: Context, questions: list[Question], made: Iterator[tuple[Trajectory, bool | None]], num_rejected: int
) -> Outcome:
    rows, labels, rejected = [], [], []
    for row, label in made:
        if not isinstance(row.text, str) or not row.text.strip():
            rejected.append(records.rejected(row.trajectory_id, "generate", "empty_text", row))
            continue
        rows.append(row)
        if label is not None:
            labels.append({"trajectory_id": row.trajectory_id, "label": label})
    context.reject(rejected, "trajectories")
    folder = context.folder
    folder.write_table(rollouts.QUESTIONS, records.table(questions, records.QUESTION))
    if labels:
        folder.write_table("labels.parquet", records.table(labels, records.LABEL))
    size = context.config.generate.shard_questions * context.config.generate.num_samples
    for shard, start in enumerate(range(0, len(rows), size)):
        table = records.table(rows[start : start + size], records.TRAJECTORY)
        (folder / rollouts.TRAJECTORIES).write_table(rollouts.shard_name(shard), table)
    figures = {
        "questions": len(questions),
        "questions_rejected": num_rejected,
        "trajectories": len(rows),
        "labels": len(labels),
    }
    return Outcome(Counts(len(rows) + len(rejected), len(rows), len(rejected)), figures)
