"""A learner rank's end of the line to the rollout pool. Only ranks import this: torch's and transformers' models come with it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError
from transformers import AutoConfig, AutoModelForCausalLM

from raml_ray.config import Config
from raml_ray.text.batches import Example, batches, micro_batches
from raml_ray.workers import sync_check, weights
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sharding import DTYPES, Sharded
from raml_ray.workers.sync_check import Checked, Probe, SyncMismatch

NUM_PROBES = 4
"""Sequences on which engine and learner are compared after a weight sync."""


class PoolLink:
    """Samples come in, weights go out and are checked. Every method is called on all ranks alike."""

    def __init__(self, pool: ActorHandle, learner: Sharded, config: Config, policy_path: str) -> None:
        self._pool, self._learner, self._config, self._policy_path = pool, learner, config, policy_path
        self._num_published = 0
        self._sent: ray.ObjectRef | None = None
        self._probes: list[list[int]] = []
        self._bound = sync_check.bound(
            config.engine.dtype,
            config.train.dtype,
            tolerance=config.grpo.sync_tolerance,
            tolerance_k3=config.grpo.sync_tolerance_k3,
        )
        # A start that does not end is tried twice.
        # A pool that is being started again is waited for, too.
        is_ready = pool.ready.options(max_task_retries=-1).remote()
        self._asked(is_ready, 3 * config.engine.start_timeout_s, "the rollout engines to be ready")

    def _asked(self, ref: ray.ObjectRef, timeout_s: float, what: str) -> Any:
        """The pool's answer. Raises: TimeoutError that says who waited for what."""
        try:
            return ray.get(ref, timeout=timeout_s)
        except GetTimeoutError:
            raise TimeoutError(f"learner {self._learner.rank} waited {timeout_s:g} s for {what}") from None

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
        stale = {rollout.version for rollout in rows} - {version}
        if stale:
            raise RuntimeError(f"trajectories of versions {sorted(stale)} came for version {version}")
        # The next sync is checked on what the policy really writes.
        self._probes = [row.prompt_token_ids + row.token_ids for row in rows[:NUM_PROBES]]
        return sampled.groups, {
            "time/generate_s": sampled.generate_s,
            "time/judge_s": sampled.judge_s,
            "grpo/engines_replaced": float(sampled.engines_replaced),
            "grpo/refills": float(sampled.refills),
        }

    def publish(self, version: int) -> Mapping[str, float]:
        """Send the learner's weights to all engines and, every grpo.sync_check_every-th time, prove that they arrived.

        No rank returns before the engines have them: its next sample must come from this version.

        Raises: SyncMismatch, on all ranks, naming the first module whose output differs.
        """
        began = time.perf_counter()
        state = self._learner.full_state(DTYPES[self._config.engine.dtype])
        probe = self._probe()
        gathered = time.perf_counter()
        is_checked = self._num_published % self._config.grpo.sync_check_every == 0
        self._num_published += 1
        box: list[Any] = [None]
        if self._learner.rank == 0:
            metrics = {"time/gather_s": gathered - began} | self._sent_to_engines(version, state, probe)
            why = ""
            if probe is not None and is_checked:
                figures, why = self._verified(version, probe, state)
                metrics |= figures
            box[0] = (metrics, why)
        dist.broadcast_object_list(box, src=0)
        told, why = box[0]
        if why:
            raise SyncMismatch(why)
        found: dict[str, float] = told
        return found

    def _sent_to_engines(
        self, version: int, state: Mapping[str, torch.Tensor], probe: Probe | None
    ) -> dict[str, float]:
        flat, layout = weights.flatten(state.items(), DTYPES[self._config.engine.dtype])
        # Held until the next sync: the pool may still be reading it.
        self._sent = ray.put(flat)
        seconds: float = self._asked(
            self._pool.publish.remote(version, [self._sent], layout, weights.checksum(flat, layout), probe),
            self._patience_s,
            f"the engines to take over version {version} (engine.request_timeout_s, train.collective_timeout_s)",
        )
        return {"time/engine_load_s": seconds, "grpo/sync_mib": flat.nbytes / 2**20}

    def _probe(self) -> Probe | None:
        """What engines with these weights are held to; None for scripted ones: they have no weights that could disagree."""
        if self._config.engine.kind != "vllm":
            return None
        if not self._probes:
            timeout = self._config.engine.request_timeout_s
            self._probes = self._asked(self._pool.probes.remote(NUM_PROBES), timeout, "probe sequences")
        return Probe(self._probes, self._logprobs(self._probes))

    def _verified(self, version: int, probe: Probe, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], str]:
        """How far engines and learner are apart, and what to say of it if that is too far."""
        answers = self._asked(
            self._pool.token_logprobs.remote(probe.sequences),
            self._patience_s,
            f"the engines' log-probabilities under version {version}",
        )
        checked = sync_check.check(answers, probe.logprobs, self._bound)
        figures = {"grpo/sync_max_error": checked.apart.max_abs, "grpo/sync_k3": checked.apart.k3}
        return figures, "" if checked.agree else self._why(version, checked, probe.sequences[0], state)

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

    def _why(self, version: int, checked: Checked, sequence: list[int], state: Mapping[str, torch.Tensor]) -> str:
        """What to say of a mismatch: the first module, in forward order, whose output is not the learner's."""
        settings = self._config.engine
        told = (
            f"after the sync of version {version} engine {checked.worst} and learner are"
            f" {self._bound.told(checked.apart)}"
        )
        if not settings.enforce_eager or settings.dtype != "float32":
            return (
                f"{told}; engine.enforce_eager=true and engine.dtype=float32 would name the first module whose output"
                " differs"
            )
        reference = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self._policy_path), dtype=torch.float32)
        reference.load_state_dict(dict(state), strict=False)
        theirs = self._asked(
            self._pool.module_outputs.remote(sequence, checked.worst), self._patience_s, "its modules' outputs"
        )
        module = weights.first_difference(
            theirs, weights.learner_outputs(reference.eval(), sequence), self._config.grpo.sync_tolerance
        )
        return f"{told}; the first module whose output differs is {module or 'none of those that are traced'}"
