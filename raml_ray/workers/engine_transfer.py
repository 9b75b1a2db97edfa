"""The learner's end of vLLM's native weight transfer, which broadcasts from GPU to GPU.

Written against the vLLM that `engine_arguments.check_version` names, whose classes move from release to release.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.distributed.weight_transfer.base import ModuleSource

from raml_ray.workers import engine_arguments

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import TrainerWeightTransferEngine


class Client(Protocol):
    """Who passes vLLM's four steps on to the engines (its `VLLMWeightSyncClient`)."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class LearnerSource(ModuleSource):
    """A learner's weights under the names of the policy's folder and in the engine's dtype.

    vLLM's own source gives a module's parameters as they are, and a learner's are float32, sharded and perhaps wrapped:
    here names, shapes and dtype come from a module without storage, and the tensors from the learner.
    """

    def __init__(self, architecture: nn.Module, tensors: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        super().__init__(architecture)
        self._tensors = tensors

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self._tensors()


def architecture(policy_path: str, dtype: torch.dtype) -> nn.Module:
    """The policy's modules on the meta device: names, shapes and dtype without storage."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(policy_path))
    return model.to(dtype)


def sender(
    source: LearnerSource, client: Client, *, address: str, port: int, num_engine_ranks: int, bucket_bytes: int
) -> "TrainerWeightTransferEngine[Any]":
    """Meets the engines' ranks at the address. `send_weights` of what comes back iterates the source once.

    Raises: RuntimeError for a vLLM that this was not written for.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    engine_arguments.check_version()
    info = NCCLTrainerInitInfo(
        master_address=address,
        master_port=port,
        world_size=1 + num_engine_ranks,
        packed=True,
        packed_buffer_size_bytes=bucket_bytes,
        rank=0,
    )
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
