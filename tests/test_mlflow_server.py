"""The tracking server as deploy/kubernetes starts it, on SQLite: who is let in."""

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

MANIFEST = Path(__file__).parents[1] / "deploy" / "kubernetes" / "mlflow" / "mlflow.yaml"
PASSWORD = "a-long-enough-password"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the server that the manifest's command line starts, with a database and a port of this test's."""
    folder = tmp_path_factory.mktemp("mlflow")
    manifests = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(MANIFEST.read_text())}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    database = f"sqlite:///{folder}/mlflow.db"
    changed = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--allowed-hosts": f"mlflow:5000,localhost:{port}",
        "--backend-store-uri": database,
        "--artifacts-destination": str(folder / "artifacts"),
    }
    [container] = manifests["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    words = [word.partition("=")[0] for word in container["command"][2:]]
    assert changed.keys() == {*words} - {"--app-name"}
    ini = manifests["ConfigMap", "mlflow-server"]["data"]["auth.ini"]
    (folder / "auth.ini").write_text(ini.replace("postgresql://mlflow@postgres:5432/mlflow", database))
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-this-test",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth"]
    command += [f"{name}={value}" for name, value in changed.items()]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(port, process, folder / "log")
        yield f"http://localhost:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        if ask(f"http://localhost:{port}/health", host="a-probe") == 200:
            return
        time.sleep(0.3)
    raise AssertionError(log.read_text())


def ask(url: str, *, password: str = "", host: str = "") -> int:
    request = urllib.request.Request(url)
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
def test_whoever_has_no_password_or_names_another_host_is_refused(server: str) -> None:
    experiments = f"{server}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert ask(experiments) == 401
    assert ask(experiments, password="another") == 401
    assert ask(experiments, password=PASSWORD) == 200
    assert ask(experiments, password=PASSWORD, host="mlflow:5000") == 200
    assert ask(experiments, password=PASSWORD, host="rebound.example:5000") == 403
    assert ask(f"{server}/") == 401
    assert ask(f"{server}/health", host="10.0.0.7:5000") == 200, "Kubernetes probes by address, without a password"


@pytest.mark.slow
def test_artifacts_too_are_behind_the_password(server: str) -> None:
    assert ask(f"{server}/api/2.0/mlflow-artifacts/artifacts") == 401
    assert ask(f"{server}/api/2.0/mlflow-artifacts/artifacts?path=../..", password=PASSWORD) == 400
