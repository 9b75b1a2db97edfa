"""A real sweep under Ray Tune: shared steps once, a failing trial kept by name, nothing done twice."""

import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raml_ray.cluster import Patience
from raml_ray.config import Config, ConfigError, Step, load, override
from raml_ray.metrics_file import read_metrics
from raml_ray.stages import ablate, example_shards
from tests.faults.test_training import prepared
from tests.stages import contexts

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


def small(root: Path) -> Config:
    """Scripted trajectories of one policy, evaluated: steps that take seconds."""
    steps = (
        Step(name="generate", stage="generate"),
        Step(name="evaluate", stage="evaluate"),
        Step(name="report", stage="report"),
    )
    return override(
        Config(name="sweep", root=str(root), steps=steps),
        contexts.SCRIPTED
        | {
            "policy.path": contexts.policy(root / "policy"),
            "data.path": "miniature:train",
            "data.limit": 2,
            "generate.num_samples": 1,
            "evaluate.sets": {"test": "miniature:in_domain"},
            "evaluate.limit": 2,
            "evaluate.num_samples": 2,
            "evaluate.k": 1,
            "evaluate.max_tokens": 16,
            "tracking.enabled": False,
        },
    )


def test_a_sweep_shares_what_it_can_names_what_failed_and_goes_on(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raml_ray")
    # A k of 2 samples is fine, one that no engine of this length can prompt is not.
    config = override(small(tmp_path), {"ablate.space": {"evaluate.k": [1, 2]}})
    folder = ablate.run(config)
    # Side by side, they begin in any order.
    assert sorted(re.findall(r"trial \d of 2: (\w+)", caplog.text)) == ["k_1", "k_2"]
    assert sorted(re.findall(r"trial (\w+) ended after", caplog.text)) == ["k_1", "k_2"]
    trials = folder.read_json("sweep.json")["trials"]
    assert [trial["values"] for trial in trials] == [{"evaluate.k": 1}, {"evaluate.k": 2}]
    assert {trial["steps"]["generate"] for trial in trials} == {"generate"}
    results = {t["name"]: (folder / "trials" / t["name"]).read_json("result.json") for t in trials}
    assert {result["status"] for result in results.values()} == {"finished"}
    assert "<h2>Sweep</h2>" in (folder / "report").read_text("report.html")
    assert load(folder.read_text("preset.json"), "preset.json") == config
    assert "raml ablate ../preset.json" in (folder / "report").read_text("report.html")
    before = {name: Path(folder.file(f"{name}/summary.json")).stat().st_mtime for name in ("generate", "evaluate_k_1")}
    ablate.run(config)  # finished: nothing is done again
    assert before == {name: Path(folder.file(f"{name}/summary.json")).stat().st_mtime for name in before}
    with pytest.raises(ConfigError, match=r"give this one a name"):
        ablate.run(override(config, {"ablate.space": {"evaluate.k": [1]}}))


@pytest.mark.faults
def test_a_trial_that_fails_is_kept_by_name_and_the_others_are_done(cluster: None, tmp_path: Path) -> None:
    config = override(small(tmp_path), {"ablate.space": {"engine.max_model_len": [3, 64]}})
    with pytest.raises(RuntimeError, match=r"1 of 2 trials failed.*\n\s+max_model_len_3: "):
        ablate.run(config)
    run = tmp_path / "sweep"
    assert json.loads((run / "trials" / "max_model_len_3" / "result.json").read_text())["status"] == "failed"
    assert (run / "evaluate_max_model_len_64" / "summary.json").exists()
    assert "max_model_len_3 (failed)" in (run / "report" / "report.html").read_text()


def test_a_shared_step_that_fails_costs_its_own_trials_alone(cluster: None, tmp_path: Path) -> None:
    # Each generate step is shared by two trials; the first's engines can prompt nothing.
    space = {"steps.generate.engine.max_model_len": [3, 64], "evaluate.k": [1, 2]}
    steps = (*small(tmp_path).steps[:1], small(tmp_path).steps[1].model_copy(update={"data": ("generate",)}))
    config = override(
        small(tmp_path).model_copy(update={"steps": (*steps, small(tmp_path).steps[2])}),
        {"ablate.space": space, "cluster.steps_at_once": 2},
    )
    with pytest.raises(
        RuntimeError, match=r"2 of 4 trials failed.*\n\s+max_model_len_3_k_1: generate_max_model_len_3: "
    ):
        ablate.run(config)
    trials = tmp_path / "sweep" / "trials"
    found = {place.name: json.loads((place / "result.json").read_text())["status"] for place in trials.iterdir()}
    assert found == {
        "max_model_len_3_k_1": "failed",
        "max_model_len_3_k_2": "failed",
        "max_model_len_64_k_1": "finished",
        "max_model_len_64_k_2": "finished",
    }


def test_tasks_of_a_step_find_their_cpus_outside_the_placement_group_of_a_trial(cluster: None) -> None:
    group = placement_group([{"CPU": 0.01}])
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)

    @ray.remote(num_cpus=0.01)
    def trial() -> list[int]:
        return list(
            example_shards.over(lambda number: 2 * number, [(1,), (2,)], example_shards.Spread(2, Patience(50, "")))
        )

    assert ray.get(trial.options(scheduling_strategy=inside).remote(), timeout=60) == [2, 4]
    remove_placement_group(group)


