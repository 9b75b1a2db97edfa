"""Our figures beside the paper's."""

from pathlib import Path

import pytest

from raml_ray.config import Config, ConfigError, override
from raml_ray.stages import beside

CONFIG = override(
    Config(),
    {"evaluate.published": "sft_qwen", "evaluate.sets": {"aime": "paper:aime24", "mine": "x.jsonl"}},
)
FOUND = {
    "num_questions": 30,
    "pass_at_k": {"mean": 0.25, "low": 0.2, "high": 0.3},
    "mg_pass_at_k": {"mean": 0.1, "low": 0.08, "high": 0.12},
}


def test_sets_that_the_paper_has_stand_beside_its_numbers_and_others_do_not() -> None:
    first, second = beside.rows(CONFIG, {"aime": FOUND, "mine": FOUND})
    assert (first["set"], first["metric"], first["ours"], first["paper"]) == ("aime", "Pass@8", 25.0, 20.34)
    assert first["is_within"] is True
    assert (second["metric"], second["paper"], second["is_within"]) == ("mG-Pass@8", 7.43, False)


def test_a_set_without_enough_samples_has_the_papers_number_alone() -> None:
    rows = list(beside.rows(CONFIG, {"aime": FOUND | {"pass_at_k": None, "mg_pass_at_k": None}}))
    assert [(row["ours"], row["paper"]) for row in rows] == [(None, 20.34), (None, 7.43)]


def test_a_row_that_would_show_nothing_is_refused(tmp_path: Path) -> None:
    beside.check(CONFIG)
    with pytest.raises(ConfigError, match=r"evaluate.published=sft_qwen has no effect: .*paper:aime24"):
        beside.check(override(CONFIG, {"evaluate.sets": {"mine": "x.jsonl"}}))
    with pytest.raises(ConfigError, match=r"evaluate.published=sft_qwen is of evaluate.k=8, not of 4"):
        override(CONFIG, {"evaluate.k": 4})
