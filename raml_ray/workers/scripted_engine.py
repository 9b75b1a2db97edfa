"""An engine without a model: it answers deterministic tokens. For tests of the pipeline and for its own benchmarks."""

import json
import math
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raml_ray.settings import EngineConfig
from raml_ray.workers import weights
from raml_ray.workers.engine import Completion, Failure, Request, Sampling, refusal


class ScriptedEngine:
    """What `Engine` is to its callers. Every token is uniform over the vocabulary and depends on nothing but the seed.

    A file `fault-MOMENT-KIND-ANYTHING` in the policy folder befalls one engine, the first that comes by, and is then
    gone: at the moment `start`, `load` or `generate` (halfway through its requests) it will `die`, `hang` or `raise`.
    """

    def __init__(
        self,
        policy_path: str,
        settings: EngineConfig,
        *,
        seed: int,
        vocab_size: int = 0,
        seconds_per_token: float = 0.0,
    ) -> None:
        """Takes the vocabulary's size from the policy folder's config.json unless it is given.

        Raises: ValueError if it is in neither place.
        """
        config = Path(policy_path) / "config.json"
        if not vocab_size and not config.is_file():
            raise ValueError(f"{policy_path} has no config.json: a scripted engine takes its vocab_size from there")
        self._vocab_size = vocab_size or int(json.loads(config.read_text())["vocab_size"])
        self._settings, self._policy_path, self._seed, self._version = settings, policy_path, seed, 0
        self._seconds_per_token = seconds_per_token
        self._befall("start")

    def _befall(self, moment: str) -> None:
        for file in sorted(Path(self._policy_path).glob(f"fault-{moment}-*")):
            try:
                file.unlink()
            except FileNotFoundError:  # it has befallen another engine
                continue
            match file.name.split("-")[2]:
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(3600)
                case _:
                    raise RuntimeError(f"a scripted engine came by {file.name}")

    @property
    def version(self) -> int:
        return self._version

    @property
    def policy_path(self) -> str:
        return self._policy_path

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion | Failure]:
        """A response of 1 to max_tokens tokens, or why there is none, for every request."""
        half = len(requests) // 2
        replies = [self._reply(request, sampling) for request in requests[:half]]
        self._befall("generate")
        return replies + [self._reply(request, sampling) for request in requests[half:]]

    def _reply(self, request: Request, sampling: Sampling) -> Completion | Failure:
        reason = refusal(request.prompt_token_ids, self._vocab_size, self._settings.max_model_len)
        if reason is not None:
            return Failure(reason)
        script = random.Random(request.seed)
        room = min(sampling.max_tokens, self._settings.max_model_len - len(request.prompt_token_ids))
        others = [token for token in range(self._vocab_size) if token not in sampling.stop_token_ids]
        num_tokens = script.randint(1, room + 1)
        token_ids = [script.choice(others) for _ in range(min(num_tokens, room))]
        stops = bool(sampling.stop_token_ids) and num_tokens <= room
        if stops:
            token_ids[-1] = script.choice(sampling.stop_token_ids)
        elif len(token_ids) < room:  # nothing ends a response but its length
            token_ids += script.choices(others, k=room - len(token_ids))
        time.sleep(self._seconds_per_token * len(token_ids))
        logprobs = [-math.log(self._vocab_size)] * len(token_ids)
        return Completion(token_ids, logprobs, "stop" if stops else "length", self._version)

    def token_logprobs(self, sequences: Sequence[list[int]]) -> list[np.ndarray]:
        """Of each sequence ln(1 / V) for every token but the first, nats, (T - 1,)."""
        return [np.full(len(sequence) - 1, -math.log(self._vocab_size), dtype=np.float32) for sequence in sequences]

    def load_weights(self, flat: np.ndarray, layout: weights.Layout, version: int) -> str:
        """The checksum of what arrived, which is then forgotten."""
        self._befall("load")
        weights.views(flat, layout)
        self._version = version
        return weights.checksum(flat, layout)

    def module_outputs(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        """Nothing: it has no modules."""
        return {}

    def close(self) -> None:
        """Nothing is held."""
