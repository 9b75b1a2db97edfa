"""MLflow's own pages over what the runs of this machine logged."""

import os
import subprocess
import sys

from raml_ray import storage
from raml_ray.config import Config, ConfigError
from raml_ray.provenance import tracking_uri
from raml_ray.redacted import without_secrets


def command(config: Config, port: int) -> list[str]:
    """MLflow's server, for nobody but this machine: it asks for no password."""
    artifacts = f"{storage.absolute(config.root)}/mlflow-artifacts"
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    return [*server, "--default-artifact-root", artifacts]


def serve(config: Config, port: int) -> int:
    """Serve the pages on loopback until interrupted.

    Raises: ConfigError if the runs are logged to a server, which has pages of its own, or not at all.
    """
    uri = tracking_uri(config)
    if uri is None or uri.startswith("http"):
        where = without_secrets(uri) if uri else "no tracking store"
        raise ConfigError(f"runs are logged to {where}: open that server's own pages")
    sys.stdout.write(f"MLflow on http://127.0.0.1:{port} (end with Ctrl-C)\n")
    sys.stdout.flush()
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        return subprocess.call(command(config, port), env=os.environ | quiet | {"MLFLOW_BACKEND_STORE_URI": uri})
    except KeyboardInterrupt:
        return 0
