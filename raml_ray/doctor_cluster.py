"""Does every node of a cluster have what a run needs, and do they have it alike? Every finding with its remedy."""

import http
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raml_ray import cluster, doctor, storage
from raml_ray.config import Config, ConfigError
from raml_ray.doctor import Finding
from raml_ray.provenance import code_digest, installed_package, versions
from raml_ray.storage import Folder

ANSWERS_S = 180.0
"""A node that is alive has started a worker and looked at itself by then; the sandbox' trial takes seconds."""
CONNECTS_S = 5.0
HEAD = "node:__internal_head__"
"""The resource by which Ray marks it."""


class Node:
    """A process on one node: looks around there, and lets the others try whether they reach it."""

    def __init__(self) -> None:
        self._open: socket.socket | None = None

    def findings(self) -> list[tuple[str, ...]]:
        """What a doctor finds on the host."""
        return [tuple(finding) for finding in doctor.of_host()]

    def versions(self) -> dict[str, str]:
        return versions()

    def code(self) -> tuple[str, str]:
        """Digests of the package as it is imported here, and as the host has it installed."""
        installed = installed_package()
        return code_digest(), code_digest(installed) if installed else "not installed"

    def gpus(self) -> int:
        """How many torch can use."""
        try:
            import torch
        except (ImportError, OSError):  # a finding of the host's
            return 0
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def auth_mode(self) -> str:
        return os.environ.get("RAY_AUTH_MODE", "")

    def listens(self) -> int:
        """A port that others may try: of those that the kernel gives out, as to gloo and NCCL."""
        self._open = socket.create_server(("", 0))
        return int(self._open.getsockname()[1])

    def unreached(self, others: Mapping[str, tuple[str, int]]) -> dict[str, str]:
        """Of the other nodes' addresses and ports those that could not be connected to, and why."""
        found = {}
        for name, address in others.items():
            try:
                socket.create_connection(address, timeout=CONNECTS_S).close()
            except OSError as error:
                found[name] = str(error)
        return found

    def answer_to_a_stranger(self, url: str) -> int | str:
        """What somebody without a token is told there: HTTP's status, or why there is none."""
        try:
            with urllib.request.urlopen(url, timeout=CONNECTS_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError as error:
            return str(error)


def examine(config: Config) -> Iterator[Finding]:
    """What is found on every node of the cluster, and between them."""
    with cluster.connected(config) as dashboard:
        alive = [node for node in ray.nodes() if node["Alive"]]
        names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in alive}
        yield Finding("ok", "nodes", ", ".join(f"{names[node['NodeID']]}: {_has(node)}" for node in alive))
        actors = {
            node_id: ray.remote(Node)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
            .remote()
            for node_id in names
        }
        try:
            yield from _of_hosts(names, _asked(actors, names, "findings"))
            yield _versions(names, _asked(actors, names, "versions"))
            yield _code(names, _asked(actors, names, "code"))
            counted = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in alive}
            yield _gpus(names, counted, _asked(actors, names, "gpus"))
            yield _reach(names, actors, {node["NodeID"]: node["NodeManagerAddress"] for node in alive})
            yield _modes(names, _asked(actors, names, "auth_mode"))
            url = f"http://{dashboard}/api/jobs/"  # which may be on the head's loopback alone
            head = next(node["NodeID"] for node in alive if HEAD in node["Resources"])
            asked = {head: actors[head].answer_to_a_stranger.remote(url)}
            yield _stranger(url, cluster.answers(asked, names, ANSWERS_S)[head])
        except RuntimeError as error:
            yield Finding("fail", "nodes", str(error), "then ask again: what comes after was not looked at")
        yield _root(config)


def _has(node: Mapping[str, Any]) -> str:
    resources = node["Resources"]
    return f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"


def _asked(actors: Mapping[str, Any], names: Mapping[str, str], what: str) -> dict[str, Any]:
    """Node id -> its answer."""
    asked = {node_id: getattr(actor, what).remote() for node_id, actor in actors.items()}
    return cluster.answers(asked, names, ANSWERS_S)


def _of_hosts(names: Mapping[str, str], found: Mapping[str, Sequence[tuple[str, ...]]]) -> Iterator[Finding]:
    """What was found on the hosts; what is the same on all of them once."""
    hosts: dict[tuple[str, ...], list[str]] = {}
    for node_id, findings in found.items():
        for finding in findings:
            hosts.setdefault(finding, []).append(names[node_id])
    for (level, what, said, remedy), where in hosts.items():
        place = "every node" if len(where) == len(found) else ", ".join(where)
        yield Finding(level, f"{place}: {what}", said, remedy)  # type: ignore[arg-type]


