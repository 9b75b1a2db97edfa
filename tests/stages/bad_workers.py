"""Workers that Ray Data should not wait for. They import nothing: a worker's start is part of what is timed."""

import os
import time


class Sleeper:
    """Answers shard 0 at once, and another one later than a test's patience lasts."""

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[int]]:
        time.sleep(20 * (batch["shard"][0] != 0))
        return {"shard": list(batch["shard"])}


class Mortal:
    """Dies of every shard."""

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[int]]:
        os._exit(1)
