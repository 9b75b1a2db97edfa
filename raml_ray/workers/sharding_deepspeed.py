"""Sharding by DeepSpeed: ZeRO-1 splits the optimizer state, 2 the gradients too, 3 the weights too.

Training keeps float32 weights and AdamW's moments as flat pieces; a checkpoint holds each rank's piece of every named
weight (`Piece`), so that another number of ranks, or another stage, can read it.
"""

import importlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raml_ray.settings import TrainConfig
from raml_ray.workers.arrival import Arrival, agreed
from raml_ray.workers.pieces import Piece
from raml_ray.workers.policy import TokenLogprobs, untied
from raml_ray.workers.sharding import DTYPES, Sharded, by_layer, layers, moments, optimizer

WEIGHTS_SPLIT = 3
"""The stage that splits weights too."""
NO_MICRO_STEP = -1
"""What stages 1 and 2 count micro-batches from."""


def split(module: TokenLogprobs, device: torch.device, settings: TrainConfig) -> Sharded:
    """Rank 0's policy split over all ranks. At stages 1 and 2 every rank holds all weights, as ZeRO has it; at stage 3
    a unit at a time while it is split.

    Raises: ValueError, on all ranks, if DeepSpeed is not installed.
    """
    agreed(_installed)
    import deepspeed

    _quiet_without_compiler(device)
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    stage, config = settings.zero_stage or WEIGHTS_SPLIT, _config(settings, device)
    arrival = Arrival(module, device, DTYPES[settings.dtype])
    for unit in [*layers(module), module]:
        arrival.bring(unit)
        if stage == WEIGHTS_SPLIT:
            deepspeed.zero.Init(module=unit, config_dict_or_path=config, dtype=DTYPES[settings.dtype])
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer(module, settings, _num_dims), config=config)
    return _DeepSpeed(engine, device, settings)


def _installed() -> None:
    try:
        importlib.import_module("deepspeed")
    except ImportError as error:
        raise ValueError(
            f"train.strategy=deepspeed: DeepSpeed cannot be imported ({error}): make setup installs it"
        ) from None


def _quiet_without_compiler(device: torch.device) -> None:
    """Keep DeepSpeed from compiling and from chatting; tell it where it is."""
    from deepspeed import ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # It would look for compilers, and on a CPU build a kernel for inference that training never calls. AdamW is torch's.
    ops.__compatible_ops__ = {}
    # Under Ray a process sees its own GPUs, and the place among them is not the rank on the node.
    os.environ["LOCAL_RANK"] = str(device.index or 0)


def _config(settings: TrainConfig, device: torch.device) -> dict[str, Any]:
    on_cpu = {"device": "cpu", "pin_memory": device.type == "cuda"}
    stage = settings.zero_stage or WEIGHTS_SPLIT
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": device.type == "cuda"}
    if settings.offload:
        zero |= {"offload_optimizer": on_cpu} | ({"offload_param": on_cpu} if stage == WEIGHTS_SPLIT else {})
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.grad_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": settings.dtype == "bfloat16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**62,
    }


def _num_dims(parameter: nn.Parameter) -> int:
    # A split weight has no shape of its own left.
    return len(parameter.ds_shape) if hasattr(parameter, "ds_shape") else parameter.ndim


