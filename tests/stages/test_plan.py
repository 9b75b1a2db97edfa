"""What a run will take, said before it starts."""

import json
from pathlib import Path

import pytest

from raml_ray import presets
from raml_ray.__main__ import main
from raml_ray.config import ConfigError, override
from raml_ray.formulas import cost
from raml_ray.settings import DataConfig, MiniatureConfig
from raml_ray.stages import plan, plan_parts, plan_sizes
from raml_ray.stages.plan_parts import Assumed, Line

EIGHT = Assumed(8, cost.device("H100"))


def lines(name: str, **settings: object) -> dict[str, Line]:
    changes = {setting.replace("__", "."): value for setting, value in settings.items()}
    return {line.step: line for line in plan.plan(override(presets.by_name(name), changes), EIGHT)}


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("paper:aime25", 30),
        ("paper:aime24-four", 4),
        ("paper:math500-level5", 134),
        ("paper:livemathbench-hard", 90),
        ("paper:orz-math", 39_000),
        ("miniature:in_domain", 60),
    ],
)
def test_a_known_set_is_counted_without_being_read(path: str, count: int) -> None:
    assert plan_sizes.questions_in(DataConfig(path=path), MiniatureConfig()) == count
    assert plan_sizes.questions_in(DataConfig(path=path, limit=3), MiniatureConfig()) == 3


def test_a_file_is_counted_and_a_set_elsewhere_has_to_be_told(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text("".join(json.dumps({"problem": f"{i}?", "answer": "1"}) + "\n" for i in range(5)))
    assert plan_sizes.questions_in(DataConfig(path=str(file)), MiniatureConfig()) == 5
    with pytest.raises(ConfigError, match=r"'hf:a/b' has is not known .* set data\.limit"):
        plan_sizes.questions_in(DataConfig(path="hf:a/b"), MiniatureConfig())


def test_sft_has_the_papers_steps_and_grpo_the_papers_tokens() -> None:
    found = lines("paper_grpo_cold")
    assert found["sft_distill"].work == "2,149 steps"  # 550,000 examples in batches of 256
    assert found["sft_distill"].tokens == 2149 * 256 * 19456 / 2
    assert found["grpo_cold"].tokens == 38 * 1024 * 16 * 16384 / 2
    assert not any(line.is_too_large for line in found.values())


def test_what_a_device_has_no_room_for_is_said() -> None:
    assert lines("paper_sft_distill", train__num_workers=1)["sft_distill"].is_too_large
    assert lines("paper_fig3_qwq")["lhat_qwq"].is_too_large is False
    whole = lines("paper_fig3_qwq", analyze__gpus_per_policy=1, analyze__gpus_per_worker=1)
    assert whole["lhat_qwq"].is_too_large  # 32B parameters in 2 bytes on 80 GB, and 16 GiB for the probe


def test_a_learner_of_a_part_of_a_device_has_that_part_of_its_memory() -> None:
    one = Assumed(1, cost.device("L4"))
    for share, is_too_large in ((0.6, True), (0.63, False)):  # of 24 GB, for 1.16 times 12.02 GiB
        config = override(presets.by_name("one_gpu_0.5b"), {"train.gpus_per_worker": share})
        found = {line.step: line.is_too_large for line in plan.plan(config, one)}
        assert (found["grpo_zero"], found["sft"]) == (is_too_large, False)
    assert presets.by_name("one_gpu_0.5b").train.gpus_per_worker == 0.64


def test_every_trial_of_a_sweep_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "paper_fig9_updates", "--gpus", "16xH100"]) == 0
    page = capsys.readouterr().out.splitlines()
    # 1, 2, 4, 8 and 16 of 16
    assert [sum(f" {stage} " in line for line in page) for stage in ("grpo", "evaluate")] == [5, 5]


