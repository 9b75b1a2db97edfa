"""What `sft` and `grpo` share of Ray Train: one group of learners, started, watched and restarted.

Checkpoints are the learners' own (`workers/checkpoints.py`) and not Ray's: they count the moment they are committed,
are verified before use, and a damaged one falls back on the one before it. What only a rank needs (models, FSDP) is
imported in the functions that a rank calls: the driver and Ray's controller do without those seconds.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.fs
from ray.exceptions import RayTaskError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

from raml_ray import cluster, faults, stopping
from raml_ray.config import Config, ConfigError, dump, load
from raml_ray.policy_source import on_this_node
from raml_ray.settings import TrainConfig
from raml_ray.storage import Folder, is_url
from raml_ray.workers import policy as policies

if TYPE_CHECKING:
    from raml_ray.workers.sharding import Sharded

logger = logging.getLogger(__name__)

POLICY, SKIPPED = "policy", "skipped"
NODES = "learner_nodes"
"""The entry of a step's figures that says which node each rank ran on, by Ray's id."""
MOST_CONTROLLER_FAILURES = 5
LEFT, ERROR, REFUSED = "left", "error", "refused"
"""The only entry of what a rank returns that did not come to its end: because it was asked to leave after that step, or
because of what it says, which a restart would find again; what was refused, a person can correct."""

# An actor of Ray Train's gives back the CPUs of learners whose driver, a trial, was killed. Whether it lives, it asks the
# Ray that it finds on its machine; where there are two it asks none, and the CPUs are gone for good. Train has no setting
# for it.
ENV_VARS_TO_PROPAGATE.add(cluster.ADDRESS)

Worker = Callable[[dict[str, Any]], Mapping[str, Any] | None]
"""Runs on every rank with what `run` was given: its arguments, `config` as JSON, `folder` and `policy`."""


def run(worker: Worker, arguments: Mapping[str, Any], *, config: Config, folder: Folder, policy: str) -> dict[str, Any]:
    """Run the worker on train.num_workers ranks of one process group and return what rank 0 returns.

    A group that lost a worker is started again, at most train.max_failures times.

    Raises: stopping.Stopped after SIGTERM; ConfigError and RuntimeError, without any restart, of what the ranks found and
    would find again; ValueError or OSError that a worker died of, as it is, and RuntimeError, if the restarts are spent.
    """
    check(on_this_node(policy))
    trainer = TorchTrainer(
        worker,
        train_loop_config={**arguments, "config": dump(config), "folder": folder.path, "policy": policy},
        torch_config=_process_group(config.train),
        scaling_config=_workers(config.train),
        run_config=_run(config.train, folder),
    )
    try:
        with stopping.told_to_learners(folder.path), cluster.told_in_environment():
            result = trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error, config.train) from error
    returned = dict(result.return_value)
    if LEFT in returned:
        raise stopping.Stopped
    if ERROR in returned:
        raise RuntimeError(returned[ERROR])
    if REFUSED in returned:
        raise ConfigError(returned[REFUSED])
    return returned


def check(policy_path: str) -> None:
    """Refuse, before any worker starts, what every worker would stumble over.

    Raises: ValueError naming the policy folder.
    """
    policies.check_folder(policy_path, weights=False)
    policies.load_tokenizer(policy_path)


def _process_group(train: TrainConfig) -> TorchConfig:
    backend = "cpu:gloo,cuda:nccl" if train.gpus_per_worker else "gloo"
    return TorchConfig(backend=backend, timeout_s=max(1, round(train.collective_timeout_s)))


def _workers(train: TrainConfig) -> ScalingConfig:
    resources: dict[str, float] = {"CPU": train.cpus_per_worker}
    if train.gpus_per_worker:
        resources["GPU"] = train.gpus_per_worker
    return ScalingConfig(
        num_workers=train.num_workers,
        use_gpu=train.gpus_per_worker > 0,
        resources_per_worker=resources,
        label_selector=dict(train.node_labels) or None,
        placement_strategy=train.placement.upper(),
    )


def _run(train: TrainConfig, folder: Folder) -> RunConfig:
    # Ray reads these in the controller, to which it passes the driver's. How often the controller polls bounds how
    # soon a death, and the end, is seen.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(train.start_timeout_s)
    return RunConfig(
        name="learners",
        **kept_at(folder / "train"),
        failure_config=FailureConfig(
            max_failures=train.max_failures, controller_failure_limit=MOST_CONTROLLER_FAILURES
        ),
        checkpoint_config=CheckpointConfig(num_to_keep=train.keep_checkpoints),
    )


def kept_at(folder: Folder) -> dict[str, Any]:
    """The folder as Ray's RunConfig takes it: of a URL the store's own client, which reads its usual variables."""
    if not is_url(folder.path):
        return {"storage_path": folder.path}
    fs, path = fsspec.core.url_to_fs(folder.path, use_listings_cache=False)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))}


def _cause(error: TrainingFailedError, train: TrainConfig) -> Exception:
    """The ValueError or OSError that a worker died of, if it is one: whoever can mend it need not read Ray's trace."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]
    originals = [failure.cause if isinstance(failure, RayTaskError) else failure for failure in failures]
    for original in originals:
        if isinstance(original, ValueError | OSError):
            return original
    lines = str(originals[0] if originals else error).strip().splitlines() or [""]
    return RuntimeError(
        f"learners died more often than train.max_failures={train.max_failures} allows, at last of"
        f" {type(originals[0]).__name__}: {lines[-1]}; the same command goes on from the last checkpoint"
    )


