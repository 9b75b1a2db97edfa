"""A flattened tensor of which one rank holds one piece, as torch.distributed.checkpoint writes and fills it."""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Piece(Tensor):
    """(whole,) elements, of which `here` holds those from `offset` on: to be saved or filled in place, and no more."""

    here: Tensor
    offset: int

    @staticmethod
    def __new__(cls, here: Tensor, offset: int, whole: int) -> "Piece":
        piece: Piece = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, (whole,), dtype=here.dtype, device=here.device
        )
        piece.here, piece.offset = here.detach(), offset
        return piece

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> NoReturn:
        raise TypeError(f"a piece can be saved or filled, not computed with: {function}")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Piece({self.offset}..{self.offset + self.here.numel()} of {self.shape[0]})"

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size([self.offset]), torch.Size([self.here.numel()]))

    # What torch.distributed._checkpointable asks of a tensor that knows its own pieces.

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        data = TensorWriteData(self._chunk(), TensorProperties.create_from_tensor(self.here), self.shape)
        return [WriteItem(MetadataIndex(name, torch.Size([self.offset])), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]

    def __get_tensor_shard__(self, _: MetadataIndex) -> Tensor:
        return self.here