def test_grpo_is_planned_with_the_forward_passes_of_its_old_and_reference_policies() -> None:
    def hours(**settings: object) -> float:
        own = {f"steps.grpo_zero.grpo.{name}": value for name, value in settings.items()}
        found = lines("paper_grpo_zero", **own)["grpo_zero"].hours
        assert found is not None
        return found

    one, four = hours(max_staleness=0, num_minibatches=1), hours(max_staleness=0, num_minibatches=4)
    with_reference = hours(max_staleness=0, num_minibatches=1, kl_coefficient=0.1)
    # Of four minibatches the policy before has to be asked of three.
    assert four - one == pytest.approx(0.75 * (with_reference - one), rel=1e-6)
    assert four > one


def test_a_cut_thought_is_no_longer_than_its_budget() -> None:
    found = lines("paper_fig11_budgets")
    assert found["evaluate_budget_1024"].tokens == (30 + 134 + 45) * 16 * (1024 + 64)


def test_a_landscape_holds_moved_weights_and_directions_beside_the_policy() -> None:
    settings = {
        "steps__landscape_qwq__analyze__gpus_per_policy": 2,
        "steps__landscape_qwq__analyze__gpus_per_worker": 2,
    }
    eight, two = (lines("paper_fig2_landscape", **own)["landscape_qwq"] for own in ({}, settings))
    assert eight.tokens == two.tokens == 1 * 11**2 * 2 * 16384  # one trajectory, one radius, two prefixes
    assert eight.memory is not None and two.memory == 4 * eight.memory
    assert (eight.is_too_large, two.is_too_large) == (False, True)  # 12 bytes a parameter: 46 or 183 GiB of 80
    weights = 2 * plan_parts.architecture_at("Qwen/QwQ-32B", "").num_parameters
    assert eight.memory == 6 * weights / 8


def test_answers_behind_shortened_trajectories_are_counted_with_their_summaries() -> None:
    found = lines("paper_fig11_budgets")["shorter_thinking"]
    # 209 questions x 32; whole, none, and of each of 4 summaries itself and two controls
    assert found.work == "6,688 trajectories x 14"
    assert found.tokens == 6688 * (14 * 20 / 2 + 4 * 8192 / 2)
    one = lines("paper_fig11_budgets", steps__shorter_thinking__shorter__summary_draws=1)["shorter_thinking"]
    assert (one.work, one.tokens) == ("6,688 trajectories x 5", 6688 * (5 * 20 / 2 + 8192 / 2))
    assert found.hours is not None and one.hours is not None and found.hours > one.hours > 0


def test_answers_behind_cuts_are_counted() -> None:
    found = lines("miniature_science")
    # 24 questions x 2; 5 fractions, 3 budgets and 2 delimiters, 4 answers of at most 128 tokens behind each
    assert found["modes"].work == "48 trajectories x 40"
    assert found["modes"].tokens == 48 * 40 * 64
    assert found["roles"].memory is None


def test_the_page_says_where_devices_are_missing_and_with_which_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "paper_grpo_zero", "--gpus", "8xH100"]) == 0
    page = capsys.readouterr().out
    assert "ASKS FOR 16 DEVICES" in page
    assert "weights      4 P / R" in page and "(2 P + B c M) / (R w e_w)" in page
    assert main(["plan", "paper_grpo_zero", "--gpus", "16xH100"]) == 0
    assert "ASKS FOR" not in capsys.readouterr().out
    for words in (["--gpus", "8xH1000"], ["--gpus", "8"], ["--response", "2"]):
        assert main(["plan", "smoke", *words]) == 2


def test_every_preset_can_be_planned() -> None:
    for name in presets.PRESETS:
        config = presets.by_name(name)
        if name == "gsm8k_science":  # of any policy; the user says which
            with pytest.raises(ConfigError, match=r"policy\.path='' .*set policy\.path"):
                plan.plan(config, EIGHT)
            config = override(config, {"policy.path": "Qwen/Qwen2.5-0.5B"})
        assert plan.plan(config, EIGHT)