def started(arguments: Mapping[str, Any]) -> Config:
    """The first line of every worker: the configuration, validated again where it is used, its threads and its drill."""
    import torch

    config = load(arguments["config"], "the learners' configuration")
    torch.set_num_threads(config.train.cpus_per_worker)
    faults.arm(config.drill.faults, config.drill.folder)
    return config


@contextlib.contextmanager
def leaving(train: TrainConfig) -> Iterator[dict[str, Any]]:
    """All of a rank's work; what it is to return instead of its figures if that is left before its end, all ranks alike.

    Ends the process if it hangs: `workers/watchdog.py`.
    """
    import torch.distributed as dist

    from raml_ray.stages.course import Leaving
    from raml_ray.workers import watchdog
    from raml_ray.workers.arrival import Refused
    from raml_ray.workers.checkpoints import CannotSave
    from raml_ray.workers.sync_check import SyncMismatch

    left: dict[str, Any] = {}
    try:
        with watchdog.watching(dist.get_rank(), train.step_timeout_s):
            yield left
    except Leaving as leave:
        left[LEFT] = leave.step
    except (CannotSave, SyncMismatch) as error:
        left[ERROR] = str(error)
    except (Refused, ConfigError) as error:
        left[REFUSED] = str(error)


def loaded(policy_path: str, config: Config) -> "Sharded":
    """The policy that training starts from, split over the ranks; rank 0 alone reads it, or draws its weights."""
    import torch
    import torch.distributed as dist

    from raml_ray.workers import sharding

    torch.manual_seed(config.seed)
    model = policies.load_model(policy_path, random_init=config.policy.random_init, without_weights=dist.get_rank() > 0)
    return sharding.wrap(model, config.train)


def nodes() -> dict[str, list[str]]:
    """NODES -> the node of each rank, by rank. A collective."""
    import ray
    import torch.distributed as dist

    found = [""] * dist.get_world_size()
    dist.all_gather_object(found, ray.get_runtime_context().get_node_id())
    return {NODES: found}


def save_policy(learner: "Sharded", folder: Folder, policy_path: str) -> None:
    """The step's policy folder, written by rank 0 in the dtype that the policy came in. A collective."""
    import torch

    from raml_ray.workers import watchdog

    watchdog.reached("the policy's folder")
    architecture = policies.load_config(policy_path)
    state = learner.full_state(architecture.dtype or torch.float32)
    if learner.rank == 0:
        with (folder / POLICY).filled() as made:
            policies.save(state, architecture, policy_path, made)
