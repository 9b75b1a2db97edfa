"""A cluster that grows: Ray's own autoscaler, whose nodes are processes of this machine. Prints what was asked and came.

Started by test_growing, in a process of its own. Arguments: the head's address, HOST:PORT.
"""

import json
import sys

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from raml_ray.cluster import Need, check_fits
from raml_ray.config import ConfigError

LEARNERS, ENGINES = Need(2, 2, labels={"role": "learner"}), Need(1, 2, labels={"role": "engine"})
SOON_S, PATIENCE_S = 10.0, 300.0


def refused(asked: dict[str, Need], wait_s: float) -> str:
    try:
        check_fits(asked, wait_s)
    except ConfigError as error:
        return str(error)
    return ""


def main(address: str) -> None:
    ray.init(address, log_to_driver=False)
    asked = {"learners": LEARNERS, "engines": ENGINES}
    found: dict[str, object] = {"at once": refused(asked, 0), "waited for": refused(asked, PATIENCE_S)}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    found["nodes"] = sorted([node["Labels"].get("role", ""), node["Resources"].get("CPU", 0)] for node in nodes)
    found["too many"] = refused(asked | {"engines": ENGINES._replace(num=9)}, SOON_S)
    demands = get_cluster_status(address).resource_demands.cluster_constraint_demand
    found["still asked for"] = sum(len(demand.bundles_by_count) for demand in demands)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
