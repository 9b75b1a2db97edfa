"""A run as a whole, with the scripted engine: finished once, resumed, refused when something else was asked, done anew."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from raml_ray import presets, stopping
from raml_ray.config import Config, ConfigError, Stage, Step, differences, flatten, load, override
from raml_ray.stages import pipeline
from raml_ray.stages.context import Context, Outcome
from raml_ray.storage import SUMMARY, Folder

QUESTIONS = 6


@pytest.fixture
def config(tmp_path: Path, cluster: None) -> Config:
    """Questions from a file, trajectories from their own text, verdicts, a report: no model anywhere."""
    rows = [
        {"problem": f"{i} + 1?", "answer": str(i + 1), "text": f"\\boxed{{{i + 1 if i % 2 else 0}}}"}
        for i in range(QUESTIONS)
    ]
    questions(tmp_path, rows)
    steps = (
        Step(name="import", stage="generate", overrides={"generate.source": "import"}),
        Step(name="verify", stage="verify", data=("import",)),
        Step(name="report", stage="report"),
    )
    settings = {
        "root": str(tmp_path / "runs"),
        "data.path": str(tmp_path / "set.jsonl"),
        "data.texts": {"someone": "text"},
        "tracking.enabled": False,
        "verify.num_workers": 1,
    }
    return override(Config(name="r", steps=steps), settings)


def questions(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def summaries(folder: Folder) -> dict[str, dict[str, object]]:
    return {name: folder.read_json(f"{name}/{SUMMARY}") for name in folder.names() if (folder / name).exists(SUMMARY)}


@pytest.mark.ray
def test_a_run_leaves_a_summary_of_every_step_and_a_config_that_makes_it_again(config: Config) -> None:
    folder = pipeline.run(config)
    found = summaries(folder)
    assert set(found) == {"import", "verify", "report"}
    assert found["verify"]["counts"] == {"rows_in": 6, "rows_out": 6, "rejected": 0, "filtered": 0}
    verdicts = found["verify"]["figures"]["verdicts"]  # type: ignore[index]
    assert (verdicts["correct"], verdicts["wrong"]) == (3, 3)
    for name in found:
        again = load((folder / name).read_text("config.json"), name)
        assert list(differences(config, again)) == []


@pytest.mark.ray
def test_a_finished_step_is_not_done_again_and_an_unfinished_one_is(config: Config) -> None:
    folder = pipeline.run(config)
    before = {name: Path(folder.file(f"{name}/{SUMMARY}")).stat().st_mtime_ns for name in summaries(folder)}
    Path(folder.file(f"verify/{SUMMARY}")).unlink()  # as if it had been killed before its last line
    pipeline.run(config)
    after = {name: Path(folder.file(f"{name}/{SUMMARY}")).stat().st_mtime_ns for name in summaries(folder)}
    assert after["import"] == before["import"]
    assert after["verify"] > before["verify"]


@pytest.mark.ray
def test_other_settings_and_a_changed_file_are_refused_with_what_changed(config: Config, tmp_path: Path) -> None:
    pipeline.run(config)
    with pytest.raises(ConfigError, match=r"verify.cpu_seconds: 0.6 -> 3.0\n.*--redo"):
        pipeline.run(override(config, {"verify.cpu_seconds": 3}))
    questions(tmp_path, [{"problem": "other", "answer": "1", "text": "\\boxed{1}"}])
    with pytest.raises(ConfigError, match=r"inputs.data.path: '[0-9a-f]{16}' -> '[0-9a-f]{16}'"):
        pipeline.run(config)


@pytest.mark.ray
def test_limits_may_change_on_a_resume(config: Config) -> None:
    folder = pipeline.run(config)
    before = summaries(folder)
    pipeline.run(
        override(
            config, {"verify.max_failed_fraction": 0.5, "verify.num_workers": 2, "data.max_rejected_fraction": 0.5}
        )
    )
    assert summaries(folder)["verify"] == before["verify"]


@pytest.mark.ray
def test_redo_starts_a_step_anew_and_what_builds_on_it(config: Config) -> None:
    folder = pipeline.run(config)
    before = {name: Path(folder.file(f"{name}/{SUMMARY}")).stat().st_mtime_ns for name in summaries(folder)}
    pipeline.run(override(config, {"verify.cpu_seconds": 3}), redo=("verify",))
    after = {name: Path(folder.file(f"{name}/{SUMMARY}")).stat().st_mtime_ns for name in summaries(folder)}
    assert [name for name in after if after[name] > before[name]] == ["report", "verify"]
    with pytest.raises(ConfigError, match="does not run it"):
        pipeline.run(config, only="import", redo=("verify",))


@pytest.mark.ray
def test_a_step_that_failed_before_it_made_anything_can_be_corrected(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        pipeline.run(override(config, {"data.path": str(tmp_path / "nowhere.jsonl")}))
    with pytest.raises(ConfigError, match=r"data.texts.someone='txt'"):
        pipeline.run(override(config, {"data.texts.someone": "txt"}))
    failure = tmp_path / "runs" / "r" / "import" / "failure.txt"
    assert "data.texts.someone" in failure.read_text()
    assert set(summaries(pipeline.run(config))) == {"import", "verify", "report"}


@pytest.mark.ray
def test_a_step_that_is_stopped_is_no_failure_and_goes_on_later(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracked = override(config, {"tracking.enabled": True})
    whole = pipeline._stage

    def stage(name: Stage) -> Callable[[Context], Outcome]:
        def terminated(context: Context) -> Outcome:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            raise AssertionError("nothing has stopped it")

        return terminated if name == "verify" else whole(name)

    monkeypatch.setattr(pipeline, "_stage", stage)
    with pytest.raises(stopping.Stopped) as left:
        pipeline.run(tracked)
    assert left.value.code == 143
    folder = Path(config.root) / "r"
    assert not (folder / "verify" / "failure.txt").exists()
    client = MlflowClient(f"sqlite:///{config.root}/mlflow.db")
    experiment = client.get_experiment_by_name("raml")
    status = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert status == {"r": "KILLED", "import": "FINISHED", "verify": "KILLED"}
    monkeypatch.setattr(pipeline, "_stage", whole)
    assert set(summaries(pipeline.run(config))) == {"import", "verify", "report"}


@pytest.fixture
def twice(config: Config) -> Config:
    """Two imports with a judgement of each, two steps at once."""
    steps = (
        *(Step(name=f"import_{n}", stage="generate", overrides={"generate.source": "import"}) for n in "ab"),
        *(Step(name=f"verify_{n}", stage="verify", data=(f"import_{n}",)) for n in "ab"),
        Step(name="report", stage="report"),
    )
    return override(config.model_copy(update={"steps": steps}), {"cluster.steps_at_once": 2})


def met(monkeypatch: pytest.MonkeyPatch, then: Callable[[Context], Outcome | None]) -> None:
    """The two imports wait for each other: then they are under way at the same time, and do `then` first."""
    whole, both = pipeline._stage, threading.Barrier(2)

    def stage(name: Stage) -> Callable[[Context], Outcome]:
        def waiting(context: Context) -> Outcome:
            both.wait(30)
            return then(context) or whole(name)(context)

        return waiting if name == "generate" else whole(name)

    monkeypatch.setattr(pipeline, "_stage", stage)


@pytest.mark.ray
def test_steps_side_by_side_give_what_they_give_one_after_the_other(
    twice: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pipeline.run(override(twice, {"cluster.steps_at_once": 1, "name": "one"}))
    met(monkeypatch, lambda context: None)
    two = pipeline.run(twice)
    assert set(summaries(two)) == {"import_a", "import_b", "verify_a", "verify_b", "report"}
    for name, table, column in (("import", "trajectories", "text"), ("verify", "verdicts", "verdict")):
        for twin in "ab":
            found = [folder / f"{name}_{twin}" / table for folder in (one, two)]
            assert found[0].names() == found[1].names() != []
            rows = [[row[column] for each in of.names() for row in of.read_table(each).to_pylist()] for of in found]
            assert rows[0] == rows[1] and len(rows[0]) == QUESTIONS


@pytest.mark.ray
def test_a_step_that_fails_leaves_the_one_beside_it_finished(twice: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(context: Context) -> None:
        if context.step.name == "import_a":
            raise ValueError("a cannot")

    whole = pipeline._stage
    met(monkeypatch, fail)
    with pytest.raises(ValueError, match="a cannot"):
        pipeline.run(twice)
    folder = Path(twice.root) / "r"
    assert "a cannot" in (folder / "import_a" / "failure.txt").read_text()
    assert set(summaries(Folder(str(folder)))) == {"import_b"}
    monkeypatch.setattr(pipeline, "_stage", whole)
    assert len(summaries(pipeline.run(twice))) == 5


@pytest.mark.ray
def test_all_steps_under_way_are_stopped_and_go_on_later(twice: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracked, over = override(twice, {"tracking.enabled": True}), threading.Event()

    def stop(context: Context) -> None:
        if context.step.name == "import_a":
            os.kill(os.getpid(), signal.SIGTERM)
        over.wait(60)
        raise RuntimeError("the cluster has gone")

    whole = pipeline._stage
    met(monkeypatch, stop)
    with pytest.raises(stopping.Stopped):
        pipeline.run(tracked)
    threads = [thread for thread in threading.enumerate() if thread.name in ("import_a", "import_b")]
    over.set()
    for thread in threads:
        thread.join(30)
    assert len(threads) == 2
    folder = Path(twice.root) / "r"
    assert not list(folder.glob("*/failure.txt"))
    client = MlflowClient(f"sqlite:///{twice.root}/mlflow.db")
    experiment = client.get_experiment_by_name("raml")
    status = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert status == {"r": "KILLED", "import_a": "KILLED", "import_b": "KILLED"}
    monkeypatch.setattr(pipeline, "_stage", whole)
    assert len(summaries(pipeline.run(twice))) == 5


@pytest.mark.ray
def test_a_step_whose_input_is_missing_names_it(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"import has no summary.json: that step is not finished"):
        pipeline.run(config, only="verify")


@pytest.mark.ray
def test_only_the_steps_of_a_stage_are_run(config: Config) -> None:
    folder = pipeline.run(config, stage="generate")
    assert set(summaries(folder)) == {"import"}
    with pytest.raises(ConfigError, match="has no step of stage 'sft'"):
        pipeline.run(config, stage="sft")


def test_every_preset_names_only_steps_and_settings_that_exist() -> None:
    for make in presets.PRESETS.values():
        config = make()
        for step in config.steps:
            assert all(flatten(config.for_step(step.name))[name] is not None for name in step.overrides)
