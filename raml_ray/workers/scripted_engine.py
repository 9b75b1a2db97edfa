"""An engine without a model: it answers deterministic tokens. For tests of the pipeline and for its own benchmarks."""

import heapq
import itertools
import json
import math
import os
import random
import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raml_ray.settings import EngineConfig
from raml_ray.workers import weights
from raml_ray.workers.sampling import Completion, Failure, FinishReason, Request, Sampling, Span, SteppedEngine, refusal

HELD_S = 0.02
"""A step that may give no reply, so that it does not take a whole core."""


@dataclass(frozen=True, slots=True)
class Script:
    """What `scripted.json` in the policy folder may say: `{"seconds_per_step": 0.001, "tokens": [1, 40]}`."""

    seconds_per_step: float = 0.0
    tokens: tuple[int, int] | None = None
    """Fewest and most tokens of a response, all equally likely; without it 1 to as many as there is room for."""

    @classmethod
    def of(cls, policy_path: str) -> "Script":
        """Raises: TypeError for a name that it does not know."""
        file = Path(policy_path) / "scripted.json"
        return cls(**json.loads(file.read_text())) if file.is_file() else cls()


class Running(NamedTuple):
    """A response under way: all its tokens, of which one more counts with every step."""

    token_ids: list[int]
    stops: bool
    began: int
    """Steps before its first."""
    versions: list[tuple[int, int]]
    """Versions of the weights, each with the number of tokens that stood before it came."""


