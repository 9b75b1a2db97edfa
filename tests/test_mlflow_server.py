"""The tracking server as deploy/kubernetes starts it: who is let in, and that what it was told outlives it.

On SQLite, where `make test` asks who is let in; `make test-cluster` asks for the rest, and on PostgreSQL as well, as the manifest
has it, where `apt-get install postgresql` was typed.
"""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
import yaml

MANIFEST = Path(__file__).parents[1] / "deploy" / "kubernetes" / "mlflow" / "mlflow.yaml"
PASSWORD = "a-long-enough-password"
PATIENCE_S = 300.0


def told() -> tuple[dict[str, str], str]:
    """Options of the manifest's command line, and its auth.ini."""
    manifests = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(MANIFEST.read_text())}
    [container] = manifests["Deployment", "mlflow"]["spec"]["template"]["spec"]["containers"]
    words = dict(word.partition("=")[::2] for word in container["command"][2:])
    return words, manifests["ConfigMap", "mlflow-server"]["data"]["auth.ini"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """HOST:PORT of an empty PostgreSQL of this test's, whose user `mlflow` has the password."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL here; type: sudo apt-get install postgresql")
    # It refuses to be root's.
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="raml", dir="/tmp") as folder:
        (Path(folder) / "password").write_text(PASSWORD)
        if user:
            for path in (folder, f"{folder}/password"):
                shutil.chown(path, user)
        words = ["--username=mlflow", f"--pwfile={folder}/password", "--auth=scram-sha-256", "--encoding=UTF8"]
        subprocess.run(
            [found[-1] / "initdb", *words, f"{folder}/data"], check=True, user=user, stdout=subprocess.DEVNULL
        )
        words = ["-D", f"{folder}/data", "-p", str(port), "-h", "127.0.0.1", "-k", folder]
        process = subprocess.Popen([found[-1] / "postgres", *words], user=user, stderr=subprocess.DEVNULL)
        try:
            create = [found[-1] / "createdb", f"--host={folder}", f"--port={port}", "--username=mlflow", "mlflow"]
            environment = os.environ | {"PGPASSWORD": PASSWORD}
            for _ in range(100):
                if not subprocess.run(create, env=environment, check=False, stderr=subprocess.DEVNULL).returncode:
                    break
                time.sleep(0.3)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.faults)])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the one database that holds runs and passwords."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database')}/mlflow.db"
    else:
        with postgres() as address:
            yield told()[0]["--backend-store-uri"].replace("postgres:5432", address)


@contextlib.contextmanager
def serving(database: str, folder: Path) -> Iterator[str]:
    """Address of the server that the manifest's command line starts, with a database and a port of this test's."""
    (words, ini), port = told(), free_port()
    changed = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--allowed-hosts": f"mlflow:5000,localhost:{port}",
        "--backend-store-uri": database,
        "--artifacts-destination": str(folder / "artifacts"),
    }
    assert changed.keys() == words.keys() - {"--app-name", "--workers", "--uvicorn-opts"}
    assert words["--backend-store-uri"] in ini
    (folder / "auth.ini").write_text(ini.replace(words["--backend-store-uri"], database))
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-this-test",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PGPASSWORD": PASSWORD,
    }
    command = [sys.executable, "-m", "mlflow", "server"]
    command += [f"{name}={value}" for name, value in (words | changed).items()]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(port, process, folder / "log")
        yield f"http://localhost:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)
        process.wait(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(database, tmp_path_factory.mktemp("mlflow")) as address:
        yield address


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        if ask(f"http://localhost:{port}/health", host="a-probe") == 200:
            return
        time.sleep(0.3)
    raise AssertionError(log.read_text())


def asked(url: str, what: object = None, *, password: str = PASSWORD, host: str = "") -> bytes:
    """The answer; to a POST where something is sent. Raises: urllib.error.HTTPError."""
    request = urllib.request.Request(url, None if what is None else json.dumps(what).encode())
    request.add_header("Content-Type", "application/json")
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    if host:
        request.add_header("Host", host)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        return bytes(reply.read())


def ask(url: str, *, password: str = "", host: str = "") -> int:
    """The status; 0 if nobody listens."""
    try:
        asked(url, password=password, host=host)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
    return 200


def test_the_database_is_asked_by_a_driver_that_the_lock_has() -> None:
    address = sqlalchemy.make_url(told()[0]["--backend-store-uri"])
    assert address.get_backend_name() == "postgresql"
    assert address.get_dialect().import_dbapi().__name__ == "psycopg2"


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


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_and_the_password_outlive_the_server(database: str, tmp_path: Path) -> None:
    name = "the-run-that-stays"
    with serving(database, tmp_path) as address:
        api = f"{address}/api/2.0/mlflow"
        made = json.loads(asked(f"{api}/runs/create", {"experiment_id": "0", "run_name": name, "start_time": 1}))
        run = made["run"]["info"]["run_id"]
        points = [
            {"key": "grpo/reward", "value": value, "timestamp": 1, "step": n} for n, value in enumerate((0.25, 0.5))
        ]
        asked(f"{api}/runs/log-batch", {"run_id": run, "metrics": points, "tags": [{"key": "step", "value": "grpo"}]})
    with serving(database, tmp_path) as address:
        api = f"{address}/api/2.0/mlflow"
        found = json.loads(asked(f"{api}/runs/get?run_id={run}"))["run"]
        assert found["info"]["run_name"] == name
        assert [(one["key"], one["value"]) for one in found["data"]["metrics"]] == [("grpo/reward", 0.5)]
        history = json.loads(asked(f"{api}/metrics/get-history?run_id={run}&metric_key=grpo/reward"))
        assert [(one["step"], one["value"]) for one in history["metrics"]] == [(0, 0.25), (1, 0.5)]
        assert ask(f"{api}/runs/get?run_id={run}", password="another") == 401
