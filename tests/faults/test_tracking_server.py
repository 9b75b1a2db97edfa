"""A real MLflow server that is killed in the middle of a run, and comes back."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from raml_ray import tracking
from raml_ray.config import Config, override
from raml_ray.metrics_file import MetricsFile
from raml_ray.storage import Folder
from raml_ray.tracking import Tracker
from tests.faults.conftest import free_port

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400)]

PATIENCE_S = 150.0


def waited_for(is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if is_there():
                return
        except MlflowException:  # it does not answer yet
            pass
        time.sleep(0.3)
    raise AssertionError(f"waited for {PATIENCE_S:g} s")


def server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    words = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *words]
    with open(folder / "server.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def killed(process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


def test_a_server_that_is_killed_in_a_run_delays_no_step_and_gets_every_metric_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in tracking.CLIENT_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "RETRY_S", 0.5)
    monkeypatch.setattr(tracking, "POLL_S", 0.2)
    port = free_port()
    process = server(tmp_path, port)
    uri = f"http://127.0.0.1:{port}"
    client = MlflowClient(uri)
    try:
        waited_for(lambda: bool(client.search_experiments()))
        config = override(Config(), {"root": str(tmp_path), "name": "demo", "tracking.uri": uri})
        tracker = Tracker(config, Folder(str(tmp_path / "demo")))
        step = tracker.start_step("sft", "sft", {}, {})

        def steps() -> list[int]:
            experiment = client.get_experiment_by_name("raml")
            runs = client.search_runs([experiment.experiment_id]) if experiment else []
            run = next((run for run in runs if run.info.run_name == "sft"), None)
            return [m.step for m in client.get_metric_history(run.info.run_id, "sft/loss")] if run else []

        slowest = 0.0
        with MetricsFile(Folder(str(tmp_path / "demo" / "sft"))) as metrics:
            for number in range(10):
                metrics.append(number, {"sft/loss": 1.0})
            waited_for(lambda: len(steps()) == 10)
            killed(process)
            for number in range(10, 60):
                began = time.monotonic()
                metrics.append(number, {"sft/loss": 1.0})
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.05)
        process = server(tmp_path, port)
        waited_for(lambda: bool(client.search_experiments()))
        step.finish("FINISHED", {}, [])
        tracker.close(timeout=PATIENCE_S)
        waited_for(lambda: sorted(steps()) == list(range(60)))
        assert slowest < 3.0
    finally:
        killed(process)
