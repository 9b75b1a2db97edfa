"""Where asha would compare what cannot be compared it is refused, and elsewhere it ends the trial that is behind."""

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raml_ray import presets
from raml_ray.config import ConfigError, override
from raml_ray.settings import AblateConfig
from raml_ray.stages import ablate, early_stopping, sweep

ASHA = AblateConfig(scheduler="asha", grace_steps=2, most_steps=8, reduction_factor=2)


def zero_grpo(space: dict[str, list[object]]) -> sweep.Sweep:
    whole = presets.miniature()
    steps = tuple(step for step in whole.steps if step.name in ("base", "grpo_zero", "evaluate_grpo_zero"))
    return sweep.expanded(whole.model_copy(update={"steps": steps}), space)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"seed": [1, 2]}, "over seed: the seeds that learn slowly would be ended"),
        ({"grpo.reward": ["correct", "paper"]}, r"over grpo\.reward: it decides what the reward is"),
        ({"steps.grpo_zero.grpo.temperature": [0.7, 1.0]}, "are of other responses"),
        ({"grpo.overlong_tokens": [0, 8]}, r"of different responses: .* are \[\(0, 0\), \(0, 8\)\]"),
        # DAPO takes a fifth of 96 tokens, and asks others in the place of questions that are all right or all wrong.
        ({"grpo.loss": ["grpo", "dapo"]}, r"are \[\(0, 0\), \(3, 19\)\]"),
        ({"data.limit": [8, 16]}, r"over data\.limit: it decides which questions"),
        ({"evaluate.k": [4, 8]}, "has 0 GRPO steps of its own, not one"),
    ],
)
def test_early_stopping_is_refused_where_it_is_unsound(space: dict[str, list[object]], message: str) -> None:
    found = zero_grpo(space)
    with pytest.raises(ConfigError, match=message):
        early_stopping.check(found, ASHA)
    early_stopping.check(found, AblateConfig())


def test_two_grpo_steps_in_a_trial_are_one_too_many() -> None:
    found = sweep.expanded(override(presets.miniature(), {}), {"grpo.learning_rate": [1e-4, 1e-3]})
    with pytest.raises(ConfigError, match="has 2 GRPO steps"):
        early_stopping.check(found, ASHA)


def test_a_learning_rate_may_be_searched_with_early_stopping() -> None:
    early_stopping.check(zero_grpo({"grpo.learning_rate": [1e-4, 1e-3]}), ASHA)


def test_losses_of_one_reward_may_be_searched_with_early_stopping() -> None:
    early_stopping.check(zero_grpo({"grpo.loss": ["grpo", "gspo"]}), ASHA)


def test_tune_is_told_the_lines_that_hold_what_trials_are_compared_by_and_no_other() -> None:
    lines = [{"grpo/reward": 0.5}, {"progress/rows": 4.0}, {"grpo/reward": 0.25}]
    assert list(ablate._told(lines, "grpo/reward")) == [
        {"grpo/reward": 0.5, ablate.STEP: 1},
        {"grpo/reward": 0.25, ablate.STEP: 2},
    ]
    assert [line[ablate.STEP] for line in ablate._told(lines, "")] == [1, 2, 3]


def test_the_trial_that_is_behind_at_a_rung_is_ended_and_the_first_goes_on() -> None:
    scheduler = ablate._scheduler(ASHA)
    assert scheduler is not None
    ahead, behind = Trial("ahead", stub=True), Trial("behind", stub=True)
    for trial in (ahead, behind):
        scheduler.on_trial_add(None, trial)

    def told(trial: Trial, step: int, reward: float) -> str:
        return scheduler.on_trial_result(None, trial, {ablate.STEP: step, "grpo/reward": reward})

    assert told(ahead, 1, 0.5) == told(behind, 1, 0.9) == TrialScheduler.CONTINUE  # within the grace
    assert told(ahead, 2, 0.5) == TrialScheduler.CONTINUE  # the first at a rung has nobody to be behind
    assert told(behind, 2, 0.1) == TrialScheduler.STOP
    assert told(ahead, 3, 0.0) == TrialScheduler.CONTINUE  # between rungs
