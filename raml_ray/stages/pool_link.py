"""A learner rank's end of the line to the rollout pool. Only ranks import this: torch's and transformers' models come with it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from transformers import AutoConfig, AutoModelForCausalLM

from raml_ray.config import Config
from raml_ray.stages.weight_sync import NcclSync, ObjectStoreSync, WeightSync
from raml_ray.text.batches import Example, batches, micro_batches
from raml_ray.workers import staleness, sync_check, watchdog, weights
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sharding import Sharded
from raml_ray.workers.sync_check import Checked, Probe, SyncMismatch

NUM_PROBES = 4
"""Sequences on which engine and learner are compared after a weight sync."""
ANSWERS_S = 10
"""A pool that is asked for its engines' states has answered by then."""
SMALL_MIB = 512
"""Of weights up to here are engines and learner compared after every sync, where grpo.sync_check_every=0."""
RARELY = 10
"""Syncs between such comparisons of larger policies."""


class PoolLink:
    """Samples come in, weights go out and are checked. Every method is called on all ranks alike."""

    def __init__(self, pool: ActorHandle, learner: Sharded, config: Config, policy_path: str) -> None:
        self._pool, self._learner, self._config, self._policy_path = pool, learner, config, policy_path
        self._num_published = 0
        self._sync: WeightSync
        match config.grpo.weight_sync:
            case "object_store":
                self._sync = ObjectStoreSync(pool, learner, config, self._asked)
            case "nccl":
                self._sync = NcclSync(pool, learner, config, policy_path, self._asked)
        self._probes: list[list[int]] = []
        self._bound = sync_check.bound(
            config.engine.dtype,
            config.train.dtype,
            tolerance=config.grpo.sync_tolerance,
            tolerance_k3=config.grpo.sync_tolerance_k3,
        )
        starts = config.grpo.max_engine_failures + 1
        # A pool that died is being started again: it is waited for, too.
        is_ready = pool.ready.options(max_task_retries=-1).remote()
        patience_s = (starts + 1) * config.engine.start_timeout_s
        watchdog.reached("the start of the engines", patience_s)
        self._asked(is_ready, patience_s, "the rollout engines to be ready")

    def _asked(self, ref: ray.ObjectRef, timeout_s: float, what: str) -> Any:
        """The pool's answer. Raises: TimeoutError that says who waited for what."""
        try:
            return ray.get(ref, timeout=timeout_s)
        except GetTimeoutError:
            raise TimeoutError(
                f"learner {self._learner.rank} waited {timeout_s:g} s for {what}; engines: {self._states()}"
            ) from None

    def _states(self) -> str:
        """How many engines are in which state, as far as the pool answers."""
        try:
            states: dict[str, int] = ray.get(self._pool.states.remote(), timeout=ANSWERS_S)
        except (RayError, GetTimeoutError) as error:
            return f"unknown, the pool does not answer ({type(error).__name__})"
        return ", ".join(f"{num} {state}" for state, num in states.items())

    @property
    def _patience_s(self) -> float:
        """For a call to the engines one of which may be replaced meanwhile; the other ranks wait no longer than that."""
        settings = self._config.engine
        patience = 2 * settings.request_timeout_s + settings.start_timeout_s
        return patience if self._learner.world_size == 1 else min(patience, self._config.train.collective_timeout_s)

    def sample(self, version: int) -> tuple[Sequence[Sequence[Rollout]], Mapping[str, float]]:
        """The groups of a version. Raises: TimeoutError that names grpo.sample_timeout_s."""
        sampled = self._asked(
            self._pool.sample.remote(version),
            self._config.grpo.sample_timeout_s,
            f"the trajectories of version {version} (grpo.sample_timeout_s)",
        )
        rows = [rollout for group in sampled.groups for rollout in group if rollout.token_ids]
        # The next sync is checked on what the policy really writes.
        self._probes = [row.prompt_token_ids + row.token_ids for row in rows[:NUM_PROBES]]
        return sampled.groups, {
            "time/generate_s": sampled.generate_s,
            "time/judge_s": sampled.judge_s,
            "grpo/judged_early_fraction": sampled.judged_early,
            "grpo/engines_replaced": float(sampled.engines_replaced),
            "grpo/refills": float(sampled.refills),
            "grpo/engines_healthy": float(sampled.engines["healthy"]),
            "grpo/engines_stale": float(sampled.engines["stale"]),
            "grpo/engines_dead": float(sampled.engines["dead"]),
            "grpo/engines_retired": float(sampled.engines["retired"]),
        } | staleness.metrics(rows, version, self._config.grpo.max_staleness)

    def publish(self, version: int) -> Mapping[str, float]:
        """Send the learner's weights to all engines and, as grpo.sync_check_every says, prove that they arrived.

        No rank returns before the engines have them: its next sample must come from this version.

        Raises: SyncMismatch, on all ranks, naming the first module whose output differs.
        """
        began = time.perf_counter()
        self._asked(
            self._pool.drained.remote(version),
            self._config.grpo.sample_timeout_s,
            f"the trajectories under way before version {version} (grpo.sample_timeout_s)",
        )
        drained = time.perf_counter()
        probe = self._probe()
        metrics = {"time/drain_s": drained - began} | self._sync.send(version, probe, self._patience_s)
        box: list[Any] = [(metrics, None)]
        if self._learner.rank == 0 and probe is not None and self._is_checked(metrics["grpo/sync_mib"]):
            sent = time.perf_counter()
            checked, worst = self._checked(version, probe)
            metrics |= {"grpo/sync_max_error": checked.apart.max_abs, "grpo/sync_k3": checked.apart.k3}
            metrics["time/sync_check_s"] = time.perf_counter() - sent
            box = [(metrics, None if checked.agree else (checked, worst))]
        self._num_published += 1
        dist.broadcast_object_list(box, src=0)
        found: dict[str, float] = box[0][0]
        if box[0][1] is not None:
            assert probe is not None
            checked, worst = box[0][1]
            box = [self._why(version, checked, worst, probe.sequences[0])]
            dist.broadcast_object_list(box, src=0)
            raise SyncMismatch(box[0])
        return found

    def _is_checked(self, sync_mib: float) -> bool:
        every = self._config.grpo.sync_check_every or (1 if sync_mib <= SMALL_MIB else RARELY)
        return self._num_published % every == 0

    def _probe(self) -> Probe | None:
        """What engines with these weights are held to; None for scripted ones: they have no weights that could disagree."""
        if self._config.engine.kind != "vllm":
            return None
        if not self._probes:
            timeout = self._config.engine.request_timeout_s
            self._probes = self._asked(self._pool.probes.remote(NUM_PROBES), timeout, "probe sequences")
        return Probe(self._probes, self._logprobs(self._probes))

    def _checked(self, version: int, probe: Probe) -> tuple[Checked, int]:
        """How far engines and learner are apart, and which engine is the farthest."""
        answers: dict[int, list[np.ndarray]] = self._asked(
            self._pool.token_logprobs.remote(probe.sequences),
            self._patience_s,
            f"the engines' log-probabilities under version {version}",
        )
        checked = sync_check.check(list(answers.values()), probe.logprobs, self._bound)
        return checked, list(answers)[checked.worst]

    def _logprobs(self, probes: Sequence[list[int]]) -> list[np.ndarray]:
        """The learner's own log-probability of every token but the first, as the pool's engines give them."""
        examples = [Example(probe[:1], probe[1:]) for probe in probes]
        budget, packing = self._config.train.max_tokens_per_micro_batch, self._config.train.packing
        groups = micro_batches(examples, budget, packing=packing)
        found: dict[int, np.ndarray] = {}
        for group, batch in zip(groups, batches(examples, budget, len(groups), packing=packing), strict=True):
            with torch.no_grad():
                logprob_BT = self._learner.token_logprobs(batch).cpu()
            for example, row_T in zip(group, batch.split(logprob_BT), strict=True):
                found[id(example)] = row_T[1:].numpy().copy()
        return [found[id(example)] for example in examples]

    def _why(self, version: int, checked: Checked, worst: int, sequence: list[int]) -> str:
        """What to say of a mismatch: the first module, in forward order, whose output is not the learner's.

        A collective; rank 0 knows the answer.
        """
        settings = self._config.engine
        told = f"after the sync of version {version} engine {worst} and learner are {self._bound.told(checked.apart)}"
        if not settings.enforce_eager or settings.dtype != "float32":
            return (
                f"{told}; engine.enforce_eager=true and engine.dtype=float32 would name the first module whose output"
                " differs"
            )
        state = self._learner.full_state(torch.float32)
        if self._learner.rank:
            return ""
        reference = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self._policy_path), dtype=torch.float32)
        reference.load_state_dict(state, strict=False)
        theirs = self._asked(self._pool.module_outputs.remote(sequence), self._patience_s, "the modules' outputs")
        module = weights.first_difference(
            theirs[worst], weights.learner_outputs(reference.eval(), sequence), self._config.grpo.sync_tolerance
        )
        return f"{told}; the first module whose output differs is {module or 'none of those that are traced'}"
