"""Clusters without Kubernetes: Slurm's batch script, and the file of Ray's own launcher."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private import util
from ray.autoscaler._private.local.config import prepare_local

ROOT = Path(__file__).parents[1]
LAUNCHER = ROOT / "deploy" / "launcher" / "cluster.yaml"
SBATCH = ROOT / "deploy" / "slurm" / "raml.sbatch"
SRUN = """#!/bin/bash
# Runs here what Slurm would run on a machine of its own.
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = "#!/bin/sh\necho first\necho second\n"


def test_the_launcher_file_is_what_ray_takes() -> None:
    prepared, _ = prepare_local(yaml.safe_load(LAUNCHER.read_text()))
    util.validate_config(util.fillout_defaults(prepared))
    assert prepared["max_workers"] == len(prepared["provider"]["worker_ips"]) == 2
    with pytest.raises(Exception, match="head_starting_commands"):
        util.validate_config(util.fillout_defaults(prepared | {"head_starting_commands": []}))


def test_every_way_to_start_ray_asks_for_tokens_and_keeps_the_dashboard_to_itself() -> None:
    config = yaml.safe_load(LAUNCHER.read_text())
    for command in config["head_start_ray_commands"][1:] + config["worker_start_ray_commands"][1:]:
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in command
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    script = SBATCH.read_text()
    assert script.index("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=") < script.index("ray start")
    assert "--dashboard-host=127.0.0.1" in script


@pytest.mark.ray
@pytest.mark.slow
def test_the_batch_script_starts_head_and_workers_and_submits(tmp_path: Path) -> None:
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = free.getsockname()[1]
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "first,second", "SLURM_JOB_ID": str(job)}
    environment = os.environ | slurm | {"SLURM_CPUS_ON_NODE": "2", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("RAY_AUTH_MODE")
    before = set(ROOT.glob(".raml-token*"))
    words = ["run", "gsm8k", "--step", "human", "data.limit=4", f"root={tmp_path}/runs"]
    with (tmp_path / "log").open("w") as log:
        script = subprocess.Popen(
            ["bash", str(SBATCH), *words], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        script.wait(timeout=180)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGTERM)
        shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)
    said = (tmp_path / "log").read_text()
    assert script.returncode == 0, said
    assert "Ray on 2 machines" in said
    assert list((tmp_path / "runs").glob("gsm8k/human/summary.json"))
    assert set(ROOT.glob(".raml-token*")) == before, "the token goes with its job"
