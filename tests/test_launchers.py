"""Clusters without Kubernetes: Slurm's batch script, and the file of Ray's own launcher."""

import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private import util
from ray.autoscaler._private.local.config import prepare_local

from raml_ray.config import Config

ROOT = Path(__file__).parents[1]
LAUNCHER = ROOT / "deploy" / "launcher" / "cluster.yaml"
SBATCH = ROOT / "deploy" / "slurm" / "raml.sbatch"


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
        [seconds] = re.findall(r" RAY_JOB_STOP_WAIT_TIME_S=(\d+) ", command)
        assert int(seconds) > Config().cluster.stop_timeout_s, "a stopped run has time to save, on whatever machine"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    script = SBATCH.read_text()
    assert script.index("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=") < script.index("ray start")
    assert "--dashboard-host=127.0.0.1" in script
