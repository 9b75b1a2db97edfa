"""A cluster of two nodes that judge, as processes of this machine: prints how many judges each node had.

Started by test_judging, in a process of its own: the tests' own Ray is another one.
Arguments: the folder of the trajectories, the folder for the verdicts.
"""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from raml_ray.settings import DataConfig, VerifyConfig
from raml_ray.stages import judging
from raml_ray.storage import Folder


class NamedJudge(judging.ShardJudge):
    """A judge that leaves a file with its process and node, and judges nothing before the other one has."""

    def __init__(self, folder: str, verify: dict[str, Any], data: dict[str, Any]) -> None:
        super().__init__(folder, verify, data)
        self._marks = Path(folder, "judges")
        self._marks.mkdir(parents=True, exist_ok=True)
        (self._marks / f"{os.getpid()}-{ray.get_runtime_context().get_node_id()}").touch()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        deadline = time.monotonic() + 60
        while len(os.listdir(self._marks)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().__call__(batch)


def main(source: Folder, target: Folder) -> None:
    memory = 80 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": memory},
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=4, object_store_memory=memory)  # each has room for both judges
        ray.init(cluster.address, log_to_driver=False)
        judging.ShardJudge = NamedJudge  # type: ignore[misc]
        judging.judge("verify", target, [source], VerifyConfig(num_workers=1), DataConfig())
        marks = os.listdir(Path((target / judging.VERDICTS).path, "judges"))
        print(json.dumps(Counter(name.partition("-")[2] for name in marks)))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*map(Folder, sys.argv[1:]))
