"""GRPO with two learners and a vLLM engine that everything befalls: the losses are those of an undisturbed run."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from raml_ray import presets
from raml_ray.config import Step, dump, override
from raml_ray.metrics_file import read_metrics
from raml_ray.storage import Folder
from tests.faults.driving import ROOT, add_node, raylets

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1800)]

NUM_STEPS, EVERY = 10, 2
PROGRESS_S = 400.0
PLAN = "engine:0:2:kill9 pool:0:3:kill9 learner:1:4:kill9 learner:0:5:hang commit:1:6:kill9 learner:0:10:hang"
"""The two that hang are found by the test, which then kills the node of the one and the driver of the other."""


class Run:
    """`raml run` in a process of its own, on the nodes of a cluster."""

    def __init__(self, root: Path, name: str, address: str, **changes: object) -> None:
        small = override(
            presets.smoke(),
            {
                "name": name,
                "root": str(root),
                "cluster.address": address,
                "grpo.num_steps": NUM_STEPS,
                "grpo.num_updated": 4,
                "grpo.num_trajectories": 8,
                "train.num_workers": 2,
                "train.checkpoint_every": EVERY,
                "train.max_failures": 10,
                "train.start_timeout_s": PROGRESS_S,
                "cluster.stop_timeout_s": PROGRESS_S,
                # So easy that a policy of a few steps is right now and then: else no gradient.
                "miniature.num_slots": 3,
                "miniature.num_operands": 2,
                "miniature.deeper_operands": 3,
                "base.num_steps": 120,
            }
            | {name.replace("__", "."): value for name, value in changes.items()},
        )
        steps = (Step(name="base", stage="base"), Step(name="grpo", stage="grpo", policy="base"))
        config = root / f"{name}.json"
        config.write_text(dump(small.model_copy(update={"steps": steps})))
        self.folder = Folder(str(root / name / "grpo"))
        self._command = [sys.executable, "-m", "raml_ray", "run", str(config)]
        self._said = root / f"{name}.log"
        self.start()

    def start(self) -> None:
        with self._said.open("a") as said:
            self.process = subprocess.Popen(self._command, stderr=said, cwd=ROOT)

    def ends(self, timeout: float = PROGRESS_S) -> int:
        """Its exit status."""
        return self.process.wait(timeout)

    def said(self) -> str:
        return self._said.read_text()

    def waited_for(self, what: str, is_there: Any) -> None:
        deadline = time.monotonic() + PROGRESS_S
        while not is_there():
            assert self.process.poll() is None, f"ended before {what}: {self.said()[-3000:]}"
            assert time.monotonic() < deadline, f"no {what} for {PROGRESS_S:g} s: {self.said()[-3000:]}"
            time.sleep(0.1)

    def befallen(self, fault: str) -> int:
        """The process that came by that fault, when one has."""
        marker = Path(self.folder.path, "drill", f"{fault}.json")
        self.waited_for(fault, lambda: marker.exists() and marker.read_text().endswith("}"))
        return int(json.loads(marker.read_text())["pid"])


def status_of(root: Path, name: str) -> str:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("raml")
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return str(max(runs, key=lambda run: run.info.start_time).info.status)


def kill_node_of(pid: int, cluster: Cluster) -> None:
    above = {process.pid for process in psutil.Process(pid).parents()}
    for node, raylet in zip(list(cluster.worker_nodes), raylets(cluster), strict=True):
        if raylet in above:
            cluster.remove_node(node, allow_graceful=False)
            add_node(cluster)
            return
    raise AssertionError(f"process {pid} is on no worker node")


def test_engine_pool_learners_node_and_driver_are_killed_and_the_losses_stay_the_same(
    nodes: Cluster, tmp_path: Path
) -> None:
    clean = Run(tmp_path, "clean", nodes.address)
    assert clean.ends() == 0, clean.said()[-3000:]
    shutil.copytree(tmp_path / "clean" / "base", tmp_path / "drill" / "base")

    began = time.monotonic()
    run = Run(tmp_path, "drill", nodes.address, drill__faults=PLAN)
    try:
        kill_node_of(run.befallen("learner-0-5-hang"), nodes)
        run.befallen("commit-1-6-kill9")
        run.process.terminate()  # while the learners start again: step 5 is the next that ends
        assert run.ends() == 143, run.said()[-3000:]
        saved = sorted(path.parent.name for path in Path(run.folder.path, "checkpoints").glob("*/COMMIT"))
        assert saved == ["step-00000004", "step-00000005"]
        assert (status_of(tmp_path, "grpo"), status_of(tmp_path, "drill")) == ("KILLED", "KILLED")

        run.start()
        run.befallen("learner-0-10-hang")
        run.process.kill()
        run.process.wait()
        run.start()
        assert run.ends() == 0, run.said()[-3000:]
    finally:
        run.process.kill()
    lives = [(life["from_step"], life["repeated_steps"]) for life in run.folder.read_json("restarts.json")]
    print(f"\n{len(lives)} restarts (from, repeated) {lives} in {time.monotonic() - began:.0f} s")
    # After the pool, a learner, a node, a learner amid its checkpoint; then SIGTERM, and at last the driver.
    assert lives == [(2, 0), (2, 1), (4, 0), (4, 2), (5, 0), (8, 1)]
    assert len(list(Path(run.folder.path, "drill").iterdir())) == len(PLAN.split())
    figures = run.folder.read_json("summary.json")["figures"]
    assert (figures["learner/restarts"], figures["learner/repeated_steps"]) == (6, 4)
    keys = ("step", "grpo/loss", "grpo/reward", "grpo/grad_norm", "grpo/response_tokens")
    undisturbed = [[row[key] for key in keys] for row in read_metrics(clean.folder)]
    assert [row[0] for row in undisturbed] == list(range(1, NUM_STEPS + 1))
    assert [[row[key] for key in keys] for row in read_metrics(run.folder)] == undisturbed
