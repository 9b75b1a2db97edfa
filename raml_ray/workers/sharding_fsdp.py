"""Sharding by torch's FSDP2: each decoder layer a unit of its own, gathered while it computes."""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from raml_ray.settings import TrainConfig
from raml_ray.workers.arrival import Arrival
from raml_ray.workers.policy import TokenLogprobs, untied
from raml_ray.workers.sharding import DTYPES, Sharded, by_layer, layers, moments, optimizer


def split(module: TokenLogprobs, device: torch.device, settings: TrainConfig) -> Sharded:
    """Rank 0's policy split over all ranks; a unit at a time is whole on each of them while it is split."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    dtype = DTYPES[settings.dtype]
    precision = MixedPrecisionPolicy(param_dtype=None if dtype is torch.float32 else dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if settings.offload else OffloadPolicy()
    arrival = Arrival(module, device, torch.float32)
    for unit in [*layers(module), module]:
        arrival.bring(unit)
        fully_shard(unit, mesh=mesh, mp_policy=precision, offload_policy=offload)
        assert isinstance(unit, FSDPModule)
        # Gloo knows neither averages nor premultiplied sums.
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_gradient_divide_factor(1.0)
    return Fsdp(module, device, settings)


class Fsdp(Sharded):
    def __init__(self, module: TokenLogprobs, device: torch.device, settings: TrainConfig) -> None:
        super().__init__(module, device, settings)
        self._optimizer = optimizer(module, settings, lambda parameter: parameter.ndim)

    def accumulate(self, loss: Tensor, *, last: bool) -> None:
        root = self._module
        assert isinstance(root, FSDPModule)
        root.set_requires_gradient_sync(last)  # ranks exchange gradients at the last call only
        root.set_is_last_backward(last)
        loss.backward()

    def _step(self, learning_rate: float) -> float:
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=False)
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if math.isfinite(grad_norm):
            scale = min(1.0, self._settings.grad_clip / (grad_norm + 1e-6))
            for gradient in gradients:
                _local(gradient).mul_(scale)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def take_gradient(self) -> list[Tensor]:
        found = [_local(p.grad).clone() for p in self._module.parameters() if p.grad is not None]
        self._optimizer.zero_grad(set_to_none=True)
        return found

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        for part in by_layer(self._named(), self._module):
            if self.world_size > 1:
                yield from gathered(part, self.device, self.world_size)
            else:  # the shard is the whole, and no copy of it needed
                yield from ((name, _local(tensor.detach().to(self.device))) for name, tensor in part.items())

    def state(self) -> dict[str, Tensor]:
        named = {n: t for n, t in self._named().items() if not isinstance(t, nn.Parameter) or t.requires_grad}
        tensors = {f"model.{name}": tensor for name, tensor in named.items()}
        for name, tensor in named.items():
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                for key, value in moments(self._optimizer, tensor).items():
                    tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    def refresh(self) -> None:
        pass  # what it computes with is what `state` gives

    def _named(self) -> dict[str, Tensor]:
        return {name.removeprefix("model."): tensor for name, tensor in untied(self._module).items()}


def gathered(named: Mapping[str, Tensor], device: torch.device, world_size: int) -> Iterator[tuple[str, Tensor]]:
    """These float32 weights whole, on the device, all of them by one exchange between the ranks; what is not split as
    it is. Rank r has rows r * n to (r + 1) * n of a weight, where n is the rows over the ranks, rounded up."""
    shapes = {
        name: (-(-tensor.shape[0] // world_size), tensor.shape[1:])
        for name, tensor in named.items()
        if isinstance(tensor, DTensor)
    }
    sizes = {name: rows * math.prod(row) for name, (rows, row) in shapes.items()}
    mine = torch.zeros(sum(sizes.values()), device=device)
    for piece, name in zip(mine.split(list(sizes.values())), sizes, strict=True):
        local = _local(named[name].detach()).flatten()
        piece[: len(local)] = local  # offloaded ones come back to the device
    everyones = mine.new_empty(world_size * len(mine))  # in one dimension: gloo cuts it along the first
    dist.all_gather_into_tensor(everyones, mine)
    pieces = dict(zip(sizes, everyones.view(world_size, -1).split(list(sizes.values()), dim=1), strict=True))
    for name, tensor in named.items():
        if name in pieces:
            rows, row = shapes[name]
            yield name, pieces[name].reshape(world_size * rows, *row)[: tensor.shape[0]]
        else:
            yield name, tensor.detach().to(device)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
