"""Nodes that can be killed."""

import socket
import tempfile
from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster

from tests.faults.driving import add_node


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head that runs no engines and two nodes that do, as one machine's processes."""
    # A dead node is noticed after five seconds; one that is merely slow may take its time.
    health = {
        "health_check_initial_delay_ms": 5000,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 30_000,
        "agent_register_timeout_ms": 600_000,
    }
    with tempfile.TemporaryDirectory(prefix="raml", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "gcs_server_port": free_port(),
                "include_dashboard": False,
                "temp_dir": folder,
                "object_store_memory": 80 * 2**20,
                "_system_config": health,
            },
        )
        for _ in range(2):
            add_node(cluster)
        yield cluster
        cluster.shutdown()
