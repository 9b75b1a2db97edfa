"""The README's cluster on hosts of their own: followed line by line from a clone, with a token, losing a host in a run.

Words are added to its lines where one machine plays several hosts: how many CPUs each says that it has, and where
engines and learners go. `make setup` is left out: the clone borrows the environment that runs the tests.
Needs `apt-get install openssh-server`.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults import hosts
from tests.faults.hosts import Host, waited_for

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^## On a cluster\n(.*?)^## ", re.M | re.S)
LINE = re.compile(r"^    (\S.*?) +# (.+)$", re.M)
EVERYWHERE, HEAD, OTHERS, ANYWHERE = "in every shell", "on the first host, HEAD", "on every other host", "from anywhere"
ON_ONE_MACHINE = {
    HEAD: "--num-cpus=0 --object-store-memory=100000000",
    OTHERS: "--num-cpus=4 --object-store-memory=100000000",
}
SPREAD = (
    "generate.num_engines=2 grpo.num_engines=2 engine.cpus_per_engine=1 evaluate.num_engines=2"
    " train.num_workers=2 train.cpus_per_worker=1 train.placement=spread train.checkpoint_every=1"
    " grpo.num_steps=4 base.num_steps=3 generate.shard_questions=1 generate.num_samples=256"
    ' evaluate.sets=\'{"in_domain":"miniature:in_domain"}\''
)
DEATH_IS_SEEN = {"period_ms": "1000", "timeout_ms": "5000", "failure_threshold": "3"}
"""Of a host that falls silent, after some 20 s; Ray's own values take a minute."""
PATIENCE_S = 600.0
ON_LOOPBACK = "RAML_HOSTS_ON_LOOPBACK"
"""Set, it has the test do without namespaces where there are some."""


def lines_of_readme() -> dict[str, list[str]]:
    """Where -> the commands of the README's section that are to be given there, in order."""
    section = SECTION.search((ROOT / "README.md").read_text())
    assert section
    found: dict[str, list[str]] = {EVERYWHERE: [], HEAD: [], OTHERS: [], ANYWHERE: []}
    for command, where in LINE.findall(section[1]):
        if where in found:  # the others are for clusters of other kinds
            found[where].append(command)
    assert [len(lines) for lines in found.values()] == [1, 1, 1, 4]
    return found