@pytest.fixture
def another_ray() -> Iterator[None]:
    """A second cluster on this machine, as of another user, or of a driver that was killed a moment ago."""
    code = "import ray; ray.init('local', num_cpus=1, object_store_memory=80 * 2**20); print(); print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        assert "up\n" in other.stdout
        yield
        other.stdin.close()


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_trial_that_is_behind_is_ended_amid_its_versions_and_named_and_the_other_is_whole(
    cluster: None, another_ray: None, tmp_path: Path
) -> None:
    num_versions, free = 10, ray.available_resources()["CPU"]
    steps = (
        Step(name="grpo", stage="grpo"),
        Step(name="evaluate", stage="evaluate", policy="grpo"),
        Step(name="report", stage="report"),
    )
    settings = prepared(tmp_path) | {
        "train.num_workers": 1,
        "grpo.num_steps": num_versions,
        # A response is worth less the longer it is, and a version's take a second: long enough to be ended among them.
        "grpo.overlong_tokens": 24,
        "evaluate.sets": {"test": str(tmp_path / "questions.jsonl")},
        "evaluate.num_samples": 2,
        "evaluate.k": 1,
        "evaluate.max_tokens": 16,
        "ablate.space": {"grpo.questions_per_step": [2, 1]},
        "ablate.max_concurrent": 1,
        "ablate.scheduler": "asha",
        "ablate.grace_steps": 2,
        "ablate.reduction_factor": 2,
    }
    (tmp_path / "policy" / "scripted.json").write_text('{"seconds_per_step": 0.04}')
    config = override(Config(name="sweep", steps=steps), settings)
    folder = ablate.run(config)
    ahead, behind = "questions_per_step_2", "questions_per_step_1"
    rows = {name: read_metrics(folder / f"grpo_{name}") for name in (ahead, behind)}
    # What scripted engines answer hangs on seeds alone: of the rungs at versions 2, 4 and 8 the trial is behind at the second.
    lead = {place: rows[behind][place - 1]["grpo/reward"] - rows[ahead][place - 1]["grpo/reward"] for place in (2, 4)}
    assert lead[2] > 0 > lead[4]
    assert [row["step"] for row in rows[ahead]] == list(range(1, num_versions + 1))
    assert 4 <= len(rows[behind]) < num_versions
    assert not folder.exists(f"grpo_{behind}/summary.json") and not folder.exists(f"evaluate_{behind}")
    results = {name: (folder / "trials" / name).read_json("result.json") for name in rows}
    assert {name: result["status"] for name, result in results.items()} == {ahead: "finished", behind: "stopped"}
    assert f"Not whole: {behind} (ended early by ablate.scheduler)" in (folder / "report").read_text("report.html")
    table = (folder / "report" / "figures").read_table("sweep.parquet")
    assert set(table["point"].to_pylist()) == {"(2,)"}
    # Its engines and learners are gone with it.
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < free:
        assert time.monotonic() < deadline, placement_group_table()
        time.sleep(0.2)
    ablate.run(config)  # it is ended, and stays so
    assert read_metrics(folder / f"grpo_{behind}") == rows[behind]
