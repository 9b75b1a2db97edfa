"""What many tests share."""

import os

# Before torch is imported anywhere: the machine's cores belong to several processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback only
os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A real Ray of four logical CPUs, for all tests that need one."""
    import ray

    ray.init("local", num_cpus=4, object_store_memory=300 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()
