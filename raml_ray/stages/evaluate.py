"""How often a policy is right.   question sets, policy -> trajectories/, verdicts/, per_question.parquet

Pass@k, G-Pass@k and mG-Pass@k per set, each with a bootstrap interval over questions (paper, Eqs. 22-23).
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow as pa

from raml_ray import records, storage
from raml_ray.config import ConfigError
from raml_ray.formulas import metrics
from raml_ray.records import Question, Verdict
from raml_ray.settings import EvaluateConfig
from raml_ray.stages import beside, judging, rollouts, second_judge, sources
from raml_ray.stages.context import Context, Outcome
from raml_ray.stages.sources import Found

SHARD_QUESTIONS = 64


def run(context: Context) -> Outcome:
    settings = context.config.evaluate
    second_judge.check(context.config)
    beside.check("evaluate.published", settings.published, settings.sets)
    found = _questions(context)
    found.keep(context)
    questions = found.questions
    counts, sampled = rollouts.sample(context, found, settings, shard_questions=SHARD_QUESTIONS)
    verify, data = context.config.verify, context.config.data
    judged, verdicts = judging.judge(context.step.name, context.folder, [context.folder], verify, data)
    if judged != counts.rows_out:
        raise RuntimeError(f"{counts.rows_out} trajectories, but {judged} verdicts")
    rows = storage.verified(context.folder, [context.folder])
    table = _per_question(rows, questions, settings)
    asked = Counter(question.source for question in questions)
    context.folder.write_table("per_question.parquet", table)
    figures: dict[str, Any] = {
        "k": settings.k,
        "num_samples": settings.num_samples,
        "temperature": settings.temperature,
        "sets": {name: _figures(context, name, table, rows, asked[name]) for name in settings.sets},
    }
    if compared := list(beside.rows(settings.published, settings.sets, figures["sets"])):
        beside.tell(compared)
        figures["published"] = compared
    figures |= second_judge.compared(context, rows, list(settings.sets))
    return Outcome(counts, found.figures() | figures | sampled | verdicts, artifacts=("per_question.parquet",))


def _questions(context: Context) -> Found:
    """The questions of all sets; a set's name becomes the question's source and the beginning of its id.

    data.filters hold for these sets too: what they turn down is not asked, and counted.
    """
    settings, data = context.config.evaluate, context.config.data
    if not settings.sets:
        raise ConfigError(
            "evaluate.sets is empty: name question sets, for example evaluate.sets.test=path/to/test.jsonl"
        )
    found = Found([], [], [])
    for name, path in settings.sets.items():
        of_set = sources.questions(
            context.config, data.model_copy(update={"path": path, "limit": settings.limit}), stage="evaluate"
        )
        found.questions.extend(replace(q, question_id=f"{name}/{q.question_id}", source=name) for q in of_set.questions)
        found.rejected.extend(replace(row, row_key=f"{name}/{row.row_key}") for row in of_set.rejected)
        found.filtered.extend(replace(row, row_key=f"{name}/{row.row_key}") for row in of_set.filtered)
    return found


def _per_question(rows: list[dict[str, Any]], questions: list[Question], settings: EvaluateConfig) -> pa.Table:
    """One row per question. A question's n is the number of its samples that the judge could decide on."""
    correct = dict.fromkeys((q.question_id for q in questions), 0)
    judged = dict(correct)
    for row in rows:
        verdict = Verdict(row["verdict"])
        judged[row["question_id"]] += verdict.is_judgement
        correct[row["question_id"]] += verdict is Verdict.CORRECT
    k = settings.k
    table = []
    for question in questions:
        n, c = judged[question.question_id], correct[question.question_id]
        if n < k:  # too few samples that mean something: counted in `questions_left_out`
            continue
        table.append(
            {
                "set": question.source,
                "question_id": question.question_id,
                "num_samples": n,
                "num_correct": c,
                "accuracy": c / n,
                "pass_at_k": metrics.pass_at_k(n, c, k),
                "g_pass_at_k_0.5": metrics.g_pass_at_k(n, c, k, 0.5),
                "g_pass_at_k_1.0": metrics.g_pass_at_k(n, c, k, 1.0),
                "mg_pass_at_k": metrics.mg_pass_at_k(n, c, k),
            }
        )
    return pa.Table.from_pylist(table, schema=PER_QUESTION)


METRICS = ("accuracy", "pass_at_k", "g_pass_at_k_0.5", "g_pass_at_k_1.0", "mg_pass_at_k")
PER_QUESTION = pa.schema(
    [("set", pa.string()), ("question_id", pa.string()), ("num_samples", pa.int32()), ("num_correct", pa.int32())]
    + [(name, pa.float64()) for name in METRICS]
)


def _figures(
    context: Context, name: str, table: pa.Table, rows: list[dict[str, Any]], num_asked: int
) -> dict[str, Any]:
    """Of one set the metrics with their intervals; null where no question has as many judged samples as k."""
    mine = [row for row in table.to_pylist() if row["set"] == name]
    answered = [row for row in rows if row["question_id"].startswith(f"{name}/")]
    lengths = [len(row["token_ids"]) for row in answered]
    figures: dict[str, Any] = {
        "num_questions": len(mine),
        "questions_left_out": num_asked - len(mine),
        "mean_tokens": sum(lengths) / max(len(lengths), 1),
        "truncated_fraction": _fraction(answered, "finish_reason", "length"),
        "unreadable_fraction": _fraction(answered, "verdict", Verdict.UNREADABLE.value),
    }
    for metric in METRICS:
        values = [row[metric] for row in mine]
        seed = records.seed_of(context.config.seed, name, metric)
        resamples = context.config.evaluate.num_bootstrap
        figures[metric] = (
            metrics.bootstrap_interval(values, num_resamples=resamples, seed=seed)._asdict() if values else None
        )
    return figures


def _fraction(rows: list[dict[str, Any]], column: str, value: str) -> float:
    return sum(1 for row in rows if row[column] == value) / max(len(rows), 1)
