"""Reinforcement learning with Ray Train and a pool of rollout engines.   questions, policy -> policy/, metrics.jsonl

Learners are a Ray Train worker group; the engines live outside it, in a placement group of their own.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from transformers import AutoConfig, AutoModelForCausalLM

from raml_ray import cluster
from raml_ray.config import Config, ConfigError
from raml_ray.records import Question
from raml_ray.stages import learners, sources
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.rollout_pool import RolloutPool
from raml_ray.storage import Folder
from raml_ray.text import prompts
from raml_ray.text.batches import Example, batches, micro_batches
from raml_ray.workers import checkpoints, grpo_loop, weights
from raml_ray.workers import policy as policies
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sharding import DTYPES, Sharded

logger = logging.getLogger(__name__)

NUM_PROBES = 4
"""Sequences on which engine and learner are compared after a weight sync."""


class SyncMismatch(ValueError):
    """Engine and learner give the same tokens different log-probabilities: what is sampled is not what is trained."""


def run(context: Context) -> Outcome:
    config, train = context.config, context.config.train
    questions, rejected = sources.questions(config, config.data, stage="grpo")
    context.reject(rejected, "questions")
    policy_path = context.policy_path
    questions, too_long = _fitting(questions, policy_path, config)
    cluster.check_fits(
        {
            f"grpo.num_engines={config.grpo.num_engines} of engine.cpus_per_engine={config.engine.cpus_per_engine}": (
                config.grpo.num_engines * config.engine.cpus_per_engine,
                config.grpo.num_engines * config.engine.gpus_per_engine,
            ),
        }
        | learners.asked(train)
    )
    group = _engines_place(config)
    try:
        pool = ray.remote(RolloutPool).options(num_cpus=0).remote(config, policy_path, questions, group)
        # Not waited for: learners start while the engines do.
        figures = learners.run(_worker, {"pool": pool}, config=config, folder=context.folder, policy_path=policy_path)
        ray.kill(pool)
    finally:
        remove_placement_group(group)
    if "error" in figures:
        raise SyncMismatch(figures["error"])
    rows_in = len(questions) + len(rejected) + too_long
    return Outcome(Counts(rows_in, len(questions), len(rejected), too_long), figures)


def _fitting(questions: list[Question], policy_path: str, config: Config) -> tuple[list[Question], int]:
    """The questions whose prompt leaves room for a response of grpo.max_tokens, and how many do not."""
    tokenizer = policies.load_tokenizer(policy_path)
    room = config.engine.max_model_len - config.grpo.max_tokens
    fitting = [q for q in questions if len(prompts.prompt_token_ids(tokenizer, q.problem, config.prompt)) <= room]
    if not fitting:
        raise ConfigError(
            f"no question leaves room for grpo.max_tokens={config.grpo.max_tokens} within"
            f" engine.max_model_len={config.engine.max_model_len}: raise the one or lower the other"
        )
    if len(fitting) < len(questions):
        logger.warning("%d questions filtered: their prompts exceed %d tokens", len(questions) - len(fitting), room)
    return fitting, len(questions) - len(fitting)


def _engines_place(config: Config) -> PlacementGroup:
    """Reserved room for the engines. Raises: TimeoutError that says what was waited for."""
    settings = config.engine
    bundle: dict[str, float] = {"CPU": settings.cpus_per_engine}
    if settings.gpus_per_engine:
        bundle["GPU"] = settings.gpus_per_engine
    group = placement_group([bundle] * config.grpo.num_engines, strategy="PACK")
    try:
        ray.get(group.ready(), timeout=settings.start_timeout_s)
    except GetTimeoutError:
        remove_placement_group(group)
        raise TimeoutError(
            f"no room for {config.grpo.num_engines} engines of {bundle} within"
            f" engine.start_timeout_s={settings.start_timeout_s:g}; Ray has free {ray.available_resources()}"
        ) from None
    return group


def _worker(arguments: dict[str, Any]) -> Mapping[str, Any]:
    """One learner rank."""
    config = learners.started(arguments)
    folder, policy_path = Folder(arguments["folder"]), str(arguments["policy_path"])
    learner = learners.loaded(policy_path, config)
    origin = {"seed": config.seed}
    start_version, metrics_file = learners.restored(learner, folder, origin)
    link = PoolLink(arguments["pool"], learner, config, policy_path)
    last: dict[str, float] = {}

    def report(version: int, metrics: Mapping[str, float]) -> None:
        last.update(metrics)
        if metrics_file:
            metrics_file.append(version, metrics)

    def save(version: int) -> None:
        checkpoints.save(
            folder.file(learners.CHECKPOINTS), version, learner.state(), origin, keep=config.train.keep_checkpoints
        )

    try:
        grpo_loop.train(
            learner,
            config.grpo,
            config.train,
            seed=config.seed,
            start_version=start_version,
            sample=link.sample,
            publish=link.publish,
            report=report,
            save=save,
        )
    except SyncMismatch as error:  # on every rank alike; a restart would find the same
        return {"error": str(error)}
    learners.save_policy(learner, folder, policy_path)
    return last | {"grpo/versions": config.grpo.num_steps, "grpo/resumed_from_version": start_version}


class PoolLink:
    """A learner rank's end of the line to the rollout pool: samples come in, weights go out and are checked."""

    def __init__(self, pool: ActorHandle, learner: Sharded, config: Config, policy_path: str) -> None:
        self._pool, self._learner, self._config, self._policy_path = pool, learner, config, policy_path
        self._num_published = 0
        self._sent: ray.ObjectRef | None = None
        self._probes: list[list[int]] = []
        timeout = config.engine.start_timeout_s
        try:
            ray.get(pool.ready.remote(), timeout=2 * timeout)
        except GetTimeoutError:
            raise TimeoutError(f"learner {learner.rank}: rollout engines not ready after {2 * timeout:g} s") from None

    def sample(self, version: int) -> tuple[Sequence[Sequence[Rollout]], Mapping[str, float]]:
        """The groups of a version. Raises: TimeoutError that names grpo.sample_timeout_s."""
        timeout = self._config.grpo.sample_timeout_s
        try:
            sampled = ray.get(self._pool.sample.remote(version), timeout=timeout)
        except GetTimeoutError:
            raise TimeoutError(
                f"learner {self._learner.rank} waited grpo.sample_timeout_s={timeout:g} s for the trajectories of version {version}"
            ) from None
        rows = [rollout for group in sampled.groups for rollout in group if rollout.token_ids]
        stale = {rollout.version for rollout in rows} - {version}
        if stale:
            raise RuntimeError(f"trajectories of versions {sorted(stale)} came for version {version}")
        # The next sync is checked on what the policy really writes.
        self._probes = [row.prompt_token_ids + row.token_ids for row in rows[:NUM_PROBES]]
        return sampled.groups, {
            "time/generate_s": sampled.generate_s,
            "time/judge_s": sampled.judge_s,
            "grpo/engines_replaced": float(sampled.engines_replaced),
        }

    def publish(self, version: int) -> Mapping[str, float]:
        """Send the learner's weights to all engines and, every grpo.sync_check_every-th time, prove that they arrived.

        Raises: SyncMismatch, on all ranks, naming the first module whose output differs.
        """
        began = time.perf_counter()
        state = self._learner.full_state(DTYPES[self._config.engine.dtype])
        gathered, num_bytes, engine_s = time.perf_counter(), 0, 0.0
        if self._learner.rank == 0:
            flat, layout = weights.flatten(state.items(), DTYPES[self._config.engine.dtype])
            num_bytes = flat.nbytes
            # Held until the next sync: the pool may still be reading it.
            self._sent = ray.put(flat)
            timeout = self._config.engine.request_timeout_s * 2
            engine_s = ray.get(
                self._pool.publish.remote(version, [self._sent], layout, weights.checksum(flat, layout)),
                timeout=timeout,
            )
        metrics: dict[str, float] = {
            "time/gather_s": gathered - began,
            "time/engine_load_s": engine_s,
            "grpo/sync_mib": num_bytes / 2**20,
        }
        every = self._config.grpo.sync_check_every
        # A scripted engine has no weights that could disagree.
        checked = self._num_published % every == 0 and self._config.engine.kind == "vllm"
        self._num_published += 1
        if checked:
            metrics |= self._verified(version, state)
        return metrics

    def _verified(self, version: int, state: Mapping[str, torch.Tensor]) -> dict[str, float]:
        probes = self._probes or self._pool_probes()
        mine = self._logprobs(probes)
        box: list[Any] = [None]
        if self._learner.rank == 0:
            answers = ray.get(
                self._pool.token_logprobs.remote(probes), timeout=self._config.engine.request_timeout_s * 2
            )
            apart = [weights.compare(theirs, mine).max_abs for theirs in answers]
            worst = int(np.argmax(apart))
            # Written so that a NaN fails.
            agree = max(apart) <= self._config.grpo.sync_tolerance
            box[0] = (max(apart), "" if agree else self._why(version, worst, apart[worst], probes[0], state))
        dist.broadcast_object_list(box, src=0)
        largest, why = box[0]
        if why:
            raise SyncMismatch(why)
        return {"grpo/sync_max_error": largest}

    def _pool_probes(self) -> list[list[int]]:
        probes: list[list[int]] = ray.get(
            self._pool.probes.remote(NUM_PROBES), timeout=self._config.engine.request_timeout_s
        )
        return probes

    def _logprobs(self, probes: Sequence[list[int]]) -> list[np.ndarray]:
        """The learner's own log-probability of every token but the first, as the pool's engines give them."""
        examples = [Example(probe[:1], probe[1:]) for probe in probes]
        budget = self._config.train.max_tokens_per_micro_batch
        groups = micro_batches(examples, budget)
        found: dict[int, np.ndarray] = {}
        for group, batch in zip(groups, batches(examples, budget, len(groups)), strict=True):
            with torch.no_grad():
                logprob_BT = self._learner.token_logprobs(batch).cpu().numpy()
            for example, row_T in zip(group, logprob_BT, strict=True):
                found[id(example)] = row_T[1 : len(example)]
        return [found[id(example)] for example in examples]

    def _why(self, version: int, engine: int, apart: float, probe: list[int], state: Mapping[str, torch.Tensor]) -> str:
        """What to say of a mismatch: the first module, in forward order, whose output is not the learner's."""
        told = (
            f"after the sync of version {version} engine {engine} and learner are {apart:.2g} nats apart on a probe"
            f" (grpo.sync_tolerance={self._config.grpo.sync_tolerance:g})"
        )
        if not self._config.engine.enforce_eager:
            return f"{told}; engine.enforce_eager=true would name the first module whose output differs"
        reference = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self._policy_path), dtype=torch.float32)
        reference.load_state_dict(dict(state), strict=False)
        theirs = ray.get(self._pool.module_outputs.remote(probe, engine), timeout=self._config.engine.request_timeout_s)
        module = weights.first_difference(
            theirs, weights.learner_outputs(reference.eval(), probe), self._config.grpo.sync_tolerance
        )
        return f"{told}; the first module whose output differs is {module or 'none of those that are traced'}"
