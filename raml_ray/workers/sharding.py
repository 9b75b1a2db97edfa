"""A policy split over the learners' ranks: forward, backward, one optimizer step, and its weights gathered again.

What is handed to `accumulate` is this rank's share of a sum that was already divided by the count of *all* ranks, so
gradients are added over ranks and never averaged: any number of ranks and micro-batches gives the same update. Which
library splits the policy is known to `wrap` alone.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from raml_ray.formulas.architecture import Passes
from raml_ray.settings import TrainConfig
from raml_ray.text.batches import Batch
from raml_ray.workers import arrival, attention, lora, watchdog
from raml_ray.workers.policy import TokenLogprobs

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DRAWN = ("drop", "jitter")
"""What is in the names that architectures give to probabilities with which training draws."""


class Update(NamedTuple):
    """What one optimizer step did: `Update(grad_norm=0.83, skipped=False)`."""

    grad_norm: float
    """Global norm of the gradient before clipping."""
    skipped: bool
    """Loss or gradient were not finite; parameters and optimizer state are as they were, on all ranks."""


@dataclass(slots=True)
class Updates:
    """Optimizer steps so far, those that a checkpoint remembers included."""

    asked: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def note(self, skipped: bool) -> None:
        self.asked += 1
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0


@dataclass(slots=True)
class Work:
    """What went through a policy on this rank, for `meter`."""

    forward: Passes = field(default_factory=Passes)
    """Without a gradient."""
    learned: Passes = field(default_factory=Passes)

    def note(self, batch: Batch) -> None:
        """One forward pass of the batch, and a backward pass if gradients are being kept. Weightless ones are no work."""
        if scored := int(batch.response_mask_BT.sum()):
            (self.learned if torch.is_grad_enabled() else self.forward).add(batch.lengths, scored)


class Sharded(ABC):
    """A policy whose parameters, gradients and optimizer state are split over the ranks.

    Every method but `train` and `draw_nothing` is a collective: all ranks call it alike.
    """

    def __init__(
        self, module: TokenLogprobs, device: torch.device, settings: TrainConfig, *, called: nn.Module | None = None
    ) -> None:
        self._module = module
        self._called = called or module
        self._settings = settings
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.updates = Updates()
        self.work = Work()

    @property
    def config(self) -> dict[str, Any]:
        """The model's settings by name, as in its folder's config.json."""
        settings: dict[str, Any] = self._module.model.config.get_text_config().to_dict()
        return settings

    def token_logprobs(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Log-probability of every response token of the batch, (B, T) float32, nats; 0 elsewhere."""
        watchdog.passed()
        self.work.note(batch)
        batch = batch.to(self.device)
        logprob_BT: Tensor = self._called(
            batch.input_ids_BT,
            batch.attention_mask_BT,
            batch.position_ids_BT,
            batch.response_mask_BT,
            temperature,
            batch.constant_BT,
        )
        return logprob_BT

    def train(self, training: bool = True) -> None:
        """Dropout on or off. (Local: no collective.)"""
        self._called.train(training)

    def draw_nothing(self) -> None:
        """From here on no pass draws: every probability of dropout and every jitter is 0. (Local: no collective.)

        Turned off by `train`, dropout would take recomputed activations along: transformers keep both behind one flag.
        """
        model = self._module.model
        for holder in (model.config, model.config.get_text_config(), *model.modules()):
            for name, value in list(vars(holder).items()):
                is_drawn_with = isinstance(holder, _DropoutNd) or any(word in name for word in DRAWN)
                if is_drawn_with and isinstance(value, float):
                    setattr(holder, name, 0.0)

    @abstractmethod
    def accumulate(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this rank's share of the step's loss. The step's last call says so."""

    def step(self, learning_rate: float) -> Update:
        """One AdamW step on the accumulated gradient, clipped to train.grad_clip; skipped if that is not finite."""
        grad_norm = self._step(learning_rate)
        skipped = not math.isfinite(grad_norm)
        self.updates.note(skipped)
        return Update(grad_norm, skipped)

    @abstractmethod
    def _step(self, learning_rate: float) -> float:
        """The gradient's global norm before clipping; not finite if nothing was changed."""

    @abstractmethod
    def take_gradient(self) -> list[Tensor]:
        """This rank's parts of the accumulated gradient, one per weight, which then is forgotten: no step is made of it."""

    def total(self, value: float) -> float:
        """The sum of a number over the ranks (float64)."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        """The largest of the ranks' numbers (float64)."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def _reduced(self, value: float, operation: dist.ReduceOp.RedOpType) -> float:
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(number, operation)
        return float(number)

    def full_tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Every weight whole, one after the other, under the name that the policy's folder has for it; on the device.

        One layer's are whole at a time if the caller lets go of them; they come by one exchange. Tied weights come once.
        Adapters are merged into the weights beside which they lie.
        """
        for name, whole in lora.merged(self._whole(), self._settings):
            yield name, whole.to(dtype) if dtype is not None and whole.is_floating_point() else whole

    @abstractmethod
    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that training keeps (float32, or as they came if they are not trained), without a gradient."""

    def full_state(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """All weights whole on rank 0's CPU, copies; nothing on the other ranks."""
        state: dict[str, Tensor] = {}
        for name, tensor in self.full_tensors(dtype):
            if self.rank == 0:
                state[name] = tensor.to("cpu", copy=True)
        return state

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """What a checkpoint holds, weights and optimizer state: this rank's shards, to be written or filled.

        Any number of ranks can fill theirs from what any other number wrote. Once filled, call `refresh`. Frozen weights
        (train.lora_rank) are those of the policy that the step starts from, and not held again.
        """

    @abstractmethod
    def refresh(self) -> None:
        """Compute with what `state` was filled with."""


def wrap(model: PreTrainedModel, settings: TrainConfig) -> Sharded:
    """Rank 0's policy split over the ranks of the process group that is up. The other ranks' may be on the meta device.

    Parameters are kept in float32, whatever `train.dtype` they are computed with; gradients are added in float32.

    Raises: arrival.Refused, on all ranks, if `train.attention`, `train.packing`, `train.lora_targets` or
    `train.activation_checkpointing` cannot be had with that architecture, or `train.strategy` on this machine.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if settings.gpus_per_worker > 0 else torch.device("cpu")
    model.float()
    if settings.lora_rank:
        lora.add(model, settings)
    chosen = arrival.agreed(lambda: attention.use(model, settings, device, DTYPES[settings.dtype]))
    if dist.get_rank() == 0:
        logger.info("attention of %s policies: %s, %s", model.config.model_type, chosen.name, chosen.why)
    if settings.activation_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise arrival.Refused(
                f"{model.config.model_type} policies cannot compute their layers again in the backward pass: set"
                " train.activation_checkpointing=false"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
    module = TokenLogprobs(model)
    match settings.strategy:
        case "fsdp":
            from raml_ray.workers import sharding_fsdp

            return sharding_fsdp.split(module, device, settings)
        case "deepspeed":
            from raml_ray.workers import sharding_deepspeed

            return sharding_deepspeed.split(module, device, settings)


def layers(module: TokenLogprobs) -> list[nn.Module]:
    """The model's decoder layers, each to be split as one unit.

    Raises: ValueError if it has no list of them.
    """
    for child in module.model.base_model.children():
        if isinstance(child, nn.ModuleList):
            return list(child)
    raise ValueError(f"{type(module.model).__name__} has no list of decoder layers that could be split one by one")


def by_layer(named: Mapping[str, Tensor], module: TokenLogprobs) -> Iterator[dict[str, Tensor]]:
    """The module's weights in their order, a decoder layer's together, as are those that stand before or behind the layers."""
    layer_of = {id(p): number for number, layer in enumerate(layers(module)) for p in layer.parameters()}
    for _, group in groupby(named.items(), lambda entry: layer_of.get(id(entry[1]))):
        yield dict(group)


def optimizer(module: nn.Module, settings: TrainConfig, num_dims: Callable[[nn.Parameter], int]) -> torch.optim.AdamW:
    """AdamW of what is trained: matrices decay, vectors (norms, biases) do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if num_dims(p) >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if num_dims(p) < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        weight_decay=0.0,
        fused=True,  # one pass over the memory instead of a dozen
    )


def moments(optimizer: torch.optim.Optimizer, trained: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a tensor. It makes that at the first step; a checkpoint of step 0 and a restored one need it before."""
    state: dict[str, Tensor] = optimizer.state[trained]
    if not state:
        state["step"] = torch.tensor(0.0, device=trained.device)  # fused AdamW wants it there
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(trained), torch.zeros_like(trained)
    return state
