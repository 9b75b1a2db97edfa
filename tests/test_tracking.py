"""MLflow against a real SQLite store, a server that is down, and one that never answers."""

import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from raml_ray import provenance, tracking
from raml_ray.config import Config, flatten, override
from raml_ray.metrics_file import METRICS, MetricsFile, read_metrics
from raml_ray.storage import Folder
from raml_ray.tracking import Tracker
from raml_ray.tracking_commands import TrialPlace

CLOSE_S = 90.0


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: making its tables costs seconds, a copy nothing."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return override(Config(), {"root": str(tmp_path), "name": "demo", "seed": 3})


@pytest.fixture
def stored(config: Config, empty_store: Path) -> Config:
    """The config, with its database made already."""
    shutil.copy(empty_store, Path(config.root, "mlflow.db"))
    return config


def run_folder(config: Config) -> Folder:
    return Folder(config.root) / config.name


def track_sft(
    config: Config, steps: range, *, artifacts: tuple[str, ...] = (), status: tracking.Status = "FINISHED"
) -> None:
    folder = run_folder(config)
    tracker = Tracker(config, folder)
    step = tracker.start_step("sft", "sft", flatten(config), {"raml.fingerprint": "abc"})
    with MetricsFile(folder / "sft") as metrics:
        for number in steps:
            metrics.append(number, {"sft/loss": 1.0 / (number + 1), "time/step_s": 0.5})
    step.finish(status, {"counts.rows_out": 7.0}, artifacts)
    tracker.close(timeout=CLOSE_S)