def _versions(names: Mapping[str, str], found: Mapping[str, Mapping[str, str]]) -> Finding:
    here = versions()
    other = [
        f"{names[node_id]} has {package} {theirs.get(package, 'not at all')}, not {here.get(package, 'at all')}"
        for node_id, theirs in found.items()
        for package in sorted(here.keys() | theirs.keys())
        if theirs.get(package) != here.get(package)
    ]
    if other:
        remedy = "one lock on every host: deploy/install.sh, from the same checkout"
        return Finding("fail", "versions", "; ".join(other), remedy)
    return Finding("ok", "versions", f"equal on {len(found)} nodes")


def _code(names: Mapping[str, str], found: Mapping[str, tuple[str, str]]) -> Finding:
    """`found`: node id -> `Node.code`. Under `raml submit` what is imported was sent along, and is one for all."""
    imported, installed = Node().code()
    other = [
        f"{names[one]} runs raml_ray {runs}, not {imported}" for one, (runs, _) in found.items() if runs != imported
    ]
    if other:
        remedy = "the same commit on every host, or `raml submit`, which sends the code along"
        return Finding("fail", "code", "; ".join(other), remedy)
    other = [f"{names[one]} has raml_ray {has}, not {installed}" for one, (_, has) in found.items() if has != installed]
    if other:
        remedy = "the same commit on every host: only runs that `raml submit` sends bring theirs"
        return Finding("warn", "code", "; ".join(other), remedy)
    return Finding("ok", "code", f"raml_ray {imported} on {len(found)} nodes; installed there: {installed}")


def _gpus(names: Mapping[str, str], counted: Mapping[str, int], found: Mapping[str, int]) -> Finding:
    """`counted` by Ray, which gives them out; `found` by torch, which uses them."""
    other = [
        f"{names[one]}: Ray counts {counted[one]}, torch can use {count}"
        for one, count in found.items()
        if count != counted[one]
    ]
    if any(count < counted[one] for one, count in found.items()):
        remedy = "deploy/install.sh gpu and a driver that torch's CUDA knows (nvidia-smi); or `ray start --num-gpus=N`"
        return Finding("fail", "GPUs", "; ".join(other), remedy)
    if other:
        return Finding("warn", "GPUs", "; ".join(other), "no step is given the others: `ray start --num-gpus=N`")
    return Finding("ok", "GPUs", f"{sum(counted.values())}, as many as torch can use")


def _reach(names: Mapping[str, str], actors: Mapping[str, Any], addresses: Mapping[str, str]) -> Finding:
    ports = _asked(actors, names, "listens")
    asked = {
        node_id: actor.unreached.remote(
            {other: (addresses[other], ports[other]) for other in actors if other != node_id}
        )
        for node_id, actor in actors.items()
    }
    tried = cluster.answers(asked, names, ANSWERS_S)
    cut = [f"{names[one]} -> {names[other]}: {why}" for one, found in tried.items() for other, why in found.items()]
    if cut:
        remedy = "open all TCP ports between the nodes (Ray's workers, gloo and NCCL take any of them)"
        return Finding("fail", "ports", "; ".join(cut), remedy)
    return Finding("ok", "ports", "every node reaches every other on a port of the kernel's choice")


def _modes(names: Mapping[str, str], found: Mapping[str, str]) -> Finding:
    open_ = [names[node_id] for node_id, mode in found.items() if mode != "token"]
    if open_:
        remedy = "export RAY_AUTH_MODE=token and the token before `ray start`, on every host"
        return Finding(
            "fail", "token", f"not asked for by {', '.join(open_)}: whoever reaches a port runs code", remedy
        )
    return Finding("ok", "token", f"RAY_AUTH_MODE=token on {len(found)} nodes")


def _stranger(url: str, answer: int | str) -> Finding:
    """`answer` is `Node.answer_to_a_stranger`."""
    if answer == http.HTTPStatus.OK:
        remedy = "export RAY_AUTH_MODE=token before `ray start --head`"
        return Finding("fail", "a stranger", f"is let in at {url}", remedy)
    if answer in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        return Finding("ok", "a stranger", f"without the token is turned away ({answer})")
    return Finding("warn", "a stranger", f"{url} answers {answer}", "jobs need the dashboard: is it running?")


def _root(config: Config) -> Finding:
    root = Folder(storage.absolute(config.root))
    if config.root == Config().root:
        what = "not looked at: whether the nodes share a storage is not known"
        return Finding("warn", "root", what, "add root=..., as the runs will have it")
    try:
        cluster.check_root(root)
    except (ConfigError, RuntimeError, OSError) as error:
        return Finding("fail", "root", str(error), "")
    return Finding("ok", "root", f"{root.path} is one folder for all nodes, and all may write")
