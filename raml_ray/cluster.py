"""Connecting to Ray, and whether what a step needs is there at all."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping

import ray
import ray.data
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raml_ray.config import Config, ConfigError

logger = logging.getLogger(__name__)

ANYWHERE = PlacementGroupSchedulingStrategy(None)
"""For tasks that ask for CPUs or GPUs: in a trial of a sweep Ray would put them into the trial's own placement group, which
holds next to nothing, and refuse them."""
# A learner and an engine alternate in GRPO; each holds a logical CPU for as long as it lives.
FEWEST_CPUS = 3


@contextlib.contextmanager
def connected(config: Config) -> Iterator[None]:
    """Ray, for the block: the job's cluster under `ray job submit`, else `cluster.address`."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or config.cluster.address
    if address == "local":
        num_cpus = config.cluster.num_cpus or max(os.cpu_count() or 1, FEWEST_CPUS)
        ray.init(
            "local",
            num_cpus=num_cpus,
            object_store_memory=config.cluster.object_store_mib * 2**20,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        logger.info("Ray on this machine: %d logical CPUs", num_cpus)
    else:
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False)
        logger.info("Ray at %s: %s", address, {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")})
    # One line per event is ours to write.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def check_fits(asked: dict[str, tuple[float, float]]) -> None:
    """Refuse what can never be scheduled, before any actor starts. `asked`: who -> (logical CPUs, GPUs).

    Raises: ConfigError that adds up who wants what and says what there is.
    """
    there = ray.cluster_resources()
    for index, resource in enumerate(("CPU", "GPU")):
        total = sum(need[index] for need in asked.values())
        if total > there.get(resource, 0):
            sum_up = " + ".join(f"{need[index]:g} ({who})" for who, need in asked.items() if need[index])
            raise ConfigError(
                f"{total:g} logical {resource}s are asked, {sum_up}, but Ray has {there.get(resource, 0):g}:"
                f" lower these settings, raise cluster.num_cpus, or join a larger cluster"
            )


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
    try:
        return int(ray.get(asked, timeout=timeout_s))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(asked)
        raise TimeoutError(
            f"no GPU came free within train.start_timeout_s={timeout_s:g} to ask for its memory"
        ) from None


def _gpu_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def check_labels(labels: Mapping[str, str], setting: str = "engine.node_labels") -> None:
    """Refuse node labels that no node carries, before any actor waits for one. `setting` is what asks for them.

    Raises: ConfigError that says which labels there are.
    """
    if not labels:
        return
    nodes = [node["Labels"] for node in ray.nodes() if node["Alive"]]
    if not any(labels.items() <= carried.items() for carried in nodes):
        there = sorted({f"{key}={value}" for node in nodes for key, value in node.items() if "ray.io/" not in key})
        raise ConfigError(
            f"no node carries {setting}={dict(labels)}: start nodes with `ray start --labels`, or name labels"
            f" that there are ({', '.join(there) or 'none'})"
        )


def node_is_alive(node_id: str) -> bool:
    """Whether a node, by its hexadecimal id, still belongs to the cluster."""
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
