"""Sets whose questions have too few judged samples, and rows that never became questions."""

import json
from pathlib import Path

import pytest

from raml_ray.config import Step
from raml_ray.records import Question
from raml_ray.stages import evaluate
from raml_ray.stages.context import Context
from tests.stages import contexts


def evaluating(root: Path, **settings: object) -> Context:
    return contexts.context(root, Step(name="evaluate", stage="evaluate"), **settings)


@pytest.mark.ray
def test_rows_that_are_no_question_are_counted_with_all_their_samples(cluster: None, tmp_path: Path) -> None:
    lines = [{"problem": f"{i} 1", "answer": str(i + 1)} for i in range(3)] + [{"problem": "", "answer": "1"}]
    (tmp_path / "set.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    context = evaluating(
        tmp_path / "run",
        evaluate__sets={"easy": str(tmp_path / "set.jsonl")},
        evaluate__num_samples=4,
        evaluate__k=2,
        evaluate__max_tokens=8,
        data__max_rejected_fraction=0.5,
        data__limit=1,
    )
    outcome = evaluate.run(context)
    assert (outcome.counts.rows_in, outcome.counts.rows_out, outcome.counts.rejected) == (16, 12, 4)
    figures = outcome.figures["sets"]["easy"]
    assert (figures["num_questions"], figures["questions_left_out"]) == (3, 0)
    assert figures["accuracy"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert sum(outcome.figures["verdicts"].values()) == 12


def test_a_set_without_enough_samples_has_no_intervals_but_counts(tmp_path: Path) -> None:
    context = evaluating(tmp_path / "run", evaluate__k=2)
    asked = [Question(f"s/{i}", "p", "1", "s") for i in range(3)]
    rows = [
        {"question_id": "s/0", "verdict": "correct", "token_ids": [1, 2], "finish_reason": "stop"},
        {"question_id": "s/0", "verdict": "timeout", "token_ids": [1], "finish_reason": "length"},
    ]
    table = evaluate._per_question(rows, asked, context.config.evaluate)
    figures = evaluate._figures(context, "s", table, rows, len(asked))
    assert (figures["num_questions"], figures["questions_left_out"]) == (0, 3)
    assert all(figures[metric] is None for metric in evaluate.METRICS)
