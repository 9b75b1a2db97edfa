"""Whether the learners' longest pass fits into the memory that there is: asked before anything starts."""

import logging
from typing import NamedTuple

from raml_ray import cluster
from raml_ray.config import Config, ConfigError
from raml_ray.formulas import architecture, memory
from raml_ray.formulas.architecture import Architecture
from raml_ray.settings import TrainConfig
from raml_ray.workers import policy

logger = logging.getLogger(__name__)


SPARE = 1.16
"""A learner is started where there is so much times its estimate: the most by which a measured peak exceeded one, 2.56 to
2.22 GiB (docs/memory.md), rounded up."""


class Longest(NamedTuple):
    """The longest example that a step may have, and how many it has: `Longest("sft.max_length", 512, 64)`."""

    setting: str
    num_tokens: int
    num_examples: int
    """Of one optimizer step, over all ranks."""


def check(config: Config, policy_path: str, longest: Longest, *, reference: bool = False) -> None:
    """Refuse what one worker has no memory for, by the estimate of `formulas.memory`, with or without a `reference`.

    Raises: ConfigError that says what it would take, what there is, and the longest that fits.
    """
    train = config.train
    made = architecture.of(policy.load_config(policy_path).to_dict())
    if made is None:
        logger.warning("the memory of %s's learners is not estimated: its shapes are not known", policy_path)
        return
    split = split_of(train, made)._replace(reference=reference)
    on_host, num_tokens = not train.gpus_per_worker, tokens_of_a_pass(train, longest)
    asked = memory.estimate(made, split, num_tokens, on_host=on_host)
    there, where = (round(train.memory_gib * memory.GIB), "train.memory_gib") if train.memory_gib else _there(train)
    logger.info("a learner takes about %s of the %.3g GiB of %s", asked, there / memory.GIB, where)
    if asked.total * SPARE <= there:
        return
    fitting = memory.longest(made, split, int(there / SPARE), on_host=on_host)
    told = (
        f"train.max_tokens_per_micro_batch={train.max_tokens_per_micro_batch} and {longest.setting}="
        f"{longest.num_tokens}: a pass of {num_tokens} tokens takes about {asked} in each of train.num_workers="
        f"{train.num_workers}, {SPARE:g} times that has to be free, and there are {there / memory.GIB:.3g} GiB ({where})"
    )
    if not fitting:
        raise ConfigError(f"{told}: not one token fits; raise train.num_workers, or set train.lora_rank")
    names = "it" if fitting >= longest.num_tokens else f"both it and {longest.setting}"
    raise ConfigError(
        f"{told}: the longest that fits is train.max_tokens_per_micro_batch={fitting}; set {names} to that at most, or"
        " raise train.num_workers"
    )


def tokens_of_a_pass(train: TrainConfig, longest: Longest) -> int:
    """The most tokens that one pass can have: the budget, or one example that is longer, but no more than a rank's share
    of a step."""
    share = -(-longest.num_examples // train.num_workers) * longest.num_tokens
    return min(max(train.max_tokens_per_micro_batch, longest.num_tokens), share)


def split_of(train: TrainConfig, made: Architecture) -> memory.Split:
    """How these settings divide a policy."""
    return memory.Split(
        num_ranks=train.num_workers,
        dtype_bytes=4 if train.dtype == "float32" else 2,
        stage=(train.zero_stage or 3) if train.strategy == "deepspeed" else 0,
        offload=train.offload and train.gpus_per_worker > 0,  # what is on the host already has nowhere else to go
        recompute=train.activation_checkpointing,
        adapters=made.adapter_parameters(train.lora_rank, train.lora_targets) if train.lora_rank else 0,
    )


def _there(train: TrainConfig) -> tuple[int, str]:
    """The bytes that one worker may take, and whose they are."""
    if train.gpus_per_worker:
        whole = cluster.gpu_bytes(train.gpus_per_worker, train.start_timeout_s)
        return round(whole * min(1.0, train.gpus_per_worker)), "a GPU's, a part of it for a part"
    return cluster.host_bytes(train.num_workers, train.cpus_per_worker), "a worker's share of its node"
