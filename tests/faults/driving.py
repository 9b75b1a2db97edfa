"""A generate step in a process of its own, nodes, and what can befall them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from ray.cluster_utils import Cluster

from raml_ray import storage
from raml_ray.config import dump
from raml_ray.stages.context import Context

ROOT = Path(__file__).parents[2]
DRIVER = """
import json, sys
from raml_ray import cluster
from raml_ray.config import load, override
from raml_ray.stages import generate
from raml_ray.stages.pipeline import context_of
from raml_ray.storage import Folder

config_file, run, address, figures_file = sys.argv[1:]
with open(config_file) as file:
    config = override(load(file.read(), config_file), {"cluster.address": address})
with cluster.connected(config):
    outcome = generate.run(context_of(config, config.steps[0], Folder(run)))
counts = outcome.counts
with open(figures_file, "w") as file:  # what a process prints is mixed with what Ray has to say
    json.dump(outcome.figures | {"rows_in": counts.rows_in, "rows_out": counts.rows_out, "rejected": counts.rejected}, file)
"""


class Driver:
    """The step of a context as a command that can be killed and given again."""

    def __init__(self, context: Context, address: str) -> None:
        run = Path(context.run.path)
        config, self._figures = run.with_suffix(".config.json"), run.with_suffix(".figures.json")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(dump(context.whole))
        self._command = [sys.executable, "-c", DRIVER, str(config), str(run), address, str(self._figures)]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(self._command, env=environment)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def kill_and_restart(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def figures(self, timeout: float) -> dict[str, Any]:
        """Counts and figures of the step, when it has come to its end."""
        assert self._process.wait(timeout) == 0
        found = json.loads(self._figures.read_text())
        assert isinstance(found, dict)
        return found

    def end(self) -> None:
        """What is left of it goes, too."""
        if self.runs:
            self._process.kill()
            self._process.wait()


def engines(*parents: int) -> list[psutil.Process]:
    """The engine processes below these ones that have started."""
    found = []
    for pid in parents:
        for process in psutil.Process(pid).children(recursive=True):
            try:
                if "ShardSampler" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:  # it has just ended
                continue
    return found


def num_shards(context: Context) -> int:
    return len((context.folder / "trajectories").names("shard-", ".parquet"))


def rows(context: Context) -> pa.Table:
    return storage.trajectories(context.folder).sort_by("trajectory_id")


def add_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)


def raylets(cluster: Cluster) -> list[int]:
    return [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
