"""A search space over a preset becomes one run: what a setting does not reach is there once."""

import pytest

from raml_ray import presets
from raml_ray.config import Config, ConfigError, Step, override
from raml_ray.stages import inputs, sweep

CHAIN = Config(
    name="chain",
    steps=(
        Step(name="base", stage="base"),
        Step(name="generate", stage="generate", policy="base"),
        Step(name="verify", stage="verify", data=("generate",)),
        Step(name="sft", stage="sft", policy="base", data=("verify",)),
        Step(name="evaluate", stage="evaluate", policy="sft"),
        Step(name="report", stage="report"),
    ),
)


def test_a_copy_is_probed_with_its_own_trials_trajectories_which_make_no_other_policy_of_it() -> None:
    probe = {"train.probe_every": 5, "train.probe_data": "verify"}
    steps = [*CHAIN.steps[:4], Step(name="grpo", stage="grpo", policy="base", overrides=probe)]
    chain = CHAIN.model_copy(update={"steps": tuple(steps)})
    found = sweep.expanded(chain, {"seed": [1, 2]})
    assert found.config.for_step("grpo_seed_2").train.probe_data == "verify_seed_2"
    found = sweep.expanded(chain, {"generate.num_samples": [1, 2]})
    assert [step.name for step in found.config.steps if step.stage == "grpo"] == ["grpo"]
    assert found.config.for_step("grpo").train.probe_data == "verify_num_samples_1"
    # Both trials need it, so what it is probed with, which one trial alone would need, is made before it.
    assert found.shared() == ["base", "generate_num_samples_1", "verify_num_samples_1", "grpo"]
    only = {"a": {"steps": ("grpo",), "space": {"grpo.num_updated": (1, 2)}}}
    found = sweep.expanded(override(chain, {"ablate.grids": only}), {})
    assert "verify" in found.trials[0].steps, "what a learner is probed with is made, too"
    found = sweep.expanded(override(chain, {"steps.grpo.train.probe_data": "verfy"}), {"seed": [1, 2]})
    with pytest.raises(ConfigError, match=r"train.probe_data='verfy' is no step"):
        inputs.check(found.config, found.config.steps)


def test_words_are_settings_or_ranges_of_values() -> None:
    fixed, space = sweep.parsed(
        ["name=x", "sft.num_trajectories=grid(1, 2,4)", "seed=range(3)", "grpo.num_steps=range(2,4)"]
    )
    assert fixed == {"name": "x"}
    assert space == {"sft.num_trajectories": ["1", "2", "4"], "seed": [0, 1, 2], "grpo.num_steps": [2, 3]}
    with pytest.raises(ConfigError, match="searches over nothing"):
        sweep.parsed(["seed=grid()"])


def test_a_value_may_be_a_list() -> None:
    _, space = sweep.parsed(["landscape.radii=grid([1.0],[0.5,2.0])"])
    assert space == {"landscape.radii": [[1.0], [0.5, 2.0]]}


def test_values_that_differ_in_signs_alone_have_names_of_their_own() -> None:
    found = sweep.expanded(presets.miniature(), {"evaluate.top_k": [-1, 1]})
    assert [trial.name for trial in found.trials] == ["top_k_minus_1", "top_k_1"]
    found = sweep.expanded(presets.miniature(), {"prompt.instruction": ["{problem}!", "{problem}?"]})
    assert [trial.name for trial in found.trials] == ["instruction_problem_1", "instruction_problem_2"]


def test_trajectories_are_generated_once_for_all_training_sets_drawn_from_them() -> None:
    found = sweep.expanded(CHAIN, {"sft.num_trajectories": [1, "4"]})
    assert [step.name for step in found.config.steps] == [
        "base",
        "generate",
        "verify",
        "sft_num_trajectories_1",
        "evaluate_num_trajectories_1",
        "sft_num_trajectories_4",
        "evaluate_num_trajectories_4",
        "report",
    ]
    assert found.shared() == ["base", "generate", "verify"]
    first, second = found.trials
    assert (second.name, second.values) == ("num_trajectories_4", {"sft.num_trajectories": 4})
    assert found.own(second) == ["sft_num_trajectories_4", "evaluate_num_trajectories_4"]
    copied = found.config.step("evaluate_num_trajectories_4")
    assert (copied.policy, copied.overrides) == ("sft_num_trajectories_4", {})
    assert found.config.for_step("sft_num_trajectories_4").sft.num_trajectories == 4
    assert found.config.step("sft_num_trajectories_1").data == ("verify",)
    assert first.steps["base"] == "base"


