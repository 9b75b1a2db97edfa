"""One vLLM engine in this process: token ids in, token ids and their log-probabilities out.

vLLM is imported when the first engine starts (seconds), so that importing this module stays cheap.
"""

import gc
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from raml_ray.settings import EngineConfig
from raml_ray.workers.weights import Layout

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.outputs import CompletionOutput

logger = logging.getLogger(__name__)


class Request(NamedTuple):
    """One trajectory to sample: `Request([5, 9, 2], seed=77)`."""

    prompt_token_ids: list[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Raises: ValueError for settings that no distribution has.
    """

    temperature: float
    top_p: float
    top_k: int
    """-1 is off."""
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    """The only tokens that end a response; the one that does is the response's last."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}: must be finite and not negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.top_k < -1:
            raise ValueError(f"top_k={self.top_k}: must be -1 (off), 0 (off) or a count")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: must be at least 1")

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled response."""

    token_ids: list[int]
    """The token that stopped it included."""
    logprobs: list[float]
    """Of each token under the distribution that it was drawn from (temperature, top-p and top-k applied), nats."""
    finish_reason: Literal["stop", "length"]
    version: int
    """Of the weights that sampled it."""


class Failure(NamedTuple):
    """Why a request has no completion: `Failure("prompt of 600 tokens: engine.max_model_len=512 ...")`."""

    reason: str


def refusal(prompt_token_ids: Sequence[int], vocab_size: int, max_model_len: int) -> str | None:
    """Why such a prompt cannot be answered, or None if it can."""
    if not prompt_token_ids:
        return "empty prompt: at least one token is needed"
    if len(prompt_token_ids) >= max_model_len:
        return (
            f"prompt of {len(prompt_token_ids)} tokens: engine.max_model_len={max_model_len} leaves no room for a"
            " response; raise it or shorten the prompt"
        )
    if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= vocab_size:
        return f"prompt holds token ids outside the policy's vocabulary of {vocab_size}: wrong tokenizer"
    return None


class Engine:
    """vLLM behind four calls. Requests and replies are in the same order; one bad request spoils no other."""

    def __init__(self, policy_path: str, settings: EngineConfig, *, seed: int) -> None:
        """Starts vLLM in this process (on GPUs with tensor parallelism: one process per rank).

        Raises: ValueError if the policy cannot be served with these settings.
        """
        _set_environment(policy_path)
        from transformers import AutoConfig
        from vllm import LLM

        self._settings, self._policy_path, self._version = settings, policy_path, 0
        config = AutoConfig.from_pretrained(policy_path)
        # A sequence is scored by sampling a token after it, which is thrown away: one position more than is ever read.
        within = settings.max_model_len <= config.to_dict().get("max_position_embeddings", 0)
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = str(int(within))
        self._longest_scored = settings.max_model_len if within else settings.max_model_len - 1
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            _start_fast_on_cpu(config.architectures or [], settings)
        set_num_threads = torch.set_num_threads
        if not on_gpu:
            torch.set_num_threads(settings.cpus_per_engine)
        try:
            self._llm: LLM | None = LLM(
                policy_path,
                skip_tokenizer_init=True,
                trust_remote_code=False,
                load_format="safetensors",
                generation_config="vllm",
                seed=seed,
                dtype=settings.dtype,
                max_model_len=self._longest_scored + 1,
                max_num_seqs=settings.max_num_seqs,
                tensor_parallel_size=settings.tensor_parallel_size,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                kv_cache_memory_bytes=None if on_gpu else int(settings.kv_cache_gib * 2**30),
                enforce_eager=settings.enforce_eager,
                # On CPU a prompt that is read in parts fails: vLLM sets its seeded generator back, which CPU ones cannot.
                enable_chunked_prefill=on_gpu,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                worker_extension_cls="raml_ray.workers.engine_extension.WorkerExtension",
            )
        finally:
            # vLLM's CPU worker replaces the function for the whole process by one that does nothing.
            torch.set_num_threads = set_num_threads
        self._vocab_size = int(self._vllm.llm_engine.model_config.get_vocab_size())

    @property
    def _vllm(self) -> "LLM":
        if self._llm is None:
            raise ValueError("the engine has been closed")
        return self._llm

    @property
    def version(self) -> int:
        """Of the weights that it holds; 0 are those of the policy folder."""
        return self._version

    @property
    def policy_path(self) -> str:
        return self._policy_path

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion | Failure]:
        """A response, or why there is none, for every request; what fits into max_model_len ends a response early."""
        from vllm import TokensPrompt

        replies: list[Completion | Failure | None] = []
        prompts, params = [], []
        for request in requests:
            reason = refusal(request.prompt_token_ids, self._vocab_size, self._settings.max_model_len)
            replies.append(None if reason is None else Failure(reason))
            if reason is None:
                prompts.append(TokensPrompt(prompt_token_ids=request.prompt_token_ids))
                params.append(self._params(request, sampling))
        outputs = iter(self._vllm.generate(prompts, params, use_tqdm=False) if prompts else [])
        return [self._completion(next(outputs).outputs[0]) if reply is None else reply for reply in replies]

    def _completion(self, output: "CompletionOutput") -> Completion:
        return Completion(
            token_ids=list(output.token_ids),
            logprobs=list(output.logprobs.logprobs),
            finish_reason="stop" if output.finish_reason == "stop" else "length",
            version=self._version,
        )

    def _params(self, request: Request, sampling: Sampling) -> "SamplingParams":
        from vllm import SamplingParams

        room = self._settings.max_model_len - len(request.prompt_token_ids)
        return SamplingParams(
            seed=request.seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=min(sampling.max_tokens, room),
            stop_token_ids=list(sampling.stop_token_ids),
            ignore_eos=True,  # sampling.stop_token_ids says all
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )

    def token_logprobs(self, sequences: Sequence[list[int]]) -> list[np.ndarray]:
        """Of each sequence the log-probability of every token but the first, without temperature, nats, (T - 1,).

        Raises: ValueError if a sequence has fewer than two tokens, or more than engine.max_model_len.
        """
        from vllm import SamplingParams, TokensPrompt

        for index, sequence in enumerate(sequences):
            self._check_scorable(sequence, f"sequence {index}")
            if len(sequence) < 2:
                raise ValueError(f"sequence {index}: one token has no predecessor to be predicted from")
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences]
        outputs = self._vllm.generate(prompts, params, use_tqdm=False)
        return [np.asarray(output.prompt_logprobs.logprobs, dtype=np.float32) for output in outputs]

    def _check_scorable(self, sequence: Sequence[int], name: str) -> None:
        if len(sequence) > self._longest_scored:
            raise ValueError(
                f"{name} of {len(sequence)} tokens: engine.max_model_len={self._settings.max_model_len} allows"
                f" {self._longest_scored}; raise it"
            )
        reason = refusal(sequence, self._vocab_size, len(sequence) + 1)
        if reason is not None:
            raise ValueError(f"{name}: {reason}")

    def load_weights(self, flat: np.ndarray, layout: Layout, version: int) -> str:
        """Takes over weights in the checkpoint's names; the checksum of what arrived (`weights.checksum`).

        Raises: RuntimeError if the ranks of the engine received different weights.
        """
        checksums = set(self._vllm.collective_rpc("raml_load_weights", args=(flat, layout)))
        if len(checksums) != 1:
            raise RuntimeError(f"the engine's ranks received different weights: checksums {sorted(checksums)}")
        self._vllm.reset_prefix_cache()
        self._version = version
        return str(checksums.pop())

    def module_outputs(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        """Outputs of the modules for one sequence, in forward order, as `weights.learner_outputs` gives them."""
        from vllm import SamplingParams, TokensPrompt

        self._check_scorable(token_ids, "sequence")
        if not self._settings.enforce_eager:
            raise ValueError("engine.enforce_eager=False: modules can only be watched with engine.enforce_eager=True")
        self._vllm.collective_rpc("raml_start_recording")
        params = SamplingParams(temperature=0, max_tokens=1, skip_reading_prefix_cache=True, detokenize=False)
        try:
            self._vllm.generate(TokensPrompt(prompt_token_ids=list(token_ids)), params, use_tqdm=False)
        finally:
            recorded: list[dict[str, np.ndarray]] = self._vllm.collective_rpc("raml_stop_recording")
        return recorded[0]

    def close(self) -> None:
        """Ends the engine, frees its memory and the process group that it made; it answers nothing afterwards."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            cleanup_dist_env_and_memory()


def _start_fast_on_cpu(architectures: Sequence[str], settings: EngineConfig) -> None:
    """Leaves out what a start in this process would spend half a minute on and not need."""
    from vllm import ModelRegistry

    # vLLM asks a subprocess (20 s without its cache) what the model class can do, lest CUDA be initialised here.
    for name in architectures:
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    if settings.enforce_eager:
        # Eager holds for the model only: the sampler's two small functions would still be compiled (C++, 17 s).
        torch._dynamo.config.disable = True
    # vLLM collects garbage five times while it starts, each time over all that the imports made.
    gc.freeze()


def _set_environment(policy_path: str) -> None:
    """What vLLM reads from the environment only."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # engines on one node would all be bound to the same cores
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would win over engine.kv_cache_gib, and knows whole GiB only
    if Path(policy_path).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
