"""Hosts on one machine: each has its own network address, host name, processes, shared memory and /tmp/ray.

They are Linux namespaces behind one bridge. What lies on the disk they share, as over NFS, but for what `hide` takes away.
Where namespaces are not to be had, hosts are processes that listen on 127.0.0.x: one that is cut off stands still.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NETWORK = "10.77.0"
SHARED_MEMORY = "2g"
FIRST_PORT = 21_000
"""Of Ray's on loopback: below those that the kernel gives to outgoing connections."""
UNSHARE = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]


@dataclass(slots=True)
class Host:
    """One of them, and what is to be put before a command that runs there."""

    name: str
    address: str
    enter: list[str]
    link: list[str] = field(default_factory=list)
    """The command that, with `up` or `down` behind it, plugs its cable in or pulls it; empty if it has none."""
    ray_words: str = ""
    """Put behind `ray start` there."""
    dashboard_port: int = 8265
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, command: str, environment: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
        """A shell command, to its end. Raises: AssertionError with what it said if it fails."""
        done = subprocess.run(
            self._words(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{self.name}: {command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done

    def start(self, command: str, environment: Mapping[str, str], said: Path) -> subprocess.Popen[str]:
        """A shell command in the background; what it says goes to a file."""
        with said.open("a") as file:
            process = subprocess.Popen(
                self._words(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.processes.append(process)
        return process

    def _words(self, command: str) -> list[str]:
        return [*self.enter, "bash", "-c", command]

    def unplug(self) -> None:
        """Nothing comes in or goes out any more, and nobody is told: what runs there runs on."""
        self._cable("down", signal.SIGSTOP)

    def plug(self) -> None:
        self._cable("up", signal.SIGCONT)

    def _cable(self, state: str, instead: signal.Signals) -> None:
        if self.link:
            _done([*self.link, state])
        else:
            _tell(self.name, instead)

    def hide(self, folder: Path) -> None:
        """The host sees an empty folder of its own there."""
        _done([*self.enter, "mount", "-t", "tmpfs", "tmpfs", str(folder)])

    def show(self, folder: Path) -> None:
        """Undoes `hide`."""
        _done([*self.enter, "umount", str(folder)])


def missing() -> str:
    """Why there can be no namespaces here; empty if there can."""
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", "ip link add name b type bridge && mount -t tmpfs tmpfs /mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() if done.returncode else ""


@contextlib.contextmanager
def behind_one_switch(names: Sequence[str], folder: Path) -> Iterator[dict[str, Host]]:
    """Hosts of these names. `folder` takes what they read in place of /etc/hosts and /etc/resolv.conf."""
    addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, 1)}
    known, nameservers = folder / "hosts", folder / "resolv.conf"
    known.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items()))
    nameservers.write_text("")
    Path("/tmp/ray").mkdir(exist_ok=True)
    keepers: list[subprocess.Popen[bytes]] = []
    try:
        switch = _namespaces(
            "ip link set lo up && ip link add name switch type bridge && ip link set switch up", keepers
        )
        hosts = {}
        for name, address in addresses.items():
            mounts = f"mount --bind {known} /etc/hosts && mount --bind {nameservers} /etc/resolv.conf"
            mounts += f" && mount -t tmpfs -o size={SHARED_MEMORY} tmpfs /dev/shm && mount -t tmpfs tmpfs /tmp/ray"
            inside = _namespaces(f"hostname {name} && ip link set lo up && {mounts}", keepers)
            on_switch = ["nsenter", f"--net=/proc/{switch}/ns/net"]
            _done([*on_switch, *f"ip link add to-{name} type veth peer name eth0 netns {inside}".split()])
            _done([*on_switch, *f"ip link set to-{name} master switch up".split()])
            for words in (
                f"addr add {address}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {NETWORK}.254",
            ):
                _done([*_enter(inside), "ip", *words.split()])
            hosts[name] = Host(name, address, _enter(inside), [*on_switch, "ip", "link", "set", f"to-{name}"])
        yield hosts
    finally:
        for keeper in keepers:  # all that runs inside goes with it
            keeper.kill()
            keeper.wait()


MARK = "RAML_TEST_HOST"
"""Environment variable of a host's processes, where nothing else sets them apart."""


@contextlib.contextmanager
def on_loopback(names: Sequence[str], _folder: Path) -> Iterator[dict[str, Host]]:
    """Hosts of these names that share this machine's network, disk, memory and host name."""
    # Ray's sockets lie there, whose paths may have 107 characters.
    short = tempfile.TemporaryDirectory(prefix="raml", dir="/tmp", ignore_cleanup_errors=True)
    hosts = {}
    for number, name in enumerate(names, 2):
        address, agents = f"127.0.0.{number}", FIRST_PORT + 10 * number
        words = f"--node-ip-address={address} --dashboard-agent-listen-port={agents}"
        words += f" --dashboard-agent-grpc-port={agents + 1} --metrics-export-port={agents + 2}"
        words += (
            f" --runtime-env-agent-port={agents + 3} --temp-dir={short.name}"  # one: each node's agent reads logs there
        )
        hosts[name] = Host(name, address, ["env", f"{MARK}={name}"], ray_words=words)
    # Ray's own port may be that of another Ray of this machine.
    head = hosts[names[0]]
    head.dashboard_port = FIRST_PORT + 4
    head.ray_words += f" --dashboard-port={head.dashboard_port}"
    try:
        yield hosts
    finally:
        for name in names:
            _tell(name, signal.SIGKILL)
        for number, _ in enumerate(names, 2):
            _wait_free(FIRST_PORT + 10 * number + 1)
        short.cleanup()


def _wait_free(port: int) -> None:
    """Until nobody listens there, whose end was asked for. Raises: AssertionError after half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return
        time.sleep(0.5)
    raise AssertionError(f"somebody listens at port {port}")


def _tell(name: str, what: signal.Signals) -> None:
    """A signal to every process of a host on loopback. Ray's agents have titles over their environments: they are found as
    children of those that have not."""
    told: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == name:
                told |= {process, *process.children(recursive=True)}
    for process in told:
        with contextlib.suppress(psutil.Error):
            process.send_signal(what)


def open_to_ssh(host: Host, folder: Path) -> str:
    """Has a server of ssh run there for a key that is made in the folder; the words that a client needs beside the address."""
    for name in ("server", "client"):
        _done(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)])
    port = 22 if host.link else host.dashboard_port + 2
    options = [
        "UsePAM=no",
        "StrictModes=no",
        f"AuthorizedKeysFile={folder}/client.pub",
        f"ListenAddress={host.address}",
    ]
    words = shlex.join(word for option in options for word in ("-o", option))
    said = folder / "sshd.log"
    serve = f"mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e -f /dev/null -p {port} -h {folder}/server {words}"
    server = host.start(serve, {"PATH": os.environ["PATH"]}, said)

    def listens() -> bool:
        assert server.poll() is None, f"no ssh on {host.name} (package openssh-server?): {said.read_text()}"
        return "listening on" in said.read_text()

    waited_for("ssh", listens, 30)
    return f"-p {port} -i {folder}/client -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"


def _namespaces(prepare: str, keepers: list[subprocess.Popen[bytes]]) -> int:
    """New namespaces in which the command has been run; the process that is number one in them, by its id out here."""
    command = [*UNSHARE, "sh", "-c", f"{prepare} && echo ready && exec sleep infinity"]
    keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    keepers.append(keeper)
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == b"ready\n", f"not prepared: {prepare}"
    return int(Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()[0])


def _enter(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--net", "--mount", "--uts", "--pid"]


def _done(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"


def waited_for(what: str, is_there: object, timeout: float) -> None:
    """Returns when the function says so. Raises: AssertionError after so many seconds."""
    assert callable(is_there)
    deadline = time.monotonic() + timeout
    while not is_there():
        assert time.monotonic() < deadline, f"no {what} within {timeout:g} s"
        time.sleep(0.2)
