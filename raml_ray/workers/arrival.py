"""How a policy reaches every rank: from rank 0, one unit at a time, so that no other rank ever holds it whole."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

Made = TypeVar("Made")


class Refused(ValueError):
    """What all ranks refuse alike and would refuse again, with the remedy: no restart of theirs mends it."""


class Arrival:
    """Rank 0's tensors on their way to all ranks. What the others hold may be on the meta device; it is replaced."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        # Tied weights have several places and travel once.
        self._places: dict[Tensor, list[tuple[dict[str, nn.Parameter | None] | dict[str, Tensor | None], str]]] = {}
        for module in model.modules():
            for slots in (module._parameters, module._buffers):
                for name, tensor in slots.items():
                    if tensor is not None:
                        self._places.setdefault(tensor, []).append((slots, name))

    def bring(self, unit: nn.Module) -> None:
        """Put on the device, on all ranks, what has not arrived of the unit: parameters in `dtype`, buffers as they are.

        A collective.
        """
        for tensor in [*unit.parameters(), *unit.buffers()]:
            places = self._places.pop(tensor, [])
            if not places:
                continue
            dtype = self._dtype if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() else tensor.dtype
            if dist.get_rank() == 0:
                arrived = tensor.detach().to(self._device, dtype).contiguous()
            else:
                arrived = torch.empty(tensor.shape, dtype=dtype, device=self._device)
            dist.broadcast(arrived, src=0)
            if isinstance(tensor, nn.Parameter):
                arrived = nn.Parameter(arrived, requires_grad=tensor.requires_grad)
            for slots, name in places:
                slots[name] = arrived  # type: ignore[assignment]


def agreed(prepared: Callable[[], Made]) -> Made:
    """What `prepared` gives here. What one rank refuses, all refuse. A collective.

    Raises: Refused that says what `prepared` raised as a ValueError on any rank.
    """
    made, why = None, ""
    try:
        made = prepared()
    except ValueError as error:
        why = str(error)
    reasons = [""] * dist.get_world_size()
    dist.all_gather_object(reasons, why)
    if said := [reason for reason in reasons if reason]:
        raise Refused(said[0])
    return cast(Made, made)
