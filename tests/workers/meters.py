"""What an operation allocates: the largest tensor, and the memory of all that is kept for the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """The most bytes of any one tensor that the block's operations, backward ones too, gave back."""

    num_bytes = 0
    shape: torch.Size = torch.Size()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(given):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() > self.num_bytes:
                self.num_bytes, self.shape = leaf.untyped_storage().nbytes(), leaf.shape
        return given


@contextmanager
def kept_for_backward() -> Iterator[list[int]]:
    """The bytes of each tensor that the block saves for its backward pass, once each."""
    sizes: list[int] = []
    seen: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and all(tensor is not other for other in seen):
            seen.append(tensor)
            sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
