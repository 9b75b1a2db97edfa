"""Tests of what a GPU alone can show: `pytest -m gpu tests/gpu`. Without one they are skipped."""

import tempfile
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(scope="session")
def group() -> Iterator[None]:
    """A process group of this process and its GPU, for all tests: DeepSpeed keeps hold of the first one that it sees."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.cuda.set_device(0)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        yield
        dist.destroy_process_group()
