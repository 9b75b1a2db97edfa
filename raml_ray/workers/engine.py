"""One vLLM engine in this process: token ids in, token ids and their log-probabilities out.

vLLM is imported when the first engine starts (seconds), so that importing this module stays cheap.
"""

import gc
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raml_ray.settings import EngineConfig
from raml_ray.workers import policy
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling, SteppedEngine, refusal
from raml_ray.workers.weights import Layout

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.outputs import CompletionOutput

logger = logging.getLogger(__name__)


class CannotServe(ValueError):
    """No engine can serve this policy with these settings: another attempt would end alike."""


class Engine(SteppedEngine):
    """vLLM behind a few calls."""

    def __init__(self, policy_path: str, settings: EngineConfig, *, seed: int, needs_text: bool = False) -> None:
        """Starts vLLM in this process (on several GPUs: one process per rank).

        With needs_text it reads along what it samples, as stop texts need it.

        Raises: CannotServe if the policy's configuration cannot be read, or needs_text and it has no tokenizer; what
        vLLM raises, which may be a ValueError, too, if memory is short.
        """
        _set_environment(policy_path)
        from transformers import AutoConfig
        from vllm import LLM

        self._settings, self._policy_path, self._version = settings, policy_path, 0
        self._needs_text, self._num_tokens = needs_text, 0
        try:
            tokenizer = policy.load_tokenizer(policy_path) if needs_text else None
            config = AutoConfig.from_pretrained(policy_path)
        except ValueError as error:
            raise CannotServe(str(error)) from error
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
            self._llm: LLM | None = LLM(**arguments(policy_path, settings, longest=self._longest_scored + 1, seed=seed))
        finally:
            # vLLM's CPU worker replaces the function for the whole process by one that does nothing.
            torch.set_num_threads = set_num_threads
        self._vocab_size = int(self._vllm.llm_engine.model_config.get_vocab_size())
        # Handed over by hand: vLLM would load it by the class that config.json names, which may be another.
        self._vllm.llm_engine.output_processor.tokenizer = tokenizer

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

    @property
    def num_unfinished(self) -> int:
        return int(self._vllm.llm_engine.get_num_unfinished_requests())

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def add(self, number: int, request: Request, sampling: Sampling) -> Failure | None:
        """As `SteppedEngine.add`; what fits into max_model_len ends a response early.

        Raises: ValueError for stop texts if the engine was started without needs_text.
        """
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs.engine import tokens_input

        reason = refusal(request.prompt_token_ids, self._vocab_size, self._settings.max_model_len)
        if reason is not None:
            return Failure(reason)
        if sampling.stop and not self._needs_text:
            raise ValueError(f"stop={sampling.stop}: an engine must be started with needs_text=True to see stop texts")
        prompt, params = (
            tokens_input(request.prompt_token_ids),
            params_of(request, sampling, self._settings.max_model_len),
        )
        try:
            self._vllm.llm_engine.add_request(str(number), prompt, params)
        except VLLMValidationError as error:
            return Failure(f"vLLM refuses the request: {error}")
        return None

    def step(self) -> list[tuple[int, Completion]]:
        """As `SteppedEngine.step`. Raises: RuntimeError if vLLM gave a request up; what vLLM raises."""
        outputs = self._vllm.llm_engine.step()
        finished = [(int(output.request_id), self._completion(output.outputs[0])) for output in outputs]
        self._num_tokens += sum(len(completion.token_ids) for _, completion in finished)
        return finished

    def _completion(self, output: "CompletionOutput") -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM gave a request up: finish_reason={output.finish_reason!r}")
        return Completion(
            token_ids=list(output.token_ids),
            logprobs=list(output.logprobs.logprobs),
            finish_reason="stop" if output.finish_reason == "stop" else "length",
            version=self._version,
        )

    def token_logprobs(self, sequences: Sequence[list[int]]) -> list[np.ndarray]:
        """Of each sequence the log-probability of every token but the first, without temperature, nats, (T - 1,).

        Raises: ValueError if a sequence has fewer than two tokens, or more than engine.max_model_len; RuntimeError if
        requests are under way.
        """
        from vllm import SamplingParams, TokensPrompt

        self.check_idle()
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

        Raises: RuntimeError if the ranks of the engine received different weights, or requests are under way.
        """
        self.check_idle()
        checksums = set(self._vllm.collective_rpc("raml_load_weights", args=(flat, layout)))
        if len(checksums) != 1:
            raise RuntimeError(f"the engine's ranks received different weights: checksums {sorted(checksums)}")
        self._vllm.reset_prefix_cache()
        self._version = version
        return str(checksums.pop())

    def module_outputs(self, token_ids: list[int]) -> dict[str, np.ndarray]:
        """Outputs of the modules for one sequence, in forward order, as `weights.learner_outputs` gives them."""
        from vllm import SamplingParams, TokensPrompt

        self.check_idle()
        self._check_scorable(token_ids, "sequence")
        if not self._settings.enforce_eager:
            raise ValueError("engine.enforce_eager=False: modules can only be watched with engine.enforce_eager=True")
        self._vllm.collective_rpc("raml_start_recording")
        params = SamplingParams(temperature=0, max_tokens=1, skip_reading_prefix_cache=True, detokenize=False)
        try:
            self._vllm.generate(TokensPrompt(prompt_token_ids=list(token_ids)), params, use_tqdm=False)
        finally:
            recorded: list[dict[str, np.ndarray]] = self._vllm.collective_rpc("raml_stop_recording")
        # Ranks that share a layer have the same of it; those of later layers come later.
        return {name: output for rank in recorded for name, output in rank.items()}

    def close(self) -> None:
        """Ends the engine, frees its memory and the process group that it made; it answers nothing afterwards."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            cleanup_dist_env_and_memory()


def arguments(policy_path: str, settings: EngineConfig, *, longest: int, seed: int) -> dict[str, Any]:
    """What vLLM is started with, whatever drives it; `longest` is the most tokens that it has to hold of a sequence."""
    on_gpu = torch.cuda.is_available()
    return {
        "model": policy_path,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "seed": seed,
        "dtype": settings.dtype,
        "max_model_len": longest,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_memory_bytes": None if on_gpu else int(settings.kv_cache_gib * 2**30),
        "enforce_eager": settings.enforce_eager,
        # On CPU a prompt that is read in parts fails: vLLM sets its seeded generator back, which CPU ones cannot.
        "enable_chunked_prefill": on_gpu,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": "raml_ray.workers.engine_extension.WorkerExtension",
    }


def params_of(request: Request, sampling: Sampling, max_model_len: int) -> "SamplingParams":
    """How vLLM is told to draw a response that ends, at the latest, at max_model_len."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    room = min(sampling.max_tokens, max_model_len - len(request.prompt_token_ids))
    return SamplingParams(
        seed=request.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        min_tokens=min(sampling.min_tokens, room),
        max_tokens=room,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # sampling.stop_token_ids says all
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,  # a stop text may be one
        output_kind=RequestOutputKind.FINAL_ONLY,  # what is unfinished costs no object per token
    )


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
