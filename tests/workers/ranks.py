"""A process group of gloo ranks for tests: real processes, a file as their meeting point, no network."""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRELOADED = ["transformers.models.qwen2.modeling_qwen2", "torch.distributed.checkpoint", "torch.distributed.fsdp"]


@contextmanager
def alone() -> Iterator[None]:
    """A group of this process only."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def run(function: Callable[..., Any], num_ranks: int, *arguments: Any) -> list[Any]:
    """What function(*arguments) returns on each rank of a group of new processes."""
    with tempfile.TemporaryDirectory() as folder:
        # Ranks are forked off a process that has imported what takes long, and nothing else.
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        mp.start_processes(_rank, (num_ranks, folder, function, arguments), nprocs=num_ranks, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(num_ranks)]


def _rank(rank: int, num_ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=num_ranks)
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
