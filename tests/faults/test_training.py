"""GRPO with two learners that everything befalls: the losses are those of an undisturbed run."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from raml_ray.config import Config, Step, dump, override
from raml_ray.metrics_file import read_metrics
from raml_ray.miniature import base, tokenizer
from raml_ray.settings import BaseConfig
from raml_ray.storage import Folder
from raml_ray.workers import fresh
from tests.faults.driving import ROOT, add_node, raylets

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(2400)]

NUM_STEPS, EVERY = 10, 2
PROGRESS_S = 600.0
PLAN = "engine:0:2:kill9 pool:0:3:kill9 learner:1:4:kill9 learner:0:5:hang commit:1:6:kill9 learner:0:10:hang"
"""The two that hang are found by the test, which then kills the node of the one and the driver of the other."""


def prepared(folder: Path) -> dict[str, object]:
    """Questions whose answer is a digit, a policy, and settings that need no model to answer.

    The last digit of a scripted response is its answer: one in ten is right, and the learners have something to learn.
    """
    words = tokenizer.build()
    model = fresh.model(BaseConfig(hidden_size=32, num_layers=1, num_heads=1, intermediate_size=32), words, seed=0)
    base.save(model, words, str(folder / "policy"))
    rows = [{"problem": f"Sum: {n} 2 3", "answer": str(n + 5)} for n in range(5)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "root": str(folder),
        "policy.path": str(folder / "policy"),
        "data.path": str(folder / "questions.jsonl"),
        "engine.kind": "scripted",
        "engine.max_model_len": 64,
        "verify.num_workers": 1,
        "verify.answer_pattern": r"(\d)",
        "train.num_workers": 2,
        "train.checkpoint_every": EVERY,
        "train.max_failures": 10,
        "train.start_timeout_s": PROGRESS_S,
        "cluster.stop_timeout_s": PROGRESS_S,
        "tracking.enabled": False,
        "grpo.num_steps": NUM_STEPS,
        "grpo.questions_per_step": 2,
        "grpo.num_trajectories": 16,
        "grpo.num_updated": 16,
        "grpo.max_tokens": 24,
    }


class Run:
    """`raml run` in a process of its own, on the nodes of a cluster."""

    def __init__(self, settings: dict[str, object], name: str, address: str, **changes: object) -> None:
        named = {key.replace("__", "."): value for key, value in changes.items()}
        config = override(
            Config(name=name, steps=(Step(name="grpo", stage="grpo"),)), settings | named | {"cluster.address": address}
        )
        root = Path(config.root)
        (root / f"{name}.json").write_text(dump(config))
        self.folder = Folder(str(root / name / "grpo"))
        self._command = [sys.executable, "-m", "raml_ray", "run", str(root / f"{name}.json")]
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
    settings = prepared(tmp_path)
    clean = Run(settings, "clean", nodes.address)
    assert clean.ends() == 0, clean.said()[-3000:]

    began = time.monotonic()
    run = Run(settings, "drill", nodes.address, drill__faults=PLAN)
    try:
        kill_node_of(run.befallen("learner-0-5-hang"), nodes)
        run.befallen("commit-1-6-kill9")
        run.process.terminate()  # while the learners start again: step 5 is the next that ends
        assert run.ends() == 143, run.said()[-3000:]
        saved = sorted(path.parent.name for path in Path(run.folder.path, "checkpoints").glob("*/COMMIT"))
        assert saved == ["step-00000004", "step-00000005"]
        assert not run.folder.exists("failure.txt")

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
    assert sum(row[3] > 0 for row in undisturbed) >= NUM_STEPS / 2  # there was something to learn
    assert [[row[key] for key in keys] for row in read_metrics(run.folder)] == undisturbed
