"""Our figures beside the paper's."""

from pathlib import Path

import pytest

from raml_ray import presets
from raml_ray.config import Config, ConfigError, override
from raml_ray.stages import beside, pipeline
from raml_ray.stages.instruments import shorter
from raml_ray.storage import Folder

SETS = {"aime": "paper:aime24", "mine": "x.jsonl"}
FOUND = {
    "num_questions": 30,
    "pass_at_k": {"mean": 0.25, "low": 0.2, "high": 0.3},
    "mg_pass_at_k": {"mean": 0.1, "low": 0.08, "high": 0.12},
}


def test_sets_that_the_paper_has_stand_beside_its_numbers_and_others_do_not() -> None:
    first, second = beside.rows("sft_qwen", SETS, {"aime": FOUND, "mine": FOUND})
    assert (first["set"], first["metric"], first["ours"], first["paper"]) == ("aime", "Pass@8", 25.0, 20.34)
    assert first["is_within"] is True
    assert (second["metric"], second["paper"], second["is_within"]) == ("mG-Pass@8", 7.43, False)


def test_a_set_without_enough_samples_has_the_papers_number_alone() -> None:
    rows = list(beside.rows("sft_qwen", SETS, {"aime": FOUND | {"pass_at_k": None, "mg_pass_at_k": None}}))
    assert [(row["ours"], row["paper"]) for row in rows] == [(None, 20.34), (None, 7.43)]


def test_a_row_that_would_show_nothing_is_refused() -> None:
    beside.check("evaluate.published", "sft_qwen", SETS)
    with pytest.raises(ConfigError, match=r"evaluate.published=sft_qwen has no effect: .*paper:aime24"):
        beside.check("evaluate.published", "sft_qwen", {"mine": "x.jsonl"})
    with pytest.raises(ConfigError, match=r"evaluate.published=sft_qwen is of evaluate.k=8, not of 4"):
        override(Config(), {"evaluate.published": "sft_qwen", "evaluate.sets": SETS, "evaluate.k": 4})
    with pytest.raises(ConfigError, match=r"shorter.summary_published='qwen3_summarised' has no effect without"):
        override(Config(), {"shorter.summary_published": "qwen3_summarised"})


def test_a_step_knows_the_sets_that_its_trajectories_were_evaluated_on(tmp_path: Path) -> None:
    config = presets.by_name("paper_fig11_budgets")
    context = pipeline.context_of(config, config.step("shorter_thinking"), Folder(str(tmp_path)))
    sets = shorter.evaluated_sets(context)
    assert sets["aime24"] == "paper:aime24" and len(sets) == 3
    beside.check("shorter.summary_published", context.config.shorter.summary_published, sets)


def test_what_summaries_reach_stands_beside_the_papers_row_of_them() -> None:
    def of(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}

    whole = {"questions": 30, "accuracy": of(0.9), "solved": of(0.9)}
    by_set = {
        "aime": {"whole": whole, "summary": {"questions": 28, "accuracy": of(0.25), "solved": of(0.75)}},
        "nothing was summarised": {"whole": whole},
    }
    sets = {"aime": "paper:aime24", "nothing was summarised": "paper:math500-level5"}
    first, second = shorter.beside_the_paper("qwen3_summarised", sets, by_set)
    assert (first["metric"], first["ours"], first["paper"], first["is_within"]) == ("Avg", 25.0, 39.79, False)
    assert (second["metric"], second["ours"], second["paper"], second["is_within"]) == ("Pass@16", 75.0, 80.0, True)
    assert (first["place"], first["num_questions"]) == ("Fig. 11", 28)
