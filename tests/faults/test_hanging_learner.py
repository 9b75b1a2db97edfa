"""The only learner hangs in a step: it ends itself, and its successor goes on from the last checkpoint."""

from pathlib import Path

import pytest

from raml_ray.config import override
from raml_ray.stages import sft
from tests.stages.test_sft import losses, prepared, undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.slow]

NUM_STEPS, EVERY, PATIENCE_S = 6, 2, 15.0


def test_an_only_learner_that_hangs_is_started_again(cluster: None, tmp_path: Path) -> None:
    examples, folder, base, config = prepared(tmp_path, train__checkpoint_every=EVERY, sft__max_steps=NUM_STEPS)
    drill: dict[str, object] = {
        "drill.faults": "learner:0:4:hang",
        "drill.folder": str(tmp_path / "drill"),
        "train.step_timeout_s": PATIENCE_S,
        "train.max_failures": 1,
    }
    figures = sft.train_policy(examples, folder, base, override(config, drill))
    assert (tmp_path / "drill" / "learner-0-4-hang.json").exists()
    assert folder.read_json("restarts.json") == [{"from_step": 2, "repeated_steps": 1}]
    assert figures["learner/restarts"] == 1
    made = losses(folder)
    assert [step for step, _ in made] == list(range(1, NUM_STEPS + 1))
    assert [loss for _, loss in made] == pytest.approx(undisturbed(config), abs=1e-6)
