"""What the presets set: the paper's numbers, and modes that differ in nothing but the mode."""

import pytest

from raml_ray import presets, rehearsal
from raml_ray.__main__ import main
from raml_ray.config import Config, differences, flatten
from raml_ray.miniature import task
from raml_ray.miniature import tokenizer as miniature
from raml_ray.presets_figures import FIGURES
from raml_ray.presets_paper import PAPER
from raml_ray.stages.context import deciding, narrowed
from raml_ray.text import paper_prompts
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
    config = presets.by_name("paper_sft_sets")
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
    of_paper = PAPER | FIGURES
    for name, make in presets.PRESETS.items():
        settings = flatten(make())
        elsewhere = settings["engine.gpus_per_engine"] or any(
            "paper:" in str(value) for value in (settings["data.path"], make().steps)
        )
        assert bool(elsewhere) == (name in of_paper or "Not run here" in (make.__doc__ or "")), name


def value_in(config: Config, setting: str) -> object:
    """What the setting is in the configuration, or in one of its steps."""
    parts = setting.split(".", 2)
    if parts[0] != "steps":
        return flatten(config)[setting]
    inner = parts[2]
    return config.step(parts[1]).policy if inner == "policy" else flatten(config.for_step(parts[1]))[inner]


@pytest.mark.parametrize("name", PAPER | FIGURES)
def test_every_choice_is_what_the_preset_has_and_says_where_it_is_from(name: str) -> None:
    preset = presets.of_paper(name)
    config = preset.config()
    last = {choice.setting: choice.value for choice in preset.choices}
    for choice in preset.choices:
        assert bool(choice.place) != bool(choice.why), choice
        found, wanted = value_in(config, choice.setting), last[choice.setting]
        as_held = {name: tuple(v) for name, v in wanted.items()} if choice.setting == "ablate.space" else wanted
        assert found == (tuple(as_held) if isinstance(as_held, list) else as_held), choice


@pytest.mark.parametrize("rehearsed", [False, True])
def test_presets_of_one_run_agree_on_the_steps_that_they_share(rehearsed: bool) -> None:
    seen: dict[str, tuple[str, object]] = {}
    for name, preset in (PAPER | FIGURES).items():
        config = preset.config()
        is_shared = config.name == "paper"
        config = rehearsal.rehearsed(config) if rehearsed else config
        for step in config.steps if is_shared else ():
            decides = deciding(narrowed(config.for_step(step.name), step.stage), step.stage)
            other, there = seen.setdefault(step.name, (name, (step, decides)))
            if step.stage != "report":
                assert there == (step, decides), f"{step.name} differs in {name} and {other}"


@pytest.mark.parametrize(
    ("preset", "step", "settings"),
    [
        ("paper_sft_qwen", "sft_qwen", {"sft.batch_size": 256, "sft.learning_rate": 1e-5, "sft.num_epochs": 1}),
        ("paper_sft_distill", "sft_distill", {"sft.max_length": 1024 + 18432, "sft.pad_to": 64}),
        ("paper_grpo_zero", "grpo_zero", {"grpo.num_trajectories": 16, "grpo.questions_per_step": 1024}),
        (
            "paper_grpo_cold",
            "grpo_cold",
            {"grpo.learning_rate": 1e-6, "grpo.max_tokens": 16384, "grpo.reward": "paper"},
        ),
        ("paper_grpo_cold", "evaluate_grpo_cold", {"evaluate.k": 8, "evaluate.top_p": 0.8, "evaluate.top_k": 50}),
        ("paper_fig3_qwq", "qwq", {"generate.num_samples": 16, "seed": 42, "data.path": "paper:aime24-four"}),
        ("paper_fig3_qwq", "lhat_qwq", {"analyze.num_correct": 4, "analyze.gpus_per_policy": 2}),
        ("paper_fig4_community", "evaluate_limo", {"evaluate.num_samples": 64, "evaluate.k": 32}),
        ("paper_fig5_modes", "qwq_direct", {"prompt.response_prefix": paper_prompts.NO_THINKING_PREFIX}),
        ("paper_fig7_domains", "evaluate_base_gpqa", {"data.answers": "choice"}),
        ("paper_fig11_budgets", "evaluate_budget_4096", {"evaluate.thinking_budget": 4096, "evaluate.k": 16}),
        (
            "paper_fig11_budgets",
            "shorter_thinking",
            {"shorter.summary_draws": 4, "shorter.summary_reads": 24576, "answers.temperature": 0, "seed": 42},
        ),
        ("paper_fig15_modes", "qwen3_direct", {"prompt.thinking": False}),
    ],
)
def test_what_the_paper_states_is_set(preset: str, step: str, settings: dict[str, object]) -> None:
    found = flatten(presets.by_name(preset).for_step(step))
    assert {name: found[name] for name in settings} == settings


def test_sweeps_of_the_paper_search_over_its_own_counts() -> None:
    assert presets.by_name("paper_fig8_qwen").ablate.space == {"sft.num_trajectories": (1, 2, 4, 8, 16, 32)}
    assert presets.by_name("paper_fig9_updates").ablate.space == {"steps.grpo_zero.grpo.num_updated": (1, 2, 4, 8, 16)}


def test_what_is_not_stated_is_shown_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "paper_grpo_cold", "--unstated"]) == 0
    ours, defaults = capsys.readouterr().out.split("At this project's defaults")
    assert "steps.grpo_cold.policy = 'sft_distill'\n    which SFT policy Table 3 starts from is not stated" in ours
    assert "steps.grpo_cold.grpo.clip_low = 0.2\n    veRL's default" in ours
    assert "steps.grpo_cold.grpo.layout = 'paper'\n    what counts as well-formed is neither stated" in ours
    assert "grpo.learning_rate" not in ours + defaults  # Table 7 states it
    assert "grpo.correction_cap = 2.0" in defaults
    assert "no prompt of GRPO is refused for its length" in defaults
    assert main(["show", "paper_sft_qwen", "--unstated"]) == 0
    assert "of no setting" not in capsys.readouterr().out
    assert main(["show", "smoke", "--unstated"]) == 2
    assert "no preset of the paper" in capsys.readouterr().err


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_holds_in_one_step_of_a_preset_says_nothing_of_another(name: str) -> None:
    whole = presets.by_name(name)
    for step in whole.steps:
        assert narrowed(whole.for_step(step.name), step.stage).steps == ()
