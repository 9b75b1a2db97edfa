"""A policy split over the learners' ranks: forward, backward, one optimizer step, and its weights gathered again.

What is handed to `accumulate` is this rank's share of a sum that was already divided by the count of *all* ranks, so
gradients are added over ranks and never averaged: any number of ranks and micro-batches gives the same update.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from raml_ray.formulas.architecture import Passes
from raml_ray.settings import TrainConfig
from raml_ray.text.batches import Batch
from raml_ray.workers import attention, lora
from raml_ray.workers.policy import TokenLogprobs, untied

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Update(NamedTuple):
    """What one optimizer step did: `Update(grad_norm=0.83, skipped=False)`."""

    grad_norm: float
    """Global norm of the gradient before clipping."""
    skipped: bool
    """Loss or gradient were not finite; parameters and optimizer state are as they were, on all ranks."""


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


class Sharded:
    """A policy whose parameters, gradients and optimizer state are split over the ranks (FSDP2).

    Every method but `train` is a collective: all ranks call it alike.
    """

    def __init__(
        self, module: TokenLogprobs, optimizer: torch.optim.Optimizer, device: torch.device, settings: TrainConfig
    ) -> None:
        self._module = module
        self._optimizer = optimizer
        self._settings = settings
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        self.work = Work()

    @property
    def config(self) -> dict[str, Any]:
        """The model's settings by name, as in its folder's config.json."""
        settings: dict[str, Any] = self._module.model.config.get_text_config().to_dict()
        return settings

    def token_logprobs(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Log-probability of every response token of the batch, (B, T) float32, nats; 0 elsewhere."""
        self.work.note(batch)
        batch = batch.to(self.device)
        logprob_BT: Tensor = self._module(
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
        self._module.train(training)

    def accumulate(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this rank's share of the step's loss. Ranks exchange gradients at the last call only."""
        root = self._module
        assert isinstance(root, FSDPModule)
        root.set_requires_gradient_sync(last)
        root.set_is_last_backward(last)
        loss.backward()

    def step(self, learning_rate: float) -> Update:
        """One AdamW step on the accumulated gradient, clipped to train.grad_clip; skipped if that is not finite."""
        parameters = [p for p in self._module.parameters() if p.requires_grad]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=False)
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        skipped = not math.isfinite(grad_norm)
        if skipped:
            self.num_skipped += 1
            self.num_skipped_in_a_row += 1
        else:
            self.num_skipped_in_a_row = 0
            scale = min(1.0, self._settings.grad_clip / (grad_norm + 1e-6))
            for parameter in parameters:
                if parameter.grad is not None:
                    _local(parameter.grad).mul_(scale)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Update(grad_norm, skipped)

    def take_gradient(self) -> list[Tensor]:
        """This rank's parts of the accumulated gradient, one per weight, which then is forgotten: no step is made of it."""
        found = [_local(p.grad).clone() for p in self._module.parameters() if p.grad is not None]
        self._optimizer.zero_grad(set_to_none=True)
        return found

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

        Only one whole tensor exists at a time if the caller lets go of it (one adapted layer's). Tied weights come once.
        Adapters are merged into the weights beside which they lie.
        """
        for name, whole in lora.merged(self._whole(), self._settings):
            yield name, whole.to(dtype) if dtype is not None and whole.is_floating_point() else whole

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._named().items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            yield name, whole.detach()

    def full_state(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """All weights whole on rank 0's CPU, copies; nothing on the other ranks."""
        state: dict[str, Tensor] = {}
        for name, tensor in self.full_tensors(dtype):
            if self.rank == 0:
                state[name] = tensor.to("cpu", copy=True)
        return state

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds, weights and optimizer state: this rank's shards, to be written or filled.

        Frozen weights (train.lora_rank) are those of the policy that the step starts from, and not held again.
        """
        named = {n: t for n, t in self._named().items() if not isinstance(t, nn.Parameter) or t.requires_grad}
        tensors = {f"model.{name}": tensor for name, tensor in named.items()}
        for name, tensor in named.items():
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                for key, value in self._moments(tensor).items():
                    tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        # AdamW makes its state at the first step; a checkpoint of step 0 and a restored one need it before.
        state: dict[str, Tensor] = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0, device=self.device)  # fused AdamW wants it there
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _named(self) -> dict[str, Tensor]:
        return {name.removeprefix("model."): tensor for name, tensor in untied(self._module).items()}


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def wrap(model: PreTrainedModel, settings: TrainConfig) -> Sharded:
    """The policy split over the ranks of the process group that is up, each decoder layer a unit of its own.

    Parameters are kept in float32, whatever `train.dtype` they are computed with; gradients are added in float32.

    Raises: ValueError if `train.strategy` cannot be had, or `train.packing` or `train.lora_targets` with that architecture.
    """
    if settings.strategy != "fsdp":
        raise ValueError(f"train.strategy={settings.strategy!r} is not built yet: set train.strategy=fsdp")
    device = torch.device("cuda", torch.cuda.current_device()) if settings.gpus_per_worker > 0 else torch.device("cpu")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    dtype = DTYPES[settings.dtype]
    model.float()
    if settings.lora_rank:
        lora.add(model, settings)
    if settings.packing:
        attention.use_packed(model, device, dtype)
    precision = MixedPrecisionPolicy(param_dtype=None if dtype is torch.float32 else dtype, reduce_dtype=torch.float32)
    module = TokenLogprobs(model)
    for unit in [*_layers(model), module]:
        fully_shard(unit, mesh=mesh, mp_policy=precision)
        assert isinstance(unit, FSDPModule)
        # Gloo knows neither averages nor premultiplied sums.
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_gradient_divide_factor(1.0)
    optimizer = torch.optim.AdamW(
        _groups(module, settings.weight_decay),
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        weight_decay=0.0,
        fused=True,  # one pass over the memory instead of a dozen
    )
    return Sharded(module, optimizer, device, settings)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    for child in model.base_model.children():
        if isinstance(child, nn.ModuleList):
            return list(child)
    raise ValueError(f"{type(model).__name__} has no list of decoder layers that could be sharded one by one")


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay, vectors (norms, biases) do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
