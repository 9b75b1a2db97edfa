"""Connecting to Ray, and whether what a step needs is there at all."""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ray
import ray.data
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from raml_ray.config import Config, ConfigError
from raml_ray.storage import Folder, is_url

logger = logging.getLogger(__name__)

ANYWHERE = PlacementGroupSchedulingStrategy(None)
"""For tasks that ask for CPUs or GPUs: in a trial of a sweep Ray would put them into the trial's own placement group, which
holds next to nothing, and refuse them."""
# A learner and an engine alternate in GRPO; each holds a logical CPU for as long as it lives.
FEWEST_CPUS = 3
NODE_ANSWERS_S = 120.0
"""A node that is alive has started a worker and looked into a folder by then."""
ADDRESS = "RAY_ADDRESS"
ASK_AGAIN_S = 2.0
UPLOADED = "/working_dir_files/_ray_pkg_"
"""Part of the path of Ray's copy of a job's working directory."""


@contextlib.contextmanager
def connected(config: Config) -> Iterator[str]:
    """Ray, for the block: the job's cluster under `ray job submit`, else `cluster.address`.

    Gives where its dashboard is, `HOST:PORT`; empty if it has none, or others have connected before.
    """
    if ray.is_initialized():
        yield ""
        return
    address = os.environ.get(ADDRESS) or config.cluster.address
    if address == "local":
        num_cpus = config.cluster.num_cpus or max(os.cpu_count() or 1, FEWEST_CPUS)
        ray_there = ray.init(
            "local",
            num_cpus=num_cpus,
            object_store_memory=config.cluster.object_store_mib * 2**20,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        logger.info("Ray on this machine: %d logical CPUs", num_cpus)
    else:
        ray_there = ray.init(address, logging_level=logging.WARNING, log_to_driver=False)
        logger.info("Ray at %s: %s", address, {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")})
    # One line per event is ours to write.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield str(ray_there.address_info["webui_url"] or "")
    finally:
        ray.shutdown()


@contextlib.contextmanager
def told_in_environment() -> Iterator[None]:
    """RAY_ADDRESS is that of the cluster that this process is connected to, for the block."""
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        if before is not None:
            os.environ[ADDRESS] = before


class Need(NamedTuple):
    """What so many processes ask for each, on nodes that carry the labels (of none: on any node)."""

    num: int
    cpus: float
    gpus: float = 0
    labels: Mapping[str, str] = {}

    def total(self, resource: str) -> float:
        """Logical CPUs, or GPUs, of all of them."""
        return self.num * {"CPU": self.cpus, "GPU": self.gpus}[resource]


Asked = Mapping[str, Need]
"""Who -> need."""


def fits(asked: Sequence[Asked]) -> bool:
    """Whether the cluster as it is holds all of them together."""
    return not _lacking({f"{index}: {who}": need for index, each in enumerate(asked) for who, need in each.items()})


def check_fits(asked: Asked, wait_s: float) -> None:
    """Refuse what can never be scheduled, before any actor starts.

    For `wait_s` seconds, of cluster.wait_for_resources_s, a cluster that grows is asked for what it has not yet.

    Raises: ConfigError that adds up who wants what and says what there is.
    """
    lacking = _lacking(asked)
    if lacking and wait_s:
        logger.info("waiting up to %g s for nodes: %s", wait_s, lacking)
        lacking = _grown(asked, wait_s)
    if lacking:
        waited = f", after cluster.wait_for_resources_s={wait_s:g}" if wait_s else ""
        raise ConfigError(
            f"{lacking}{waited}: lower these settings, raise cluster.num_cpus, or join a larger cluster; one that grows is"
            " waited for with cluster.wait_for_resources_s"
        )


def _lacking(asked: Mapping[str, Need]) -> str:
    """What the cluster, or its nodes of some labels, have less of than is asked of them; empty if nothing."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for labels in ({}, *(need.labels for need in asked.values() if need.labels)):
        bound = {who: need for who, need in asked.items() if labels.items() <= need.labels.items()}
        there = [node["Resources"] for node in nodes if labels.items() <= node["Labels"].items()]
        for resource in ("CPU", "GPU"):
            total, found = sum(need.total(resource) for need in bound.values()), sum(r.get(resource, 0) for r in there)
            if total > found:
                parts = " + ".join(f"{n.total(resource):g} ({who})" for who, n in bound.items() if n.total(resource))
                words = " ".join(f"{key}={value}" for key, value in labels.items())
                where = f" on nodes that carry {words} (there are: {_carried(nodes)})" if labels else ""
                return f"{total:g} logical {resource}s are asked, {parts}, but Ray has {found:g}{where}"
    return ""


def _carried(nodes: Sequence[Mapping[str, Any]]) -> str:
    """The labels that somebody gave to nodes with `ray start --labels`, or in a group of pods."""
    found = {f"{key}={value}" for node in nodes for key, value in node["Labels"].items() if "ray.io/" not in key}
    return ", ".join(sorted(found)) or "none"


def _grown(asked: Mapping[str, Need], wait_s: float) -> str:
    """What is lacking still when the autoscaler, if there is one, has been asked for it that long."""
    # One entry per process: an autoscaler looks for nodes that hold them.
    each = [need for need in asked.values() for _ in range(need.num)]
    bundles = [{"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {}) for need in each]
    deadline = time.monotonic() + wait_s
    try:
        while (lacking := _lacking(asked)) and time.monotonic() < deadline:
            # Again and again: a request stands until the next one, and Ray Data makes some.
            request_resources(bundles=bundles, bundle_label_selectors=[dict(need.labels) for need in each])
            time.sleep(ASK_AGAIN_S)
    finally:
        request_resources(bundles=[])  # else the nodes would never be given back
    return lacking


class Patience(NamedTuple):
    """How long something may take, and what to raise if that is too short: `Patience(900, "engine.…=900")`."""

    seconds: float
    setting: str


def answer(asked: ray.ObjectRef, who: str, patience: Patience) -> Any:
    """What a task returns. `who` is the task, for people.

    Raises: TimeoutError that names it if it has not ended by then, after it was cancelled; what it raised.
    """
    _, late = ray.wait([asked], timeout=patience.seconds)
    if late:
        ray.cancel(asked, force=True)
        raise TimeoutError(
            f"{who} has not ended within {patience.seconds:g} s: it hangs or cannot start, or {patience.setting} is too short"
        )
    return ray.get(asked)


def host_bytes(num_workers: int, cpus_per_worker: int) -> int:
    """Memory that Ray has for one of so many workers, on the node where it has most: as many are put on one node as its
    CPUs take."""
    shares = [
        resources.get("memory", 0) / min(num_workers, max(1, int(resources.get("CPU", 0) // cpus_per_worker)))
        for resources in (node["Resources"] for node in ray.nodes() if node["Alive"])
    ]
    return int(max(shares, default=0))


def gpu_bytes(gpus: float, timeout_s: float) -> int:
    """Memory of a GPU of the cluster, as a process that is given one, or a part of one, finds it.

    Raises: TimeoutError if none came free.
    """
    asked = ray.remote(_gpu_bytes).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=ANYWHERE).remote()
    patience = Patience(timeout_s, f"train.start_timeout_s={timeout_s:g}")
    return int(answer(asked, "looking at a GPU's memory, for which one must come free,", patience))


def _gpu_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def check_root(root: Folder) -> None:
    """Refuse a root that a node cannot read what others wrote to, or cannot write to, before any step begins.

    Raises: ConfigError that names the nodes, with what each of them met; RuntimeError if a node does not answer.
    """
    if not is_url(root.path) and UPLOADED in root.path:
        raise ConfigError(
            f"root={root.path} lies in Ray's copy of the working directory, which is removed after the job: name a folder"
            " that all nodes share by its absolute path, or a URL"
        )
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(names) > 1:
        _check_seen(root, names, _each_node)


def _check_seen(
    root: Folder, names: Mapping[str, str], ask: Callable[[Mapping[str, str], Folder, str], dict[str, str]]
) -> None:
    """`names`: node id -> host. `ask` has every node read what the driver wrote and write a file of its own."""
    mark = uuid.uuid4().hex
    probe = root / f".probe-{mark}"
    probe.write_text("driver", mark)
    try:
        met = ask(names, probe, mark)
        blind = {node_id: why for node_id, why in met.items() if why}
        for node_id in met.keys() - blind.keys():
            if not probe.exists(node_id):
                blind[node_id] = "what it writes there is not seen by the driver"
    finally:
        probe.remove()
    if blind:
        told = "\n  ".join(f"{names[node_id]}: {why}" for node_id, why in sorted(blind.items()))
        raise ConfigError(
            f"root={root.path} is not the same folder on every node:\n  {told}\n"
            "mount one file system there on all of them, or set root to a URL (s3://bucket/runs) that all may write to"
        )


def _each_node(names: Mapping[str, str], probe: Folder, mark: str) -> dict[str, str]:
    """Node id -> what hinders it, empty if nothing does."""
    look = ray.remote(_look)
    asked = {
        node_id: look.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(probe, mark, node_id)
        for node_id in names
    }
    return answers(asked, names, NODE_ANSWERS_S)


def answers(asked: Mapping[str, ray.ObjectRef], names: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    """Node id -> what the node answered. `names`: node id -> what people call it.

    Raises: RuntimeError that names the nodes that did not answer.
    """
    _, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    met, silent = {}, []
    for node_id, answer in asked.items():
        try:
            if answer in late:
                raise TimeoutError(f"not within {timeout_s:g} s")
            met[node_id] = ray.get(answer)
        except (RayError, TimeoutError) as error:
            first_line = str(error).strip().partition("\n")[0]
            silent.append(f"{names[node_id]}: {type(error).__name__}: {first_line}")
    if silent:
        told = "\n  ".join(silent)
        raise RuntimeError(
            f"asked whether they have what a run needs, these nodes do not answer:\n  {told}\n"
            "look at `ray status` and at the raylet's log there (/tmp/ray/session_latest/logs), or take them out of the"
            " cluster (`ray stop` there)"
        )
    return met


def _look(probe: Folder, mark: str, node_id: str) -> str:
    try:
        if probe.read_text("driver") != mark:
            return "what the driver wrote there reads otherwise here"
        probe.write_text(node_id, mark)
    except Exception as error:  # whatever the store's client raises is the answer
        return f"{type(error).__name__}: {error}"
    return ""


def beside_this() -> NodeAffinitySchedulingStrategy:
    """For actors that ask for no CPUs: on the calling process's node. Ray would put some on a head that has none either."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def node_is_alive(node_id: str) -> bool:
    """Whether a node, by its hexadecimal id, still belongs to the cluster."""
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
