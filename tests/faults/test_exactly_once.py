"""Engines, nodes and drivers are killed at random moments: every trajectory is there once, and is the one it would be."""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray.cluster_utils import Cluster

from raml_ray.config import Step
from raml_ray.stages.context import Context
from tests.faults.driving import Driver, add_node, engines, num_shards, raylets, rows
from tests.stages import contexts

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(480)]

STEP = Step(name="generate", stage="generate")
SEED = 2026
PROGRESS_S = 150.0
"""Within this a step that lost an engine, a node or its driver has to get on."""


def waited_for_shards(driver: Driver, context: Context, count: int) -> None:
    deadline = time.monotonic() + PROGRESS_S
    while num_shards(context) < count:
        assert driver.runs, "the driver has ended before its work was done"
        assert time.monotonic() < deadline, f"{num_shards(context)} shards, and none more for {PROGRESS_S:g} s"
        time.sleep(0.05)


def made(driver: Driver, timeout: float) -> dict[str, Any]:
    """The figures of a step that nothing befalls."""
    try:
        return driver.figures(timeout)
    finally:
        driver.end()


def working(cluster: Cluster) -> dict[Any, list[psutil.Process]]:
    """The nodes that have engines, each with its engines' processes. Waits until there is one."""
    deadline = time.monotonic() + PROGRESS_S
    while time.monotonic() < deadline:
        pids = zip(cluster.worker_nodes, raylets(cluster), strict=True)
        if found := {node: processes for node, pid in pids if (processes := engines(pid))}:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no engine for {PROGRESS_S:g} s")


def kill(kind: str, chance: random.Random, cluster: Cluster, driver: Driver) -> None:
    """One engine's process, one node that has engines (another takes its place), or the driver (it is started again)."""
    if kind == "driver":
        driver.kill_and_restart()
        return
    busy = working(cluster)
    node = chance.choice(sorted(busy, key=lambda node: str(node.node_id)))
    if kind == "engine":
        chance.choice(busy[node]).kill()
    else:
        cluster.remove_node(node, allow_graceful=False)
        add_node(cluster)


def test_kills_of_engines_nodes_and_drivers_lose_and_double_nothing(nodes: Cluster, tmp_path: Path) -> None:
    settings = {
        "data__path": "miniature:train",
        "data__limit": 60,
        "generate__shard_questions": 1,
        "generate__num_samples": 4,
        "generate__num_engines": 2,
        "engine__max_num_seqs": 8,
    }
    # In one folder each: a step has its policy beside its run.
    clean = contexts.context(tmp_path / "clean" / "run", STEP, **settings)
    disturbed = contexts.context(tmp_path / "disturbed" / "run", STEP, **settings)
    for context, seconds in ((clean, 0.0), (disturbed, 0.06)):
        script = {"seconds_per_step": seconds, "tokens": [4, 16]}
        (Path(context.policy_path) / "scripted.json").write_text(json.dumps(script))
    assert made(Driver(clean, nodes.address), timeout=180)["rows_out"] == 240

    # Until the last kill every life of an engine ends at 13 replies. It has four shards of four rows at once, so that
    # at least one of them gets whole; and the twelve lives that six kills can make at most do not get to the end.
    hold = Path(disturbed.policy_path) / "hold-13"
    hold.touch()
    chance, killed = random.Random(SEED), Counter[str]()
    kinds = ["engine", "node", "driver"] * 2
    chance.shuffle(kinds)
    began = time.monotonic()
    driver = Driver(disturbed, nodes.address)
    num_before = 0
    try:
        for kind in kinds:
            waited_for_shards(driver, disturbed, num_before + 1)
            time.sleep(2 * chance.random())
            num_before = num_shards(disturbed)
            kill(kind, chance, nodes, driver)
            killed[kind] += 1
        hold.unlink()
        figures = driver.figures(timeout=300)
    finally:
        driver.end()
    print(f"\nseed {SEED}: killed {dict(killed)} in {time.monotonic() - began:.0f} s; {figures}")
    assert killed == {"engine": 2, "node": 2, "driver": 2}
    assert (figures["rows_in"], figures["rows_out"], figures["rejected"]) == (240, 240, 0)
    assert rows(disturbed).equals(rows(clean))


def kill_working(kind: str, cluster: Cluster) -> int:
    """Ends all engines, or the nodes that have one (others take their place); how many engines it cost."""
    busy = working(cluster)
    for node, processes in busy.items():
        if kind == "engine":
            for process in processes:
                process.kill()
        else:
            cluster.remove_node(node, allow_graceful=False)
            add_node(cluster)
    return sum(map(len, busy.values()))


@pytest.mark.vllm
def test_vllm_engines_and_a_node_are_killed_and_the_trajectories_stay_the_same(nodes: Cluster, tmp_path: Path) -> None:
    settings = {
        "policy__path": contexts.policy(tmp_path / "vllm_policy", hidden_size=64),
        "engine__kind": "vllm",
        "engine__max_model_len": 250,
        "engine__max_num_seqs": 4,
        "engine__kv_cache_gib": 0.05,
        "data__path": "miniature:train",
        "data__limit": 24,
        "generate__shard_questions": 1,
        "generate__num_samples": 4,
        "generate__max_tokens": 200,
    }
    clean = contexts.context(tmp_path / "run", STEP, **settings)
    disturbed = contexts.context(tmp_path / "disturbed", STEP, **settings)
    assert made(Driver(clean, nodes.address), timeout=200)["rows_out"] == 96

    chance, killed = random.Random(SEED), Counter[str]()
    kinds = ["engine", "engine", "node"]
    chance.shuffle(kinds)
    driver = Driver(disturbed, nodes.address)
    try:
        # While its engine starts again nothing is made: what is late at one kill is there before the next is due.
        for place, kind in enumerate(kinds, start=1):
            waited_for_shards(driver, disturbed, 4 * place - chance.randrange(3))
            killed[kind] += kill_working(kind, nodes)
        figures = driver.figures(timeout=200)
    finally:
        driver.end()
    print(f"\nseed {SEED}: killed {dict(killed)}; {figures}")
    assert killed == {"engine": 2, "node": 1}
    # Its driver lived, and with it the ledger that counts.
    assert (figures["engine_failures"], figures["nodes_lost"]) == (2, 1)
    assert (figures["rows_in"], figures["rows_out"], figures["rejected"]) == (96, 96, 0)
    ours, theirs = rows(disturbed), rows(clean)
    assert ours.drop_columns(["logprobs"]).equals(theirs.drop_columns(["logprobs"]))
    # In other company the same sums are added up in another order.
    logprobs = [np.concatenate(table["logprobs"].to_pylist()) for table in (ours, theirs)]
    np.testing.assert_allclose(logprobs[0], logprobs[1], atol=1e-4)