def runs_of(config: Config) -> tuple[MlflowClient, dict[str, Run]]:
    client = MlflowClient(f"sqlite:///{config.root}/mlflow.db")
    experiment = client.get_experiment_by_name("raml")
    return client, {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_the_steps_of_a_trial_lie_in_the_trial_and_the_trial_in_its_sweep(stored: Config) -> None:
    folder = run_folder(stored)
    sweep = Tracker(stored, folder)
    sweep.start_step("base", "base", {}, {}).finish("FINISHED", {}, ())
    trial = Tracker(stored, folder, TrialPlace(folder / "trials" / "n_4", {"sft.num_trajectories": 4}))
    # The sweep's own run has to be there before a trial can lie in it: Tune starts trials when shared steps are done.
    deadline = time.monotonic() + CLOSE_S
    while "base" not in runs_of(stored)[1]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    trial.start_step("sft_n_4", "sft", {}, {}).finish("FINISHED", {}, ())
    trial.figures = {"evaluate/in_domain/accuracy": 0.5}
    trial.close(timeout=CLOSE_S)
    sweep.close(timeout=CLOSE_S)
    runs = runs_of(stored)[1]
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    ids = {name: run.info.run_id for name, run in runs.items()}
    assert parents == {"demo": None, "base": ids["demo"], "n_4": ids["demo"], "sft_n_4": ids["n_4"]}
    assert runs["n_4"].data.params == {"sft.num_trajectories": "4"}
    assert runs["n_4"].data.metrics == {"evaluate/in_domain/accuracy": 0.5}


def test_a_step_is_a_child_of_its_run_with_params_tags_metrics_by_step_and_artifacts(
    config: Config, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>")
    track_sft(config, range(3), artifacts=(str(page),))
    client, runs = runs_of(config)
    assert runs.keys() == {"demo", "sft"}
    parent, child = runs["demo"], runs["sft"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert parent.data.tags["raml.run"].startswith("demo@") and parent.data.tags["raml.seed"] == "3"
    assert child.data.tags["raml.fingerprint"] == "abc" and child.data.tags["raml.stage"] == "sft"
    assert json.loads(Path(client.download_artifacts(parent.info.run_id, "config.json")).read_text())["seed"] == 3
    assert "version.torch" in child.data.tags
    assert child.data.params["sft.learning_rate"] == "0.002" and child.data.params["data.path"] == ""
    history = client.get_metric_history(child.info.run_id, "sft/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert child.data.metrics["counts.rows_out"] == 7.0
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["page.html"]
    assert (tmp_path / "mlflow-artifacts").is_dir()


def test_a_resumed_run_continues_its_ids_without_a_gap_or_a_double(stored: Config) -> None:
    track_sft(stored, range(4), status="FAILED")
    first = {name: run.info.run_id for name, run in runs_of(stored)[1].items()}
    with MetricsFile(run_folder(stored) / "sft") as metrics:
        metrics.truncate_after(1)  # its checkpoint was that old: 2 and 3 are made again
    track_sft(stored, range(2, 6))
    client, runs = runs_of(stored)
    assert {name: run.info.run_id for name, run in runs.items()} == first
    steps = [metric.step for metric in client.get_metric_history(first["sft"], "sft/loss")]
    assert sorted(steps) == [0, 1, 2, 3, 4, 5]
    assert (runs["sft"].info.status, runs["demo"].info.status) == ("FINISHED", "FINISHED")


def test_a_step_done_anew_is_another_run(stored: Config) -> None:
    track_sft(stored, range(2))
    (run_folder(stored) / "sft").remove()
    track_sft(stored, range(2))
    client, runs = runs_of(stored)
    experiment = client.get_experiment_by_name("raml")
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(names) == ["demo", "sft", "sft"]
    assert runs["sft"].data.tags["mlflow.parentRunId"] == runs["demo"].info.run_id


def test_passwords_in_urls_never_reach_the_server(stored: Config) -> None:
    track_sft(override(stored, {"data.path": "https://user:hunter2@host/x.jsonl"}), range(1))
    client, runs = runs_of(stored)
    assert runs["sft"].data.params["data.path"] == "https://***@host/x.jsonl"
    sent = Path(client.download_artifacts(runs["demo"].info.run_id, "config.json")).read_text()
    assert "https://***@host/x.jsonl" in sent and "hunter2" not in sent


def test_tracking_that_is_off_makes_no_store(config: Config) -> None:
    track_sft(override(config, {"tracking.enabled": "false"}), range(2))
    assert not Path(config.root, "mlflow.db").exists()
    assert len(read_metrics(run_folder(config) / "sft")) == 2


def test_the_environment_wins_over_the_setting_and_sqlite_in_the_root_is_the_last_resort(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert provenance.tracking_uri(config) == f"sqlite:///{config.root}/mlflow.db"
    named = override(config, {"tracking.uri": "http://a"})
    assert provenance.tracking_uri(named) == "http://a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://b")
    assert provenance.tracking_uri(named) == "http://b"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert provenance.tracking_uri(override(config, {"root": "s3://bucket/runs"})) is None


@pytest.fixture
def silent_server() -> Iterator[str]:
    with socket.socket() as sink:
        sink.bind(("127.0.0.1", 0))
        sink.listen()  # takes connections, never answers
        yield f"http://127.0.0.1:{sink.getsockname()[1]}"


class _Garbage(BaseHTTPRequestHandler):
    """Another server on the port where MLflow should be: it answers everything with a page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def garbage_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Garbage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _run_of_50(config: Config, timeout: float) -> float:
    """Longest time that a call of the run took, `close` apart, seconds."""
    folder, slowest = run_folder(config), 0.0
    began = time.monotonic()
    tracker = Tracker(config, folder)
    step = tracker.start_step("sft", "sft", flatten(config), {})
    slowest = time.monotonic() - began
    with MetricsFile(folder / "sft") as metrics:
        for number in range(50):
            began = time.monotonic()
            metrics.append(number, {"sft/loss": 1.0})
            slowest = max(slowest, time.monotonic() - began)
    step.finish("FINISHED", {}, [])
    tracker.close(timeout=timeout)
    return slowest


@pytest.mark.parametrize("kind", ["closed", "silent", "garbage"])
def test_a_server_that_is_down_or_silent_or_none_of_mlflows_costs_one_warning_and_no_metric(
    kind: str, config: Config, silent_server: str, garbage_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    uri = {"silent": silent_server, "garbage": garbage_server, "closed": "http://user:hunter2@127.0.0.1:9"}[kind]
    down = override(config, {"tracking.uri": uri})
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        slowest = _run_of_50(down, timeout=4.0)
    assert time.monotonic() - began < 8.0
    assert slowest < 3.0
    assert [row["step"] for row in read_metrics(run_folder(down) / "sft")] == list(range(50))
    said = [record.getMessage() for record in caplog.records]
    assert 1 <= len(said) <= 2  # that it is down, and (if it hangs) that close gave up
    assert all("metrics.jsonl holds all" in message and "hunter2" not in message for message in said)


@pytest.mark.slow
def test_a_server_that_comes_back_gets_what_it_missed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="raml_ray.tracking")
    monkeypatch.setattr(tracking, "RETRY_S", 0.2)
    blocked = tmp_path / "store"
    blocked.write_text("")  # a file where the database's folder shall be: no store can be opened
    store = f"sqlite:///{blocked}/mlflow.db"
    named = override(config, {"tracking.uri": store})
    folder = run_folder(named)
    tracker = Tracker(named, folder)
    step = tracker.start_step("sft", "sft", {}, {})
    with MetricsFile(folder / "sft") as metrics:
        metrics.append(0, {"sft/loss": 2.0})
    deadline = time.monotonic() + 120
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "metrics.jsonl holds all" in caplog.text
    blocked.unlink()
    step.finish("FINISHED", {}, [])
    tracker.close(timeout=CLOSE_S)
    client = MlflowClient(store)
    (child,) = [run for run in client.search_runs(["1"]) if run.info.run_name == "sft"]
    assert child.data.metrics["sft/loss"] == 2.0 and child.info.status == "FINISHED"


def test_metrics_come_back_as_written_and_what_is_not_finite_stays_strict_json(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "step"))
    with MetricsFile(folder) as metrics:
        metrics.append(1, {"a": float("nan"), "b": float("inf"), "c": 0.25})
    (row,) = read_metrics(folder)
    assert row["a"] != row["a"] and row["b"] == float("inf") and row["c"] == 0.25 and row["step"] == 1
    json.loads((tmp_path / "step" / METRICS).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_line_that_a_kill_cut_off_is_dropped_before_the_next(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    MetricsFile(folder).append(0, {"a": 1.0})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 1, "ti')
    assert [row["step"] for row in read_metrics(folder)] == [0]
    MetricsFile(folder).append(1, {"a": 2.0})
    assert [row["step"] for row in read_metrics(folder)] == [0, 1]


def test_a_remote_folder_holds_every_line_after_close() -> None:
    folder = Folder("memory://tracking-test/step")
    with MetricsFile(folder, rewrite_s=60) as metrics:
        for step in range(5):
            metrics.append(step, {"a": 1.0})
        assert read_metrics(folder) == []  # not yet due
    assert [row["step"] for row in read_metrics(folder)] == [0, 1, 2, 3, 4]
    resumed = MetricsFile(folder, rewrite_s=0)
    resumed.truncate_after(2)
    resumed.append(3, {"a": 2.0})
    assert [(row["step"], row["a"]) for row in read_metrics(folder)] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]


def test_an_artifact_in_a_remote_folder_is_sent_under_its_name(stored: Config) -> None:
    Folder("memory://tracking-artifact").write_text("page.html", "<p>")
    track_sft(stored, range(1), artifacts=("memory://tracking-artifact/page.html", "/nowhere/else.html"))
    client, runs = runs_of(stored)
    assert [file.path for file in client.list_artifacts(runs["sft"].info.run_id)] == ["page.html"]
    assert runs["sft"].info.status == "FINISHED"


def test_progress_of_a_step_is_a_table_that_a_resumed_step_adds_to(stored: Config) -> None:
    folder = run_folder(stored)
    for rows in (64, 128):
        tracker = Tracker(stored, folder)
        step = tracker.start_step("generate", "generate", {}, {})
        with MetricsFile(folder / "generate") as metrics:
            metrics.append(rows, {"progress/rows": rows, "progress/rows_per_s": 2.5})
        step.finish("KILLED", {}, [])
        tracker.close(timeout=CLOSE_S)
    client, runs = runs_of(stored)
    table = json.loads(Path(client.download_artifacts(runs["generate"].info.run_id, "progress.json")).read_text())
    assert table["columns"] == ["time", "rows", "rows_per_s"]
    assert [row[1] for row in table["data"]] == [64.0, 128.0]