class ScriptedEngine(SteppedEngine):
    """What `Engine` is to its callers. Every token is uniform over the vocabulary and depends on nothing but the seed.

    A step takes `Script.seconds_per_step` and gives one token to each of the oldest engine.max_num_seqs requests.

    A file `fault-MOMENT-KIND-ANYTHING` in the policy folder befalls one engine, the first that comes by, and is then
    gone: at the moment `start`, `load` or `generate` (when half of its requests are finished) it will `die`, `hang` or
    `raise`. A file `poison-KIND-TOKEN` stays: in every engine it befalls the step that a prompt with this token enters.
    A file `hold-NUMBER` that is there at an engine's start keeps it, while it is there, from more than so many replies.
    """

    def __init__(
        self, policy_path: str, settings: EngineConfig, *, seed: int, needs_text: bool = False, vocab_size: int = 0
    ) -> None:
        """Takes the vocabulary's size from the policy folder's config.json unless it is given.

        Raises: ValueError if it is in neither place, or for needs_text: its tokens are no text.
        """
        config = Path(policy_path) / "config.json"
        if not vocab_size and not config.is_file():
            raise ValueError(f"{policy_path} has no config.json: a scripted engine takes its vocab_size from there")
        if needs_text:
            raise ValueError("engine.kind=scripted: its tokens are no text, and no stop text can end a response")
        self._vocab_size = vocab_size or int(json.loads(config.read_text())["vocab_size"])
        self._settings, self._policy_path, self._seed, self._version = settings, policy_path, seed, 0
        self._script = Script.of(policy_path)
        self._waiting: deque[tuple[int, Request, Sampling]] = deque()
        self._running: list[tuple[int, int, Running]] = []  # a heap: the step that ends it, its number
        self._ended: list[tuple[int, Completion]] = []
        self._num_steps = self._num_tokens = self._num_added = self._num_finished = self._num_replies = 0
        self._hold = next(Path(policy_path).glob("hold-*"), None)
        self._befall("start")

    def _befall(self, moment: str) -> None:
        for file in sorted(Path(self._policy_path).glob(f"fault-{moment}-*")):
            try:
                file.unlink()
            except FileNotFoundError:  # it has befallen another engine
                continue
            _suffer(file.name)

    def _start_waiting(self) -> None:
        poisons = [file.name for file in Path(self._policy_path).glob("poison-*")] if self._waiting else []
        while self._waiting and len(self._running) < self._settings.max_num_seqs:
            number, request, sampling = self._waiting.popleft()
            for poison in poisons:
                if int(poison.split("-")[2]) in request.prompt_token_ids:
                    _suffer(poison)
            token_ids, stops = self._reply(request, sampling)
            running = Running(token_ids, stops, self._num_steps, [(self._version, 0)])
            heapq.heappush(self._running, (self._num_steps + len(token_ids), number, running))

    @property
    def version(self) -> int:
        return self._version

    @property
    def policy_path(self) -> str:
        return self._policy_path

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._running) + len(self._ended)

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def add(self, number: int, request: Request, sampling: Sampling) -> Failure | None:
        """As `SteppedEngine.add`. Raises: ValueError for stop texts."""
        if sampling.stop:
            raise ValueError(f"stop={sampling.stop}: a scripted engine's tokens are no text")
        reason = refusal(request.prompt_token_ids, self._vocab_size, self._settings.max_model_len)
        if reason is not None:
            return Failure(reason)
        if not self.num_unfinished:
            self._num_added = self._num_finished = 0
        self._num_added += 1
        self._waiting.append((number, request, sampling))
        return None

    def step(self) -> list[tuple[int, Completion]]:
        time.sleep(self._script.seconds_per_step)
        if self._is_held():
            time.sleep(HELD_S)
            return []
        self._start_waiting()
        self._num_steps += 1
        finished, self._ended = self._ended, []
        while self._running and self._running[0][0] <= self._num_steps and not self._is_held(len(finished)):
            _, number, running = heapq.heappop(self._running)
            finished.append((number, self._completion(running, "stop" if running.stops else "length")))
        self._num_tokens += sum(len(reply.token_ids) for _, reply in finished)
        self._num_finished += len(finished)
        self._num_replies += len(finished)
        if finished and 2 * self._num_finished >= self._num_added:
            self._befall("generate")
        return finished

    def _is_held(self, num_more: int = 0) -> bool:
        """Whether it may give no more replies than these now."""
        if self._hold is None or self._num_replies + num_more < int(self._hold.name.split("-")[1]):
            return False
        return self._hold.exists()

    def cut(self) -> None:
        self._ended += [(number, Completion([], [], "cut", [])) for number, _, _ in self._waiting]
        self._ended += [(number, self._completion(running, "cut")) for _, number, running in self._running]
        self._waiting.clear()
        self._running.clear()

    def _completion(self, running: Running, reason: FinishReason) -> Completion:
        token_ids = running.token_ids[: self._num_steps - running.began]
        starts = [*running.versions, (self._version, len(token_ids))]
        spans = [Span(version, start, end) for (version, start), (_, end) in itertools.pairwise(starts) if start < end]
        return Completion(token_ids, [-math.log(self._vocab_size)] * len(token_ids), reason, spans)

    def _reply(self, request: Request, sampling: Sampling) -> tuple[list[int], bool]:
        """All tokens of a response, and whether its last one stops it."""
        script = random.Random(request.seed)
        room = min(sampling.max_tokens, self._settings.max_model_len - len(request.prompt_token_ids))
        fewest, most = self._script.tokens or (1, room + 1)
        fewest = max(fewest, min(sampling.min_tokens, room))
        num_tokens = script.randint(fewest, max(fewest, most))
        stops = bool(sampling.stop_token_ids) and num_tokens <= room
        # Without a token that stops it nothing ends a response but its length.
        others = _all_but(sampling.stop_token_ids, self._vocab_size)
        token_ids = script.choices(others, k=num_tokens if stops else room)
        if stops:
            token_ids[-1] = script.choice(sampling.stop_token_ids)
        return token_ids, stops

    def token_logprobs(self, sequences: Sequence[list[int]]) -> list[np.ndarray]:
        """Of each sequence ln(1 / V) for every token but the first, nats, (T - 1,)."""
        return [np.full(len(sequence) - 1, -math.log(self._vocab_size), dtype=np.float32) for sequence in sequences]

    def load_weights(self, buckets: Iterable[weights.Packed], version: int) -> list[str]:
        """As `Engine.load_weights`; what arrived is then forgotten."""
        self._befall("load")
        checksums = []
        for arrays, layout in buckets:
            weights.views(arrays, layout)
            checksums.append(weights.checksum(arrays, layout))
        self._version = version
        for _, _, running in self._running:
            running.versions.append((version, min(self._num_steps - running.began, len(running.token_ids))))
        return checksums

    def module_outputs(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        """Nothing: it has no modules."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


def _suffer(name: str) -> None:
    """What the file of that name wants. Raises: RuntimeError if it is that."""
    match name.split("-")[2 if name.startswith("fault") else 1]:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case _:
            raise RuntimeError(f"a scripted engine came by {name}")


@lru_cache(maxsize=8)
def _all_but(left_out: tuple[int, ...], vocab_size: int) -> list[int]:
    return [token for token in range(vocab_size) if token not in left_out]
