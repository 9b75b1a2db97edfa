"""Between the miniature and the paper: the paper's chain with small policies, on one GPU and on one node. Not run here."""

from typing import Any

from raml_ray.config import Config, Step, override
from raml_ray.text import paper_prompts

SETS = {"math500": "paper:math500", "aime24": "paper:aime24"}


def _chain(name: str, changes: dict[str, Any]) -> Config:
    """Teacher to report: SFT on the teacher's correct trajectories, GRPO from the base and from SFT, both measured."""
    evaluated = {"base": "", "sft": "sft", "grpo_zero": "grpo_zero", "grpo_cold": "grpo_cold"}
    steps = (
        Step(name="teacher", stage="generate", overrides={"prompt.instruction": paper_prompts.SOLVE_INSTRUCTION}),
        Step(name="verify", stage="verify", data=("teacher",)),
        Step(
            name="sft", stage="sft", data=("verify",), overrides={"prompt.instruction": paper_prompts.SOLVE_INSTRUCTION}
        ),
        Step(name="grpo_zero", stage="grpo", overrides={"prompt.system": paper_prompts.GRPO_SYSTEM}),
        Step(name="grpo_cold", stage="grpo", policy="sft", overrides={"prompt.system": paper_prompts.GRPO_SYSTEM}),
        *(
            Step(
                name=f"evaluate_{each}",
                stage="evaluate",
                policy=policy,
                overrides={"prompt.system": paper_prompts.EVALUATION_SYSTEM, "data.filters": []},
            )
            for each, policy in evaluated.items()
        ),
        Step(name="lhat", stage="analyze", policy="sft", data=("evaluate_sft",)),
        Step(name="report", stage="report"),
    )
    shared = {
        "seed": 42,
        "data.path": "paper:orz-math",
        "data.filters": ["verifiable", "complete", "no_image", "no_markup"],
        "generate.temperature": 0.7,
        "generate.top_k": 50,
        "generate.shard_questions": 8,
        "verify.judge": "paper",
        "engine.dtype": "bfloat16",
        "engine.enforce_eager": False,
        "engine.start_timeout_s": 1200,
        "engine.stall_timeout_s": 600,
        "train.dtype": "bfloat16",
        "train.activation_checkpointing": True,
        "train.weight_decay": 0.01,
        "train.start_timeout_s": 600,
        "sft.learning_rate": 1e-5,
        "sft.schedule": "cosine",
        "sft.num_epochs": 1,
        "grpo.learning_rate": 1e-6,
        "grpo.reward": "paper",
        "grpo.num_trajectories": 16,
        "grpo.num_updated": 16,
        "grpo.sample_timeout_s": 7200,
        "evaluate.sets": SETS,
        "evaluate.temperature": 1.0,
        "evaluate.top_p": 0.8,
        "evaluate.top_k": 50,
        "analyze.gpus_per_worker": 1,
        "analyze.dtype": "bfloat16",
        "analyze.until": "",
        "analyze.probe_memory_mib": 8192,
    }
    return override(Config(name=name, steps=steps), shared | changes)


def one_gpu() -> Config:
    """Qwen2.5-0.5B on one GPU of 24 GB or more, which learner and engine share; an hour or two. Not run here."""
    return _chain(
        "one_gpu_0.5b",
        {
            "policy.path": "Qwen/Qwen2.5-0.5B",
            "steps.teacher.policy.path": "Qwen/Qwen2.5-Math-1.5B-Instruct",
            "data.limit": 1024,
            "generate.num_samples": 8,
            "generate.max_tokens": 2048,
            "steps.teacher.engine.gpus_per_engine": 1,
            # In GRPO the learner's part of 24 GB must hold its 12 GiB and some to spare; the memory is what the engine takes.
            "engine.gpus_per_engine": 0.36,
            "engine.gpu_memory_utilization": 0.35,
            "engine.max_model_len": 3072,
            "train.gpus_per_worker": 0.64,
            "steps.sft.train.gpus_per_worker": 1,
            "train.max_tokens_per_micro_batch": 4096,
            "sft.num_trajectories": 4,
            "sft.pad_to": 8,
            "sft.max_length": 3072,
            "grpo.num_steps": 40,
            "grpo.questions_per_step": 32,
            "grpo.max_tokens": 2048,
            "evaluate.max_tokens": 2048,
            "report.title": "RaML with Qwen2.5-0.5B on one GPU",
        },
    )


def one_node() -> Config:
    """Qwen2.5-1.5B on one node of eight GPUs of 80 GB: four learn while four sample; about a day. Not run here."""
    return _chain(
        "one_node_1.5b",
        {
            "policy.path": "Qwen/Qwen2.5-1.5B",
            "steps.teacher.policy.path": "Qwen/Qwen2.5-Math-7B-Instruct",
            "data.limit": 8192,
            "generate.num_samples": 16,
            "generate.max_tokens": 3072,
            "generate.num_engines": 8,
            "engine.gpus_per_engine": 1,
            "engine.max_model_len": 6144,
            "steps.teacher.engine.max_model_len": 4096,
            "train.gpus_per_worker": 1,
            "train.num_workers": 4,
            "steps.sft.train.num_workers": 8,
            "train.max_tokens_per_micro_batch": 16384,
            "sft.num_trajectories": 8,
            "sft.pad_to": 16,
            "sft.batch_size": 256,
            "sft.max_length": 4096,
            "grpo.num_engines": 4,
            "grpo.weight_sync": "nccl",
            "grpo.num_steps": 100,
            "grpo.questions_per_step": 128,
            "grpo.max_tokens": 4096,
            "evaluate.max_tokens": 4096,
            "evaluate.num_engines": 8,
            "analyze.num_workers": 8,
            "report.title": "RaML with Qwen2.5-1.5B on one node",
        },
    )


BETWEEN = {"one_gpu_0.5b": one_gpu, "one_node_1.5b": one_node}