def test_a_seed_reaches_every_step_that_draws_and_is_shared_by_the_other_settings() -> None:
    found = sweep.expanded(CHAIN, {"sft.num_trajectories": [1, 2], "seed": [0, 1]})
    names = [step.name for step in found.config.steps]
    assert sum(name.startswith("generate") for name in names) == 2
    assert sum(name.startswith("sft") for name in names) == 4
    assert found.config.for_step("generate_seed_1").seed == 1
    assert found.config.step("sft_num_trajectories_2_seed_1").data == ("verify_seed_1",)
    assert len(found.trials) == 4 and len({trial.name for trial in found.trials}) == 4


def test_a_setting_of_one_step_is_varied_there_alone_and_a_steps_own_setting_stays() -> None:
    own = Step(name="sft", stage="sft", policy="base", data=("verify",), overrides={"sft.max_steps": 7})
    config = CHAIN.model_copy(update={"steps": (*CHAIN.steps[:3], own, *CHAIN.steps[4:])})
    found = sweep.expanded(config, {"steps.evaluate.seed": [5, 6]})
    assert [step.name for step in found.config.steps][3:6] == ["sft", "evaluate_seed_5", "evaluate_seed_6"]
    assert found.config.for_step("evaluate_seed_6").seed == 6 and found.config.for_step("sft").seed == 0
    with pytest.raises(ConfigError, match=r"sft\.max_steps is varied, but no step"):
        sweep.expanded(config, {"sft.max_steps": [1, 2]})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"sft.num_trajectory": [1]}, "did you mean 'sft.num_trajectories'"),
        ({"sft.num_trajectories": [0]}, r"sft\.num_trajectories"),
        ({"scenery": [1]}, "no setting"),
        ({"landscape": [1]}, "is a group of settings"),
        ({}, "search space"),
        ({"train.learning_rate": [1e-3, 0.001]}, "no setting"),
        ({"sft.learning_rate": [1e-3, 0.001]}, "a value stands twice"),
    ],
)
def test_what_cannot_be_varied_is_refused(space: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep.expanded(presets.miniature(), space)


def test_the_miniatures_groups_are_updated_on_in_part_and_both_starts_follow() -> None:
    found = sweep.expanded(presets.miniature(), {"grpo.num_updated": [1, 8]})
    names = {step.name for step in found.config.steps}
    assert {
        "grpo_zero_num_updated_1",
        "grpo_cold_num_updated_8",
        "evaluate_grpo_zero_num_updated_8",
        "evaluate_sft",
    } <= names
    assert "evaluate_sft_num_updated_1" not in names


def test_grids_share_what_is_alike_and_run_no_step_that_they_do_not_need() -> None:
    config = override(
        CHAIN,
        {
            "ablate.grids": {
                "own": {},
                "few": {"space": {"sft.num_trajectories": [1, 32]}, "steps": ["sft"]},
            }
        },
    )
    found = sweep.expanded(config, {"seed": [3]})
    own, one, all_of_them = found.trials
    assert [trial.name for trial in found.trials] == [
        "own_seed_3",
        "few_num_trajectories_1_seed_3",
        "few_num_trajectories_32_seed_3",
    ]
    assert all_of_them.steps == {name: own.steps[name] for name in ("base", "generate", "verify", "sft")}
    assert one.steps["sft"] == "sft_num_trajectories_1_seed_3" and "evaluate" not in one.steps
    assert found.own(one) == ["sft_num_trajectories_1_seed_3"] and found.own(all_of_them) == []
    assert [trial.grid for trial in found.trials] == ["own", "few", "few"]


def test_a_grid_of_an_unknown_step_and_one_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ablate\.grids\.few\.steps.*'sftt'; did you mean 'sft'"):
        sweep.expanded(override(CHAIN, {"ablate.grids": {"few": {"steps": ["sftt"]}}}), {"seed": [1]})
    with pytest.raises(ConfigError, match="search space"):
        sweep.expanded(override(CHAIN, {"ablate.grids": {"none": {}}}), {})
