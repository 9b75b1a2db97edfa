"""One rank of a learner group: how it starts, where it goes on after a restart, and the policy that is left behind."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from raml_ray.config import Config, load
from raml_ray.metrics_file import MetricsFile
from raml_ray.storage import Folder
from raml_ray.workers import checkpoints, policy, sharding
from raml_ray.workers.sharding import Sharded

logger = logging.getLogger(__name__)

POLICY, CHECKPOINTS = "policy", "checkpoints"


def started(config_json: str) -> Config:
    """The first line of every worker: the configuration, validated again where it is used, and its threads."""
    config = load(config_json, "the learners' configuration")
    torch.set_num_threads(config.train.cpus_per_worker)
    return config


def loaded(policy_path: str, config: Config) -> Sharded:
    """The policy that training starts from, split over the ranks; the same on every rank if its weights are random."""
    torch.manual_seed(config.seed)
    model = policy.load_model(policy_path, random_init=config.policy.random_init)
    return sharding.wrap(model, config.train)


def restored(learner: Sharded, folder: Folder, origin: Mapping[str, Any]) -> tuple[int, MetricsFile | None]:
    """The steps that the last whole checkpoint holds (0 without one), and on rank 0 the metrics file cut back to them.

    A collective. Raises: ValueError if the checkpoint was saved for another `origin`.
    """
    found = checkpoints.load(folder.file(CHECKPOINTS), learner.state())
    if found and dict(found.extra) != dict(origin):
        raise ValueError(
            f"{folder.file(CHECKPOINTS)} was made from {dict(found.extra)}, but this step has {dict(origin)}:"
            f" start it anew with --redo {folder.name}"
        )
    step = found.step if found else 0
    if found:
        logger.info("learner %d goes on after step %d", learner.rank, step)
    if learner.rank:
        return step, None
    metrics = MetricsFile(folder)
    metrics.truncate_after(step)
    return step, metrics


def saved(learner: Sharded, step: int, folder: Folder, origin: Mapping[str, Any], keep: int) -> None:
    """A checkpoint that `restored` finds. A collective."""
    checkpoints.save(folder.file(CHECKPOINTS), step, learner.state(), origin, keep=keep)


def save_policy(learner: Sharded, folder: Folder, policy_path: str) -> None:
    """The step's policy folder, written by rank 0 in the dtype that the policy came in. A collective."""
    architecture = policy.load_config(policy_path)
    state = learner.full_state(architecture.dtype or torch.float32)
    if learner.rank == 0:
        policy.save(state, architecture, policy_path, folder.file(POLICY))
