"""`raml ui`: MLflow's pages, for this machine alone."""

import json
import subprocess
import sys
from pathlib import Path

from raml_ray import ui
from raml_ray.config import Config, override


def test_the_pages_are_served_on_loopback_alone(tmp_path: Path) -> None:
    _, _, module, name, *words = ui.command(override(Config(), {"root": str(tmp_path)}), 5001)
    assert (module, name) == ("mlflow", "server")
    # As MLflow itself reads them; in a process of its own, since vLLM starts no engine where Flask has been imported.
    reads = "import json, sys; from mlflow.cli import server; print(json.dumps(server.make_context('', sys.argv[1:]).params))"
    said = subprocess.run(
        [sys.executable, "-c", reads, *words], capture_output=True, text=True, check=True, timeout=120
    )
    read = json.loads(said.stdout.splitlines()[-1])
    assert (read["host"], read["port"]) == ("127.0.0.1", 5001)
    assert read["default_artifact_root"] == f"{tmp_path}/mlflow-artifacts"
