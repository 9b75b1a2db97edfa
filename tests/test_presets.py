"""What the presets set: the paper's numbers, and modes that differ in nothing but the mode."""

import pytest

from raml_ray import presets
from raml_ray.config import Config, differences, flatten
from raml_ray.miniature import task
from raml_ray.miniature import tokenizer as miniature
from raml_ray.text.prompts import prompt_text
from raml_ray.workers.responses import budget_of
from raml_ray.workers.sampling import Sampling


@pytest.mark.parametrize(
    ("preset", "max_tokens"), [("paper_trajectories_qwen", 8192), ("paper_trajectories_distill", 36784)]
)
def test_the_teachers_sample_as_in_the_papers_table_5(preset: str, max_tokens: int) -> None:
    config = presets.by_name(preset)
    generate = config.generate
    assert (config.data.limit, generate.num_samples) == (10_000, 64)
    assert (generate.temperature, generate.top_k, generate.top_p) == (0.7, 50, 1.0)
    assert generate.max_tokens == max_tokens
    assert config.data.filters == ("verifiable", "complete", "no_image", "no_markup")
    assert config.engine.max_model_len > max_tokens
    assert config.engine.gpus_per_engine == config.engine.tensor_parallel_size
    assert (config.data.path, config.verify.judge) == ("paper:orz-math", "paper")


def test_the_published_rollouts_of_each_teacher_are_judged_by_themselves() -> None:
    config = presets.paper_sft_sets()
    imported = {step.name: config.for_step(step.name) for step in config.steps if step.stage == "generate"}
    assert {name: step.data.path for name, step in imported.items()} == {
        "qwen": "paper:orz-math-qwen-72b-rollouts",
        "distill": "paper:orz-math-distill-14b-rollouts",
    }
    assert {step.generate.source for step in imported.values()} == {"import"}
    assert [step.data for step in config.steps if step.stage == "verify"] == [("qwen",), ("distill",)]


def modes() -> dict[str, Config]:
    config = presets.miniature_modes()
    return {step.name: config.for_step(step.name) for step in config.steps if step.stage == "evaluate"}


def test_the_modes_of_the_miniature_differ_in_the_mode_alone() -> None:
    found = modes()
    thinking = found.pop("evaluate_thinking")
    assert {name: list(differences(thinking, mode)) for name, mode in found.items()} == {
        "evaluate_no_thinking": ["prompt.thinking: True -> False"],
        "evaluate_budget_8": ["evaluate.thinking_budget: 0 -> 8"],
        "evaluate_budget_16": ["evaluate.thinking_budget: 0 -> 16"],
        "evaluate_budget_32": ["evaluate.thinking_budget: 0 -> 32"],
    }
    config = presets.miniature_modes()
    assert {step.policy for step in config.steps if step.stage == "evaluate"} == {"sft"}


def test_what_stands_behind_a_thought_of_the_miniature_is_what_ends_its_own() -> None:
    tokenizer = miniature.build()
    state = (None, None, None, None, 3, 8)
    problem, whole = task.problem(state, "sum"), task.response([task.Line("", state)], "sum")
    for mode in modes().values():
        settings = mode.evaluate
        sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.max_tokens)
        budget = budget_of(settings, sampling, mode.prompt, mode.engine, tokenizer)
        if budget:
            assert tokenizer.decode(list(budget.forced_token_ids)) in whole
        elif not mode.prompt.thinking:
            assert prompt_text(tokenizer, problem, mode.prompt).endswith("assistant\n<think>\n\n</think>\n\n")


def test_presets_that_need_gpus_or_the_hub_say_that_they_were_not_run() -> None:
    for name, make in presets.PRESETS.items():
        settings = flatten(make())
        elsewhere = settings["engine.gpus_per_engine"] or any(
            "paper:" in str(value) for value in (settings["data.path"], make().steps)
        )
        assert bool(elsewhere) == ("Not run here" in (make.__doc__ or "")), name
