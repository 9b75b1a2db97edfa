"""`raml ui`: MLflow's pages, for this machine alone."""

from pathlib import Path

from mlflow.cli import server

from raml_ray import ui
from raml_ray.config import Config, override


def test_the_pages_are_served_on_loopback_alone(tmp_path: Path) -> None:
    _, _, module, name, *words = ui.command(override(Config(), {"root": str(tmp_path)}), 5001)
    assert (module, name) == ("mlflow", "server")
    read = server.make_context(name, words).params  # as MLflow itself reads them
    assert (read["host"], read["port"]) == ("127.0.0.1", 5001)
    assert read["default_artifact_root"] == f"{tmp_path}/mlflow-artifacts"
