"""The paper's settings at toy size: what changes is named, all else is the paper's."""

import json
from pathlib import Path

import pytest

from raml_ray import presets, rehearsal
from raml_ray.config import Config, flatten, override
from raml_ray.presets_figures import FIGURES
from raml_ray.presets_paper import PAPER
from raml_ray.stages import sources, sweep
from raml_ray.text import known_sets

MAY_CHANGE = {*rehearsal.RESPONSES, *rehearsal.WHOLE, *rehearsal.MOST, *rehearsal.HERE} | {
    *("name", "steps", "policy.path", "data.mirror", "evaluate.num_samples", rehearsal.SECOND)
}


@pytest.mark.parametrize("name", PAPER | FIGURES)
def test_every_step_of_the_paper_has_its_rehearsal_with_the_settings_that_are_not_of_size(name: str) -> None:
    whole = presets.by_name(name)
    small = rehearsal.rehearsed(whole)
    for step in whole.steps:
        ours, theirs = flatten(small.for_step(step.name)), flatten(whole.for_step(step.name))
        assert {key for key in theirs if ours[key] != theirs[key]} <= MAY_CHANGE
        assert ours["policy.path"] == "" and ours["engine.gpus_per_engine"] == ours["train.gpus_per_worker"] == 0
        if step.stage in ("sft", "grpo", "evaluate", "analyze"):
            assert small.step(step.name).policy


def test_lengths_are_divided_by_one_number_and_prompts_keep_their_room() -> None:
    small = rehearsal.rehearsed(presets.by_name("paper_grpo_cold"))
    zero, sft, asked = (small.for_step(name) for name in ("grpo_cold", "sft_distill", "evaluate_grpo_cold"))
    assert (zero.grpo.max_tokens, asked.evaluate.max_tokens) == (16384 // 64, 16384 // 64)
    assert sft.sft.max_length == 19456 // 64 + rehearsal.PROMPT_TOKENS
    assert (zero.grpo.learning_rate, zero.grpo.num_trajectories, zero.train.beta2) == (1e-6, 16, 0.999)
    assert (asked.evaluate.k, asked.evaluate.num_samples, asked.evaluate.published) == (8, 8, "grpo_cold")


def test_a_second_policy_is_the_one_that_is_made_here_and_reads_and_writes_as_much_less() -> None:
    small = rehearsal.rehearsed(override(presets.by_name("paper_fig11_budgets"), {"root": "/shared"}))
    step, base = small.for_step("shorter_thinking"), small.step("base")
    assert step.shorter.summary_policy == f"/shared/{small.name}/{base.name}/policy"
    assert (step.shorter.summary_reads, step.shorter.summary_tokens) == (24576 // 64, 8192 // 64)
    assert step.shorter.summary_max_model_len == 32768 // 64 + rehearsal.PROMPT_TOKENS
    assert (step.shorter.summary_draws, step.answers.max_tokens) == (2, 20)
    # A policy of random weights answers nothing that can be read, so that no trajectory of its own is looked at.
    assert small.step("shorter_thinking").data == ("evaluate_thinking", "verify_texts")
    assert small.step("verify_texts").data == ("texts",) and small.for_step("texts").generate.source == "import"


def test_texts_that_are_read_beside_begun_responses_begin_as_those_do(tmp_path: Path) -> None:
    small = rehearsal.rehearsed(presets.by_name("paper_fig5_modes"))
    assert small.step("verify_qwq").data == ("qwq", "texts")
    assert small.step("verify_qwq_direct").data == ("qwq_direct", "texts_begun")
    rehearsal.write_mirror(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "aime24.jsonl").read_text().splitlines()]
    column = small.for_step("texts_begun").data.texts["rehearsal"]
    prefix = small.for_step("lhat_qwq_direct").prompt.response_prefix
    assert prefix and all(text.startswith(prefix) for row in rows for text in row[column])


def test_a_sweep_keeps_what_it_searches_over() -> None:
    small = rehearsal.rehearsed(presets.by_name("paper_fig9_updates"))
    trials = sweep.expanded(small, small.ablate.space).trials
    assert [list(trial.values.values()) for trial in trials] == [[1], [2], [4], [8], [16]]


def test_its_mirror_holds_every_set_whole(tmp_path: Path) -> None:
    rehearsal.write_mirror(tmp_path)
    for name, known in known_sets.KNOWN.items():
        answers = known_sets.KNOWN[known.parts[0]].answers if known.parts else known.answers
        config = override(
            Config(),
            {"data.path": f"paper:{name}", "data.mirror": str(tmp_path), "data.answers": answers, "data.limit": 2},
        )
        assert len(sources.rows(config.data) and list(sources.rows(config.data))) >= 4, name
        problems = [question.problem for question in sources.questions(config, config.data, stage="evaluate").questions]
        assert len(problems) == 2
