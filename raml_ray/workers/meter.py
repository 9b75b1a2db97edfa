"""What a learner logs of its own work, whatever it learns: where the seconds of a step went, and what they were used for."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raml_ray.formulas import architecture
from raml_ray.settings import TrainConfig
from raml_ray.workers.sharding import Sharded, Work


class Meter:
    """Measures step after step; a step begins where the one before was told. Of its methods `told` is a collective."""

    def __init__(self, policy: Sharded, settings: TrainConfig) -> None:
        self._policy = policy
        self._architecture = architecture.of(policy.config)
        self._adapters = 0
        if self._architecture and settings.lora_rank:
            self._adapters = self._architecture.adapter_parameters(settings.lora_rank, settings.lora_targets)
        self._peak_tflops = _peak_tflops(policy.device, settings)
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._work = Work()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """`busy` with the step's update, whose passes count as its work."""
        self._policy.work = self._work
        with self.busy("time/update_s"):
            yield
        self._policy.work = Work()

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """Count the block's seconds of work under that name (`time/update_s`)."""
        began = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def waited(self, name: str, seconds: float) -> None:
        """Of the seconds under that name so many were no work: they are idle ones."""
        self._seconds[name] -= seconds

    def told(self) -> dict[str, float]:
        """The metrics of the step that ends here."""
        now = time.perf_counter()
        step_s, seconds = now - self._began, self._seconds
        metrics = {
            **seconds,
            "time/step_s": step_s,
            "time/idle_s": max(0.0, step_s - sum(seconds.values())),
            **self._throughput(seconds.get("time/update_s", 0.0)),
            **_peaks(self._policy),
        }
        self._began, self._seconds, self._work = now, {}, Work()
        return metrics

    def figures(self) -> dict[str, float]:
        """What is left to be said behind the last step: the seconds of the checkpoint that no line has told."""
        seconds = self._seconds.get("time/checkpoint_s")
        return {} if seconds is None else {"time/last_checkpoint_s": seconds}

    def _throughput(self, update_s: float) -> dict[str, float]:
        policy, work = self._policy, self._work
        tokens = policy.total(work.learned.tokens)
        metrics = {"learner/tokens_per_s_per_device": tokens / policy.world_size / max(update_s, 1e-9)}
        if self._architecture and self._peak_tflops:
            mine = architecture.model_flops(self._architecture, work.forward, work.learned, adapters=self._adapters)
            flops = policy.total(mine) / policy.world_size
            metrics["learner/mfu"] = flops / max(update_s, 1e-9) / (self._peak_tflops * 1e12)
        return metrics


def _peak_tflops(device: torch.device, settings: TrainConfig) -> float | None:
    if settings.peak_tflops:
        return settings.peak_tflops
    # Other dtypes have other peaks.
    if device.type != "cuda" or settings.dtype != "bfloat16":
        return None
    return architecture.peak_tflops(torch.cuda.get_device_name(device))


def _peaks(policy: Sharded) -> dict[str, float]:
    """The most memory that a rank has held since its process began."""
    host_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metrics = {"learner/peak_memory_gib": policy.largest(host_kib) / 2**20}
    if policy.device.type == "cuda":
        held = policy.largest(torch.cuda.max_memory_allocated(policy.device))
        metrics["learner/peak_device_memory_gib"] = held / 2**30
    return metrics