class _DeepSpeed(Sharded):
    """`engine` is DeepSpeed's; of its optimizers it uses what checkpoints of other layouts (universal ones) rest on."""

    def __init__(self, engine: Any, device: torch.device, settings: TrainConfig) -> None:
        super().__init__(engine.module, device, settings, called=engine)
        self._engine, self._zero, self._adamw = engine, engine.optimizer, engine.basic_optimizer
        self._splits_weights = hasattr(self._zero, "fp32_partitioned_groups_flat")
        self._adds_whole_gradients = hasattr(self._zero, "fp32_groups_gradients")
        """On every rank: ZeRO-1 in bfloat16."""

    def accumulate(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks.
        self._engine.backward(loss * self.world_size)

    def _step(self, learning_rate: float) -> float:
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def take_gradient(self) -> list[Tensor]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what is offloaded may be on its way
        found = [part.float().clone() for part in self._gradients()]
        self._forget()
        return found

    def _gradients(self) -> Iterator[Tensor]:
        """This rank's piece of every weight's accumulated gradient, where it holds one: flat, in DeepSpeed's own buffers."""
        from deepspeed.utils import safe_get_local_grad

        trained: list[Any] = [tensor for tensor in self._named().values() if tensor.requires_grad]
        for parameter in trained:
            if self._splits_weights:
                yield safe_get_local_grad(parameter).narrow(0, 0, self._mine(parameter)[1])
            elif (fragment := parameter._hp_mapping) is not None:
                mine = fragment.lp_fragment_address
                gradient = fragment.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
                yield gradient.narrow(0, mine.start, mine.numel) if self._adds_whole_gradients else gradient

    def _forget(self) -> None:
        """Do with the accumulated gradient what DeepSpeed's `step` does with one that is not finite."""
        zero = self._zero
        if self._splits_weights:
            zero._pre_step()
            zero._overflow_clean_up(zero.loss_scale)
            return
        zero.zero_grad(set_to_none=True)
        if not self._adds_whole_gradients:
            zero.micro_step_id = NO_MICRO_STEP
            zero.averaged_gradients.clear()
            zero.all_grad_tensors.clear()
            zero.reset_cpu_buffers()

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        for part in by_layer(self._named(), self._module):
            whole = self._trained_whole(part) | self._frozen_whole(part)
            for name, tensor in part.items():
                yield name, whole.get(name, tensor.detach())

    def _trained_whole(self, named: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those that are trained, by one exchange: every rank adds its pieces to zeros."""
        trained = {n: t for n, t in named.items() if isinstance(t, nn.Parameter) and t.requires_grad}
        shapes = [getattr(tensor, "ds_shape", tensor.shape) for tensor in trained.values()]
        flat = torch.zeros(sum(map(math.prod, shapes)), device=self.device)
        parts = flat.split([math.prod(shape) for shape in shapes])
        for (name, tensor), part in zip(trained.items(), parts, strict=True):
            if isinstance(piece := self._trained(name, tensor).get(f"model.{name}"), Piece):
                part[piece.offset : piece.offset + len(piece.here)] = piece.here
        if trained:
            dist.all_reduce(flat)
        return {name: part.view(shape) for name, part, shape in zip(trained, parts, shapes, strict=True)}

    def _frozen_whole(self, named: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those that are split and not trained, by one exchange of DeepSpeed's."""
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        frozen = {n: t for n, t in named.items() if hasattr(t, "ds_id") and not t.requires_grad}
        if not frozen:
            return {}
        with GatheredParameters(list(frozen.values())):
            return {name: tensor.detach().clone() for name, tensor in frozen.items()}

    def state(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, tensor in self._named().items():
            if not isinstance(tensor, nn.Parameter):
                tensors[f"model.{name}"] = tensor
            elif tensor.requires_grad:
                tensors |= self._trained(name, tensor)
        return tensors

    def _mine(self, parameter: Any) -> tuple[int, int]:
        """Where this rank's piece of a split weight begins, and its elements without padding (0: there are none)."""
        offset = self.rank * parameter.partition_numel()
        return offset, max(0, min(parameter.partition_numel(), parameter.ds_numel - offset))

    def _trained(self, name: str, parameter: Any) -> dict[str, Tensor]:
        """This rank's pieces of a weight that is trained: none, if all of it is another rank's."""
        if self._splits_weights:
            group, start, _ = self._zero.grad_position[self._zero.get_param_id(parameter)]
            flat, whole = self._zero.fp32_partitioned_groups_flat[group], parameter.ds_numel
            offset, size = self._mine(parameter)
        elif (fragment := parameter._hp_mapping) is not None:
            flat, whole = self._adamw.param_groups[fragment.param_group_index]["params"][0], parameter.numel()
            start, size = fragment.hp_fragment_address.start, fragment.hp_fragment_address.numel
            offset = fragment.lp_fragment_address.start
        else:
            size = 0
        if not size:
            return {}
        state = moments(self._adamw, flat)
        flats = {f"model.{name}": flat} | {f"optimizer.{name}.{key}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        pieces = {key: Piece(values.detach().narrow(0, start, size), offset, whole) for key, values in flats.items()}
        return {**pieces, f"optimizer.{name}.step": state["step"]}

    def refresh(self) -> None:
        if not self._splits_weights:
            self._zero.update_lp_params()
            return
        for group in range(len(self._zero.fp32_partitioned_groups_flat)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)
        if kept_whole := self._zero.persistent_parameters:
            kept_whole[0].partition(kept_whole)
            kept_whole[0].all_gather(kept_whole)

    def _named(self) -> dict[str, Tensor]:
        return {name.removeprefix("model."): tensor for name, tensor in untied(self._module).items()}
