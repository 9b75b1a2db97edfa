"""Who gets in at the ports of a real cluster, and where its drivers run: a head without CPUs, and one node that has some."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.faults import hosts
from tests.faults.hosts import Host

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[1]
CANARY = "canary-hf-token-4711"
CPUS = 2
"""Of the node that is not the head."""


class Cluster(NamedTuple):
    head: Host
    node: Host
    address: str
    """The head's, for whoever joins."""
    client: str
    """The head's, for Ray's client."""
    dashboard: str
    environment: Mapping[str, str]

    def python(self, code: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """A program on another machine than the cluster's, with some variables changed; an empty one is not set."""
        environment = dict(self.environment) | changed
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={name: value for name, value in environment.items() if value},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )


def free_ports(number: int) -> list[int]:
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(one.getsockname()[1]) for one in found]
    for one in found:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_raylet_start_wait_time_s": "360",
        "HF_TOKEN": CANARY,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    port, dashboard, client = free_ports(3)
    names = [f"{name}-{os.getpid()}" for name in ("head", "node")]
    with (
        tempfile.TemporaryDirectory(prefix="raml", dir="/tmp") as folder,
        hosts.on_loopback(names, Path(folder)) as found,
    ):
        head, node = found.values()
        small = "--object-store-memory=80000000 --disable-usage-stats"
        ports = f"--port={port} --dashboard-port={dashboard} --ray-client-server-port={client}"
        head.run(f"ray start --head --num-cpus=0 {small} {head.ray_words} {ports}", environment, 400)
        node.run(
            f"ray start --address={head.address}:{port} --num-cpus={CPUS} {small} {node.ray_words}", environment, 400
        )
        yield Cluster(
            head,
            node,
            f"{head.address}:{port}",
            f"ray://{head.address}:{client}",
            f"http://127.0.0.1:{dashboard}",
            environment,
        )


def asked(url: str, token: str = "") -> tuple[int, str]:
    """HTTP status and text of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def told(cluster: Cluster, path: str) -> Any:
    """What the dashboard says, as JSON."""
    status, text = asked(f"{cluster.dashboard}{path}", cluster.environment["RAY_AUTH_TOKEN"])
    assert status == 200, text
    return json.loads(text)


def test_drivers_keep_off_a_head_without_cpus_even_when_every_cpu_is_taken(cluster: Cluster) -> None:
    nodes = {
        node["is_head_node"]: node["node_id"] for node in told(cluster, "/api/v0/nodes")["data"]["result"]["result"]
    }
    taking = f"actor = ray.remote(num_cpus={CPUS})(Taker).options(name='taker', lifetime='detached').remote()"
    taker = f"import ray\nclass Taker:\n    def there(self): return 'taken'\nray.init('{cluster.address}', namespace='taken')\n{taking}\n"
    assert cluster.python(f"{taker}print(ray.get(actor.there.remote()))").stdout == "taken\n"
    submit = f"python -m raml_ray submit --address {cluster.dashboard} run smoke root=/nowhere --dry-run"
    said = cluster.head.run(f"cd {ROOT} && {submit}", cluster.environment, 400).stdout
    assert "grpo_zero" in said, "the log of a driver on another node is followed"
    [job] = [job for job in told(cluster, "/api/jobs/") if job["submission_id"]]
    assert (job["status"], job["driver_node_id"]) == ("SUCCEEDED", nodes[False])


NO_TOKEN, WRONG_TOKEN = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}, {"RAY_AUTH_TOKEN": "0" * 32}


@pytest.mark.parametrize("changed", [NO_TOKEN, WRONG_TOKEN])
@pytest.mark.parametrize(
    ("door", "said"), [("address", "[Aa]uthentication"), ("client", "ConnectionError: ray client connection timeout")]
)
def test_who_joins_without_the_token_or_with_another_is_refused(
    cluster: Cluster, door: str, said: str, changed: dict[str, str], tmp_path: Path
) -> None:
    joins = f"import ray\nray.init({getattr(cluster, door)!r})\nprint('joined with', ray.cluster_resources()['CPU'])"
    done = cluster.python(joins, HOME=str(tmp_path), **changed)
    assert done.returncode != 0 and "joined" not in done.stdout
    assert re.search(said, done.stderr), done.stderr


@pytest.mark.parametrize("door", ["address", "client"])
def test_who_joins_with_the_token_is_let_in(cluster: Cluster, door: str, tmp_path: Path) -> None:
    joins = f"import ray\nray.init({getattr(cluster, door)!r})\nprint('joined with', ray.cluster_resources()['CPU'])"
    done = cluster.python(joins, HOME=str(tmp_path))
    assert f"joined with {CPUS:.1f}\n" in done.stdout, done.stderr


def test_every_nodes_agents_ask_for_the_token_and_its_metrics_do_not_and_hold_no_secret(cluster: Cluster) -> None:
    for host in (cluster.head, cluster.node):
        ports = dict(re.findall(r"--(\S+)-port=(\d+)", host.ray_words))
        agents = f"http://{host.address}:{ports['dashboard-agent-listen']}"
        assert asked(f"{agents}/api/job_agent/jobs/") == (401, "Unauthorized: Missing authentication token")
        assert asked(f"{agents}/api/job_agent/jobs/", "0" * 32)[0] == 403
        runtime = f"http://{host.address}:{ports['runtime-env-agent']}/get_or_create_runtime_env"
        assert asked(runtime)[0] == 401
        status, text = asked(f"http://{host.address}:{ports['metrics-export']}/metrics")
        assert status == 200 and "process_resident_memory_bytes" in text
        assert [secret for secret in (CANARY, cluster.environment["RAY_AUTH_TOKEN"]) if secret in text] == []
