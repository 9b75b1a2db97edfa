"""What the driver of a sweep says of its trials."""

import logging
from types import SimpleNamespace

import pytest

from raml_ray.stages.trial_callbacks import TrialCallbacks


def test_trials_are_counted_as_they_begin_and_one_that_never_began_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raml_ray")
    callbacks = TrialCallbacks({"seed_1": [], "seed_2": [], "seed_3": []})
    for name in ("seed_1", "seed_3"):
        callbacks.on_trial_start(0, [], SimpleNamespace(config={"trial": name}))
    callbacks.on_trial_complete(0, [], SimpleNamespace(config={"trial": "seed_1"}))
    callbacks.on_trial_error(0, [], SimpleNamespace(config={"trial": "seed_2"}))
    assert caplog.messages[:2] == ["trial 1 of 3: seed_1", "trial 2 of 3: seed_3"]
    assert caplog.messages[2].startswith("trial seed_1 ended after 0.")
    assert caplog.messages[3] == "trial seed_2 failed after 0.0 s"
