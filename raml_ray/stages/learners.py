"""What `sft` and `grpo` share of Ray Train: a group of learners, what each does first, and what rank 0 leaves behind.

Ray Train starts, watches and restarts the group. Checkpoints are the loops' own (`workers/checkpoints.py`): they count
the moment they are committed, are verified before use, and one that is damaged falls back on the one before it.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from transformers import AutoConfig

from raml_ray.config import Config, ConfigError, dump, load
from raml_ray.metrics_file import MetricsFile
from raml_ray.settings import TrainConfig
from raml_ray.storage import Folder, is_url
from raml_ray.workers import checkpoints, policy, sharding
from raml_ray.workers.sharding import Sharded

logger = logging.getLogger(__name__)

CONTROLLER_FAILURES = 5
POLICY, CHECKPOINTS = "policy", "checkpoints"

Worker = Callable[[dict[str, Any]], Mapping[str, float]]
"""Runs on every rank with the arguments of `run` and `config` as JSON; what rank 0 returns is what `run` returns."""


def run(worker: Worker, arguments: Mapping[str, Any], *, config: Config, folder: Folder, policy_path: str) -> dict[str, float]:
    """Run the worker on train.num_workers ranks of one process group and return what rank 0 says.

    A group that lost a worker is started again, at most train.max_failures times; one run again after its driver died
    goes on from its last checkpoint.

    Raises: ValueError of a worker as it is; ray.train.TrainingFailedError when the restarts are spent.
    """
    check(config.train, folder, policy_path)
    train = config.train
    # The controller's poll bounds how soon a death is seen and how soon the end is.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(train.start_timeout_s)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    resources: dict[str, float] = {"CPU": train.cpus_per_worker}
    if train.gpus_per_worker:
        resources["GPU"] = train.gpus_per_worker
    trainer = TorchTrainer(
        worker,
        train_loop_config={**arguments, "config": dump(config), "policy_path": policy_path, "folder": folder.path},
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if train.gpus_per_worker else "gloo",
            timeout_s=max(1, round(train.collective_timeout_s)),
        ),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers, use_gpu=train.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="learners",
            storage_path=folder.file("train"),
            failure_config=FailureConfig(max_failures=train.max_failures, controller_failure_limit=CONTROLLER_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=train.keep_checkpoints),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    return dict(result.return_value)


def check(train: TrainConfig, folder: Folder, policy_path: str) -> None:
    """Refuse, before any worker starts, what every worker would stumble over.

    Raises: ValueError naming the setting.
    """
    if train.strategy != "fsdp":
        raise ConfigError(f"train.strategy={train.strategy!r} is not built yet: set train.strategy=fsdp")
    if is_url(folder.path):
        raise ConfigError(f"root={folder.path!r}: learners write checkpoints to a file system that all of them share, not to a URL yet")
    policy.load_tokenizer(policy_path)
    AutoConfig.from_pretrained(policy_path, trust_remote_code=False)


def _cause(error: TrainingFailedError) -> Exception:
    """The ValueError that a worker died of, if it is one: the person who can correct it need not read Ray's trace."""
    failures = error.worker_failures.values() if isinstance(error, ray.train.WorkerGroupError) else ()
    for failure in failures:
        original = failure.cause if isinstance(failure, ray.exceptions.RayTaskError) else failure
        if isinstance(original, ValueError):
            return original
    return error


def started(arguments: Mapping[str, Any]) -> Config:
    """The first line of every worker: the configuration, validated again where it is used, and its threads."""
    config = load(arguments["config"], "the learners' configuration")
    torch.set_num_threads(config.train.cpus_per_worker)
    return config


def loaded(policy_path: str, config: Config) -> Sharded:
    """The policy that training starts from, split over the ranks; the same on every rank if its weights are random."""
    torch.manual_seed(config.seed)
    model = policy.load_model(policy_path, random_init=config.policy.random_init)
    return sharding.wrap(model, config.train)


def restored(learner: Sharded, folder: Folder, expected: Mapping[str, Any]) -> tuple[int, MetricsFile | None]:
    """The number of steps that the last whole checkpoint holds (0 without one), and rank 0's metrics file cut back to it.

    Raises: ValueError if the checkpoint was saved with other values than `expected`.
    """
    found = checkpoints.load(folder.file(CHECKPOINTS), learner.state())
    if found and dict(found.extra) != dict(expected):
        raise ValueError(
            f"{folder.file(CHECKPOINTS)} belongs to {dict(found.extra)}, but this step has {dict(expected)}: start it anew with --redo"
        )
    step = found.step if found else 0
    if found:
        logger.info("learner %d goes on after step %d", learner.rank, step)
    if learner.rank:
        return step, None
    metrics = MetricsFile(folder)
    metrics.truncate_after(step)
    return step, metrics


def save_policy(learner: Sharded, folder: Folder, policy_path: str) -> None:
    """The step's policy folder, written by rank 0 in the dtype that the policy came in. A collective."""
    wanted = AutoConfig.from_pretrained(policy_path, trust_remote_code=False)
    state = learner.full_state(wanted.dtype or torch.float32)
    if learner.rank == 0:
        policy.save(state, wanted, policy_path, folder.file(POLICY))
