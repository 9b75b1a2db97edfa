"""The sweeps that come with the project: what they vary, what they share, and that no seed of theirs was looked at."""

import pytest

from raml_ray import presets, recipes
from raml_ray.__main__ import main
from raml_ray.stages import sweep
from raml_ray.stages.context import probed

SWEEPS = [name for name, make in presets.PRESETS.items() if name.startswith("miniature") and make().ablate.space]


def expanded(name: str) -> sweep.Sweep:
    config = presets.by_name(name)
    return sweep.expanded(config, config.ablate.space)


def trained(found: sweep.Sweep, stage: str) -> int:
    return sum(step.stage == stage for step in found.config.steps)


@pytest.mark.parametrize(
    ("name", "num_trials", "sft", "grpo", "evaluate"),
    [
        ("miniature_policies", 3, 3, 6, 12),
        ("miniature_sft_trajectories", 18, 18, 0, 18),
        ("miniature_grpo_trajectories", 15, 0, 15, 15),
        ("miniature_grpo_trajectories_32", 18, 0, 18, 18),
        ("miniature_grpo_matched", 9, 0, 9, 9),
        ("miniature_grpo_matched_32", 18, 0, 18, 18),
        ("miniature_length", 9, 9, 0, 9),
        ("miniature_sft_selection", 15, 15, 0, 15),
        ("miniature_grpo_selection", 15, 0, 15, 15),
        ("miniature_domains", 15, 15, 0, 15),
        ("miniature_outer_losses", 9, 9, 0, 9),
        # 3 seeds of: base, SFT on 1, 2, 8 and 32, GRPO on 1, 4 and 16, SFT on 32 then GRPO
        ("miniature_reproduction", 24, 12, 12, 27),
        ("miniature_reproduction_quick", 5, 2, 3, 6),
    ],
)
def test_every_trial_has_its_training_and_what_trials_share_is_made_once(
    name: str, num_trials: int, sft: int, grpo: int, evaluate: int
) -> None:
    found = expanded(name)
    assert len(found.trials) == num_trials
    assert (trained(found, "sft"), trained(found, "grpo"), trained(found, "evaluate")) == (sft, grpo, evaluate)
    assert trained(found, "base") == len({trial.values["seed"] for trial in found.trials})


def test_a_dry_run_says_how_many_steps_of_each_stage_a_sweep_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "miniature_length", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "9 trials, 28 steps: 3 base, 3 generate, 3 verify, 9 sft, 9 evaluate, 1 report",
        "shared: base_seed_1 teacher_seed_1 verify_seed_1 base_seed_2 teacher_seed_2 verify_seed_2"
        " base_seed_3 teacher_seed_3 verify_seed_3",
    ]


def test_every_shipped_sweep_is_in_the_table_above() -> None:
    assert len(SWEEPS) == 13


@pytest.mark.parametrize("name", SWEEPS)
def test_no_shipped_sweep_runs_the_seed_that_was_looked_at(name: str) -> None:
    assert 0 not in {trial.values["seed"] for trial in expanded(name).trials}


def test_the_points_of_a_sweep_that_are_the_recipe_itself_are_the_policies_of_the_tables() -> None:
    found = expanded("miniature_reproduction")
    by_name = {trial.name: trial for trial in found.trials}
    policies = by_name["policies_seed_1"].steps
    assert by_name["sft_trajectories_num_trajectories_32_seed_1"].steps["sft"] == policies["sft"] == "sft_seed_1"
    assert by_name["grpo_trajectories_num_updated_16_seed_1"].steps["grpo_zero"] == policies["grpo_zero"]
    assert by_name["sft_trajectories_num_trajectories_8_seed_1"].steps["sft"] != policies["sft"]
    assert by_name["sft_trajectories_num_trajectories_8_seed_1"].steps["verify"] == policies["verify"]


def test_trajectories_of_a_sweep_over_sft_come_from_one_table_per_seed() -> None:
    found = expanded("miniature_sft_trajectories")
    assert {trial.steps["teacher"] for trial in found.trials if trial.values["seed"] == 2} == {"teacher_seed_2"}


@pytest.mark.parametrize("name", SWEEPS)
def test_what_a_trials_learners_are_probed_with_is_of_the_same_trial(name: str) -> None:
    found = expanded(name)
    for trial in found.trials:
        for step in trial.steps.values():
            if probe := probed(found.config, found.config.step(step)):
                assert probe == trial.steps["verify"]


def test_compute_matched_sweeps_update_on_equally_many_trajectories() -> None:
    for name, updated in (("miniature_grpo_matched", 64), ("miniature_grpo_matched_32", 32)):
        found = expanded(name)
        grpo = [found.config.for_step(step.name).grpo for step in found.config.steps if step.stage == "grpo"]
        assert {recipes.questions_of_a_step(each) * each.num_updated for each in grpo} == {updated}


def test_domains_differ_in_the_teachers_questions_alone() -> None:
    found = expanded("miniature_domains")
    assert len({trial.steps["teacher"] for trial in found.trials}) == 15
    one = next(trial for trial in found.trials if trial.values["steps.teacher.miniature.transfer_fraction"] == 0.5)
    assert found.config.for_step(one.steps["teacher"]).miniature.transfer_fraction == 0.5
    assert found.config.for_step(one.steps["evaluate_sft"]).miniature.transfer_fraction == 0.0
