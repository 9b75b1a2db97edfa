"""A cluster that grows is asked for what a step needs, before the step is refused."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.faults import hosts
from tests.test_reach import free_ports

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[1]
HEAD_ID = "f" * 51 + "00000"
"""By which the provider of nodes on this machine knows the head."""


def autoscaling(gcs_address: str) -> dict[str, object]:
    """Of Ray's launcher: no node but the head at first, at most two of each role."""
    kinds = {
        role: {"resources": {"CPU": 2, "object_store_memory": 80_000_000}, "labels": {"role": role}}
        | {"node_config": {}}
        for role in ("learner", "engine")
    }
    nodes = {kind: words | {"min_workers": 0, "max_workers": 2} for kind, words in kinds.items()}
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return {
        "cluster_name": "growing",
        "max_workers": 4,
        "provider": {
            "type": "external",
            "module": provider,
            "gcs_address": gcs_address,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": nodes | {"ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0}},
        "head_node_type": "ray.head.default",
        # Of a launcher that reaches machines by ssh; none is reached here.
        **{
            name: []
            for name in ("setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files")
        },
    }


def test_nodes_that_a_step_needs_are_asked_for_and_what_no_node_can_give_is_refused_by_name(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "disabled",  # loopback only
        "RAY_raylet_start_wait_time_s": "360",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    of_head = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    port, dashboard, client = free_ports(3)
    name = f"growing-{os.getpid()}"
    with hosts.on_loopback([name], tmp_path) as found:
        head = found[name]
        address = f"{head.address}:{port}"
        (tmp_path / "growing.json").write_text(json.dumps(autoscaling(address)))
        words = f"--num-cpus=0 --object-store-memory=80000000 --disable-usage-stats {head.ray_words} --port={port}"
        words += f" --dashboard-port={dashboard} --ray-client-server-port={client}"
        head.run(
            f"ray start --head --autoscaling-config={tmp_path / 'growing.json'} {words}", environment | of_head, 400
        )
        said = head.run(f"{sys.executable} {ROOT / 'tests' / 'growing_cluster.py'} {address}", environment, 900).stdout
    told = json.loads(said.splitlines()[-1])
    print(json.dumps(told, indent=1))
    assert told["at once"].startswith("6 logical CPUs are asked, 4 (learners) + 2 (engines), but Ray has 0:")
    assert told["waited for"] == ""
    assert told["nodes"] == [["", 0], ["engine", 2], ["learner", 2], ["learner", 2]]
    assert "4 (learners) + 18 (engines), but Ray has" in told["too many"]
    assert "after cluster.wait_for_resources_s=10" in told["too many"]
    assert told["still asked for"] == 0, "nodes that nobody needs would stay"
