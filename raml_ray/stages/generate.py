"""Trajectories of every question.   questions (+ policy) -> questions.parquet, trajectories/, rejected/

From an engine (`generate.source=policy`), from the miniature's oracle, or taken over from a published table.
"""

import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from raml_ray import records, storage
from raml_ray.config import ConfigError, fingerprint
from raml_ray.records import Question, Rejected, Trajectory
from raml_ray.settings import DataConfig
from raml_ray.stages import mapping, rollouts, sources
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.text import questions as reading
from raml_ray.workers.engine import Sampling

logger = logging.getLogger(__name__)

LABELS = "labels.parquet"


def run(context: Context) -> Outcome:
    config = context.config
    questions, rejected = sources.questions(config, config.data, stage="generate")
    context.reject(rejected, "questions")
    figures = {"questions": len(questions), "questions_rejected": len(rejected)}
    settings = config.generate
    if settings.source == "policy":
        counts, sampled = rollouts.sample(
            context,
            questions,
            sampling=Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_tokens),
            num_samples=settings.num_samples,
            num_engines=settings.num_engines,
            shard_questions=settings.shard_questions,
            questions_rejected=len(rejected),
        )
        return Outcome(counts, figures | sampled)
    num_rows = len(questions) + len(rejected)
    if settings.source == "oracle":
        made = _oracle(context, questions, rejected)
    else:
        made = _imported(context, questions, num_rows)
    return _written(context, questions, made, figures)


Made = tuple[Trajectory, bool | None] | Rejected
"""A trajectory with its published verdict, where there is one; or why a row that went in has become none."""


def _oracle(context: Context, questions: list[Question], without: list[Rejected]) -> Iterator[Made]:
    """The oracle's solutions of the questions; a question that was set aside counts with all that it would have had."""
    from raml_ray.miniature import task

    config = context.config
    settings = config.generate
    how = fingerprint({"seed": config.seed, "length": settings.oracle_length, "miniature": config.miniature})
    for question in questions:
        texts = task.oracle(
            question.problem,
            config.miniature,
            num=settings.num_samples,
            seed=records.seed_of(config.seed, "oracle", question.question_id),
            length=settings.oracle_length,
        )
        for index, text in enumerate(texts):
            yield _text_row(question, f"oracle@{settings.oracle_length}", index, text, how), None
        for index in range(len(texts), settings.num_samples):
            key = rollouts.sample_key(question.question_id, index)
            yield records.rejected(key, "generate", "no_other_path", question)
    for row in without:
        for index in range(settings.num_samples):
            yield records.rejected(
                rollouts.sample_key(row.row_key, index), "generate", "question_set_aside", row.payload
            )


def _imported(context: Context, questions: list[Question], num_rows: int) -> Iterator[Made]:
    """Published texts, with their published verdicts where data.labels names them, of the rows that were read."""
    data = context.config.data
    if not data.texts:
        raise ConfigError("generate.source=import needs data.texts: policy name -> the column of its trajectory")
    if unknown := sorted(data.labels.keys() - data.texts.keys()):
        raise ConfigError(
            f"data.labels names {unknown}, of which data.texts has no text: it names {sorted(data.texts)}"
        )
    accepted = {question.question_id: question for question in questions}
    for place, row in islice(sources.rows(data), num_rows):
        found = reading.question_of(row, data) if row is not None else "not_a_record"
        question = accepted.pop(found.question_id, None) if isinstance(found, Question) else None
        for policy in data.texts:
            yield from _texts(place, row or {}, question, policy, data)


def _texts(
    place: str, row: Mapping[str, Any], question: Question | None, policy: str, data: DataConfig
) -> Iterator[Made]:
    """Of one policy in one row every text, or why it cannot be used."""
    texts = _listed(row, data.texts[policy])
    labels = _listed(row, data.labels[policy]) if policy in data.labels else None
    for index in range(max(len(texts), 1)):
        reason = _flaw(texts, labels, index)
        if question is None or reason:
            key = f"{place}:{policy}#{index}"
            yield records.rejected(key, "generate", reason if question else "question_set_aside", row)
            continue
        how = records.digest("text", texts[index])
        yield _text_row(question, policy, index, texts[index], how), bool(labels[index]) if labels else None


def _flaw(texts: list[Any], labels: list[Any] | None, index: int) -> str:
    """Why this text cannot be used; empty if it can."""
    if not texts:
        return "missing_text"
    if not isinstance(texts[index], str) or not texts[index].strip():
        return "empty_text"
    if labels is not None and len(labels) != len(texts):
        return f"bad_label:{len(labels)} of {len(texts)} texts"
    if labels is not None and not (isinstance(labels[index], bool | int | float) and labels[index] in (0, 1)):
        return f"bad_label:{labels[index]!r}"[:200]
    return ""


def _listed(row: Mapping[str, Any], column: str) -> list[Any]:
    """What stands in the column, one or a list of several; nothing if the row has no such column."""
    try:
        value = reading.lookup(row, column)
    except KeyError:
        return []
    return value if isinstance(value, list) else [value]


def _text_row(question: Question, policy: str, index: int, text: str, how: str) -> Trajectory:
    return Trajectory(
        trajectory_id=records.trajectory_id(question.question_id, policy, how, index),
        question_id=question.question_id,
        sample_index=index,
        text=text,
        finish_reason="imported",
        policy_id=policy,
        sampling="",
        seed=0,
    )


def _written(context: Context, questions: list[Question], made: Iterator[Made], figures: dict[str, Any]) -> Outcome:
    """Write all rows anew, and count what can then be read."""
    rows, labels, rejected = [], [], []
    for item in made:
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        rows.append(item[0])
        if item[1] is not None:
            labels.append({"trajectory_id": item[0].trajectory_id, "label": item[1]})
    _check_share(context, rejected, len(rows) + len(rejected))
    folder = context.folder
    mapping.write_rejected(folder, "trajectories.parquet", rejected)
    (folder / rollouts.TRAJECTORIES).remove()
    folder.write_table(rollouts.QUESTIONS, records.table(questions, records.QUESTION))
    if labels:
        folder.write_table(LABELS, records.table(labels, records.LABEL))
    size = context.config.generate.shard_questions * context.config.generate.num_samples
    for shard, start in enumerate(range(0, len(rows), size)):
        table = records.table(rows[start : start + size], records.TRAJECTORY)
        (folder / rollouts.TRAJECTORIES).write_table(rollouts.shard_name(shard), table)
    there = storage.trajectories(folder)["trajectory_id"].to_pylist()
    mapping.check_complete(folder, [row.trajectory_id for row in rows], there, [])
    counts = Counts(len(rows) + len(rejected), len(there), len(rejected))
    return Outcome(counts, figures | {"trajectories": len(there), "labels": len(labels)})


def _check_share(context: Context, rejected: list[Rejected], total: int) -> None:
    """Raises: ConfigError if more published texts than data.max_rejected_fraction had to be set aside."""
    allowed = context.config.data.max_rejected_fraction
    if context.config.generate.source == "import" and len(rejected) > allowed * total:
        where = "; ".join(f"{row.row_key} {row.reason}" for row in rejected[:5])
        raise ConfigError(
            f"data.texts: {len(rejected)} of {total} texts cannot be used ({where}), more than"
            f" data.max_rejected_fraction={allowed} allows: mend the file or raise the setting"
        )
