"""Sets whose questions have too few judged samples, and rows that never became questions."""

import json
from pathlib import Path

import pytest

from raml_ray.config import ConfigError, Step
from raml_ray.records import Question
from raml_ray.stages import evaluate
from raml_ray.stages.context import Context
from tests.stages import contexts
from tests.stages.test_known_rows import mirror
from tests.text.test_fast_path import MATH500


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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.faults  # for its time
def test_math500_is_evaluated_from_a_mirror(cluster: None, tmp_path: Path) -> None:
    """All of it, by its name in the paper. The copy says no levels, so that the level 5 of it is not to be had."""
    if not MATH500.exists():
        pytest.skip("the shared copy of MATH500 is not beside this checkout")
    rows = [json.loads(line) for line in MATH500.read_text().splitlines()]
    settings: dict[str, object] = {
        "data__mirror": str(mirror(tmp_path / "mirror", math500=rows)),
        "evaluate__num_samples": 2,
        "evaluate__k": 2,
        "evaluate__max_tokens": 8,
        "engine__max_model_len": 4096,
    }
    outcome = evaluate.run(evaluating(tmp_path / "run", evaluate__sets={"math500": "paper:math500"}, **settings))
    assert (outcome.counts.rows_in, outcome.counts.rows_out, outcome.counts.rejected) == (1000, 1000, 0)
    figures = outcome.figures["sets"]["math500"]
    assert (figures["num_questions"], figures["questions_left_out"]) == (500, 0)
    assert figures["accuracy"] == {"mean": 0.0, "low": 0.0, "high": 0.0}, "random tokens answer nothing"
    with pytest.raises(ConfigError, match="level"):
        evaluate.run(evaluating(tmp_path / "five", evaluate__sets={"five": "paper:math500-level5"}, **settings))


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
