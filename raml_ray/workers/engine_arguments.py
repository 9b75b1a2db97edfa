"""What vLLM is started with and asked, and what it reads from this process."""

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from raml_ray.settings import EngineConfig
from raml_ray.workers.sampling import Request, Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams

SCORED_AT_ONCE = 4
"""Sequences that find a place in an engine beside engine.max_num_seqs requests, to be scored."""


VLLM_SERIES = "0.32."
"""The vLLM whose loading and transfer of weights, and packing on CPU, this project was written for and is tested with."""


def check_version() -> None:
    """Raises: RuntimeError if this vLLM is not the one that weights are given to as it needs it."""
    import vllm

    if not vllm.__version__.startswith(VLLM_SERIES):
        raise RuntimeError(
            f"weights are loaded as vLLM {VLLM_SERIES}x needs it, and this is vLLM {vllm.__version__}:"
            f" install vllm=={VLLM_SERIES}*, or check raml_ray/workers/engine_extension.py and engine_transfer.py against"
            " the new release"
        )


def arguments(policy_path: str, settings: EngineConfig, *, longest: int, seed: int) -> dict[str, Any]:
    """What vLLM is started with, whatever drives it; `longest` is the most tokens that it has to hold of a sequence."""
    from vllm.config import WeightTransferConfig

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
        "max_num_seqs": settings.max_num_seqs + SCORED_AT_ONCE,
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
        # Nothing is opened before the learner asks for it (grpo.weight_sync=nccl).
        "weight_transfer_config": WeightTransferConfig(backend="nccl") if on_gpu else None,
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
        bad_words=list(sampling.bad_words),
        logit_bias=dict(sampling.logit_bias) or None,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # sampling.stop_token_ids says all
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,  # a stop text may be one
        output_kind=RequestOutputKind.FINAL_ONLY,  # what is unfinished costs no object per token
    )


def start_fast_on_cpu(architectures: Sequence[str], settings: EngineConfig) -> None:
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


def set_environment(policy_path: str) -> None:
    """What vLLM reads from the environment only."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # engines on one node would all be bound to the same cores
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would win over engine.kv_cache_gib, and knows whole GiB only
    if Path(policy_path).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
