"""What a vLLM worker is taught: to take weights from a flat array, and to show its modules' outputs.

vLLM mixes `WorkerExtension` into its worker class; the engine calls the methods by name.
"""

from collections.abc import Iterator

import numpy as np
import torch
import vllm
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.v1.worker.gpu_worker import Worker

from raml_ray.workers import weights

VLLM_SERIES = (0, 32)
"""The vLLM that the reload and the re-packing were written for, and are tested with."""


def repack_tied_head(model: nn.Module) -> None:
    """Brings the CPU kernels' packed copy of a tied lm_head up to date; does nothing where there is none.

    vLLM's layer-wise reload renews every packed weight but this one: the new embedding would meet the old head.
    """
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and "cpu_linear" in vars(module):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


class WorkerExtension(Worker):  # type: ignore[misc]
    """Methods for `collective_rpc`."""


def _nothing() -> Iterator[Tensor]:
    yield from ()