class Cluster(NamedTuple):
    """The hosts after the README's first lines, and its lines for a machine that is none of them."""

    head: Host
    others: list[Host]
    laptop: Host
    clone: Path
    environment: Mapping[str, str]
    root: Path
    tunnel: int
    """The port of the laptop's loopback that leads to the head's dashboard."""

    def given(self, command: str, more: str = "") -> str:
        """A line of the README as it is typed in the clone."""
        everywhere = lines_of_readme()[EVERYWHERE][0].replace("TOKEN=TOKEN", "TOKEN=$GIVEN_TOKEN")
        command = command.replace("-L 8265:127.0.0.1:8265", f"-L {self.tunnel}:127.0.0.1:{self.head.dashboard_port}")
        command = command.replace("127.0.0.1:8265", f"127.0.0.1:{self.tunnel}")
        command = command.replace("HEAD", self.head.address).replace("/shared/runs", str(self.root))
        return f"cd {self.clone} && {everywhere} && {command} {more}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    why, made = hosts.missing(), hosts.behind_one_switch
    if why or os.environ.get(ON_LOOPBACK):
        made = hosts.on_loopback
        print(f"\nno network namespaces ({why or ON_LOOPBACK}): hosts are processes on 127.0.0.x, and being cut off is")
        print("standing still; for namespaces run as root with CAP_SYS_ADMIN, and with iproute2 installed")
    folder = tmp_path_factory.mktemp("hosts")
    clone, lines = folder / "clone", lines_of_readme()
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    environment |= {f"RAY_health_check_{name}": value for name, value in DEATH_IS_SEEN.items()}
    environment |= {"PYTHONPATH": str(clone), "GIVEN_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "RAY_raylet_start_wait_time_s": "180"}
    with made(["head", "one", "two", "laptop"], folder) as found:
        head, *others, laptop = found.values()
        root = folder / "runs"
        root.mkdir()
        tunnel = laptop.dashboard_port if laptop.link else head.dashboard_port + 1
        there = Cluster(head, others, laptop, clone, environment, root, tunnel)
        head.run(there.given(lines[HEAD][0], f"{ON_ONE_MACHINE[HEAD]} {head.ray_words}"), environment, 300)
        for host in others:
            host.run(there.given(lines[OTHERS][0], f"{ON_ONE_MACHINE[OTHERS]} {host.ray_words}"), environment, 300)
        words = hosts.open_to_ssh(head, folder)
        tunnel_line = there.given(lines[ANYWHERE][0]).replace("ssh ", f"ssh {words} ")
        assert laptop.start(tunnel_line, environment, folder / "ssh.log").wait(60) == 0, (
            folder / "ssh.log"
        ).read_text()
        yield there


def answer(cluster: Cluster, address: str, port: int) -> str:
    """What the laptop is told there without a token: HTTP's status, or the name of what went wrong."""
    asks = f"import urllib.request as r, urllib.error as e\ntry: r.urlopen('http://{address}:{port}/api/jobs/', timeout=10)"
    asks += "\nexcept e.HTTPError as no: print(no.code)"
    asks += "\nexcept OSError as no: print(type(getattr(no, 'reason', no)).__name__)"
    return cluster.laptop.run(f'{sys.executable} -c "{asks}"', cluster.environment, 60).stdout.strip()


def address_of_the_driver(cluster: Cluster) -> str:
    """Of the host that runs the run's own process, as the laptop is told: one of those that have CPUs."""
    asks = "from ray.job_submission import JobSubmissionClient as C;"
    asks += f" jobs = C('http://127.0.0.1:{cluster.tunnel}').list_jobs();"
    asks += " print('driver on', *(job.driver_info.node_ip_address for job in jobs if job.status == 'RUNNING'))"
    said = cluster.laptop.run(cluster.given(f'{sys.executable} -c "{asks}"'), cluster.environment, 120).stdout
    (found,) = re.findall(r"^driver on (\S+)$", said, re.M)
    return str(found)


def test_a_request_without_the_token_is_refused_and_one_beside_the_tunnel_too(cluster: Cluster) -> None:
    assert answer(cluster, "127.0.0.1", cluster.tunnel) == "401"
    assert answer(cluster, cluster.head.address, cluster.head.dashboard_port) == "ConnectionRefusedError"


def test_the_doctor_finds_every_host_sound_and_a_root_that_one_does_not_see(cluster: Cluster) -> None:
    if not cluster.others[1].link:
        pytest.skip("on 127.0.0.x all hosts see one disk: a root that one does not see needs namespaces")
    _, doctor, submit, _ = lines_of_readme()[ANYWHERE]
    said = cluster.laptop.run(cluster.given(doctor), cluster.environment, 300).stdout
    print(f"\n{said}")
    for found in (
        "versions: equal on 3 nodes",
        "ports: every node reaches",
        "token: RAY_AUTH_MODE=token on 3 nodes",
        "every node: shared memory: ",
        "GPUs: 0, as many as torch can use",
    ):
        assert f"ok   {found}" in said
    assert "ok   code: raml_ray " in said
    assert "a stranger: without the token is turned away (401)" in said
    assert f"ok   root: {cluster.root} is one folder for all nodes" in said
    cluster.others[1].hide(cluster.root)
    try:
        for line in (doctor, submit):
            with pytest.raises(AssertionError, match="is not the same folder on every node") as refused:
                cluster.laptop.run(cluster.given(line), cluster.environment, 300)
            # Those that do not see what the driver wrote, which is on one of those that have CPUs.
            named = set(re.findall(r"(\w+): FileNotFoundError", str(refused.value)))
            assert named in ({"two"}, {"head", "one"}), refused.value
        assert list(cluster.root.glob("smoke/*/config.json")) == [], "a step has begun"
    finally:
        cluster.others[1].show(cluster.root)


def test_a_run_whose_follower_is_cut_off_and_which_loses_a_host_is_completed(cluster: Cluster) -> None:
    *_, submit, status = lines_of_readme()[ANYWHERE]
    said, run = cluster.root.parent / "submit.log", cluster.root / "smoke"
    began = time.monotonic()
    follower = cluster.laptop.start(cluster.given(submit, SPREAD), cluster.environment, said)

    def waited(what: str, file: str) -> None:
        def is_there() -> bool:
            assert follower.poll() is None, said.read_text()[-5000:]
            return (run / file).exists()

        waited_for(what, is_there, PATIENCE_S)

    waited("generation", "generate/config.json")
    cluster.laptop.unplug()
    waited("verdicts, of a run that nobody follows", "verify/summary.json")
    cluster.laptop.plug()
    # The tunnel's TCP waits twice as long before each try, up to two minutes: a follower does, too, a command asks once.
    waited_for("tunnel", lambda: answer(cluster, "127.0.0.1", cluster.tunnel) == "401", 180)
    table = cluster.laptop.run(cluster.given(status), cluster.environment, 300).stdout
    assert re.search(r"^generate +generate +finished", table, re.M), table
    waited("first version", "grpo_zero/metrics.jsonl")
    driver = address_of_the_driver(cluster)
    (lost,) = [host for host in cluster.others if host.address != driver]
    lost.unplug()
    cut = time.monotonic()
    assert follower.wait(PATIENCE_S) == 0, said.read_text()[-5000:]
    print(f"\nthe run took {time.monotonic() - began:.0f} s, {time.monotonic() - cut:.0f} of them with one host less")

    figures = {path.parent.name: json.loads(path.read_text())["figures"] for path in run.glob("*/summary.json")}
    steps = [line.split()[0] for line in table.splitlines()]
    assert sorted(figures) == sorted(steps)
    assert len(figures["generate"]["engine_nodes"]) == 2
    assert len(set(figures["sft"]["learner_nodes"])) == 2
    assert figures["grpo_zero"]["learner/restarts"] >= 1
    survivors = {node for name in ("grpo_cold", "evaluate_base") for node in figures[name]["engine_nodes"]}
    assert len(survivors) == 1 and survivors < set(figures["generate"]["engine_nodes"])
    log = said.read_text()
    assert {step: log.count(f" {step}: done in ") for step in steps} == dict.fromkeys(steps, 1), "each line once"
    token = cluster.environment["GIVEN_TOKEN"].encode()
    holders = [path for path in (said, *run.rglob("*")) if path.is_file() and token in path.read_bytes()]
    assert holders == [], "the token stands in a file of the run"
