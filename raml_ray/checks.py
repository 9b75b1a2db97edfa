"""What one setting allows another. Every function raises ValueError with both names and a remedy."""

import re
from collections.abc import Sequence
from typing import Any

from raml_ray import faults
from raml_ray.published import Published
from raml_ray.settings import (
    BaseConfig,
    DataConfig,
    DrillConfig,
    EngineConfig,
    EvaluateConfig,
    GenerateConfig,
    GrpoConfig,
    MiniatureConfig,
    SftConfig,
    TrainConfig,
)


def counts(grpo: GrpoConfig, evaluate: EvaluateConfig, sft: SftConfig) -> None:
    """Nothing is chosen from fewer than there are to be."""
    if grpo.num_updated > grpo.num_trajectories:
        raise ValueError(
            f"grpo.num_updated={grpo.num_updated} exceeds grpo.num_trajectories={grpo.num_trajectories}:"
            " only sampled trajectories can be updated on"
        )
    if evaluate.k > evaluate.num_samples:
        raise ValueError(
            f"evaluate.k={evaluate.k} exceeds evaluate.num_samples={evaluate.num_samples}:"
            " k of n cannot be drawn from fewer than k samples"
        )
    if sft.num_trajectories > sft.pad_to:
        raise ValueError(
            f"sft.num_trajectories={sft.num_trajectories} exceeds sft.pad_to={sft.pad_to}:"
            " only the trajectories that are counted can be chosen"
        )


def miniature(task: MiniatureConfig, base: BaseConfig, steps: Sequence[Any]) -> None:
    """The embedded task, the policy that is made for it, and the steps that take that."""
    _twins(base, steps)
    for name, operands in (("num_operands", task.num_operands), ("deeper_operands", task.deeper_operands)):
        if operands > task.num_slots:
            raise ValueError(
                f"miniature.{name}={operands} exceeds miniature.num_slots={task.num_slots}: every operand needs a slot"
            )
    if base.hidden_size % base.num_heads:
        raise ValueError(f"base.hidden_size={base.hidden_size} is no multiple of base.num_heads={base.num_heads}")
    if base.kind == "random" and base.attention != "softmax":
        raise ValueError(
            f"base.attention={base.attention} is of the miniature's policy: set base.kind=miniature, or leave it at softmax"
        )


def _twins(base: BaseConfig, steps: Sequence[Any]) -> None:
    """What a run's steps may do with policies of other attention."""
    attentions = {step.name: step.overrides.get("base.attention", base.attention) for step in steps}
    for step in steps:
        attention = attentions.get(step.policy, "softmax")
        if attention != "softmax" and step.stage != "analyze":
            raise ValueError(
                f"steps: {step.name!r} builds on {step.policy!r}, whose base.attention={attention} no engine or learner"
                " knows: only `analyze` takes it; set it to softmax"
            )


def pattern(name: str, text: str) -> None:
    """A regular expression (or none) whose first group is wanted."""
    try:
        groups = re.compile(text).groups if text else 1
    except re.error as error:
        raise ValueError(f"{name}={text!r} is no regular expression: {error}") from None
    if groups < 1:
        raise ValueError(f"{name}={text!r} has no group: put the answer's part into parentheses")


def outer_loss(sft: SftConfig) -> None:
    """Answers are looked for where the loss is of them alone."""
    pattern("sft.answer_pattern", sft.answer_pattern)
    if sft.answer_pattern and sft.outer_loss == "all_tokens":
        raise ValueError(
            f"sft.answer_pattern={sft.answer_pattern!r} has no effect on sft.outer_loss=all_tokens: leave it out, or set"
            " sft.outer_loss=answer_only"
        )


def adapters(train: TrainConfig) -> None:
    """Adapters have a size before they have anything else."""
    for name in ("lora_alpha", "lora_targets"):
        value = getattr(train, name)
        if not train.lora_rank and value != TrainConfig.model_fields[name].default:
            raise ValueError(
                f"train.{name}={value!r} has no effect on train.lora_rank=0: leave it out, or set the adapters' rank"
            )


def parallel_sizes(engine: EngineConfig) -> None:
    """An engine has one GPU per part of the model, or none at all."""
    ranks = engine.tensor_parallel_size * engine.pipeline_parallel_size
    sizes = (
        f"engine.tensor_parallel_size={engine.tensor_parallel_size} times"
        f" engine.pipeline_parallel_size={engine.pipeline_parallel_size}"
    )
    if not engine.gpus_per_engine and ranks > 1:
        raise ValueError(
            f"{sizes} needs a GPU for each part of the model, and engine.gpus_per_engine=0 gives none:"
            f" set engine.gpus_per_engine={ranks}, or both sizes to 1"
        )
    if max(engine.gpus_per_engine, ranks) > 1 and engine.gpus_per_engine != ranks:
        raise ValueError(
            f"engine.gpus_per_engine={engine.gpus_per_engine:g} differs from {sizes}, which is the GPUs that one engine"
            f" uses: set engine.gpus_per_engine={ranks}, or other sizes"
        )


def learners(train: TrainConfig) -> None:
    """What a strategy or a device does not have is not asked of it."""
    if train.zero_stage and train.strategy != "deepspeed":
        raise ValueError(
            f"train.zero_stage={train.zero_stage} has no effect under train.strategy={train.strategy}: set"
            " train.strategy=deepspeed, or leave it out"
        )
    if train.offload and not train.gpus_per_worker:
        raise ValueError(
            "train.offload=true moves what lies on a GPU to CPU memory, and train.gpus_per_worker=0 gives none:"
            " set train.gpus_per_worker=1, or train.offload=false"
        )
    if train.attention == "flash_attention_2" and not (train.gpus_per_worker and train.dtype == "bfloat16"):
        raise ValueError(
            f"train.attention=flash_attention_2 computes in bfloat16 on a GPU, and train.dtype={train.dtype} with"
            f" train.gpus_per_worker={train.gpus_per_worker:g}: set train.dtype=bfloat16 train.gpus_per_worker=1, or"
            " train.attention=auto"
        )


def response_ends(generate: GenerateConfig, evaluate: EvaluateConfig, engine: EngineConfig) -> None:
    """When a response may end."""
    if generate.min_tokens > generate.max_tokens:
        raise ValueError(
            f"generate.min_tokens={generate.min_tokens} exceeds generate.max_tokens={generate.max_tokens}:"
            " lower it, or allow longer responses"
        )
    for name, stop in (("generate.stop", generate.stop), ("evaluate.stop", evaluate.stop)):
        if not all(stop):
            raise ValueError(f"{name}={list(stop)}: an empty text would end every response at once; leave it out")
        if stop and engine.kind == "scripted":
            raise ValueError(f"{name}={list(stop)}: the tokens of engine.kind=scripted are no text; leave it empty")


def engines(stage: str, num: int | tuple[int, int]) -> None:
    """Raises: ValueError if these are no numbers of engines."""
    fewest, most = (num, num) if isinstance(num, int) else num
    if not 1 <= fewest <= most:
        raise ValueError(
            f"{stage}.num_engines={num}: give a number from 1, or the fewest and the most, for example"
            f" {stage}.num_engines=1,4"
        )


def published(evaluate: EvaluateConfig, row: Published | None) -> None:
    """A row of the paper is of one k."""
    if row is not None and evaluate.k != row.k:
        raise ValueError(
            f"evaluate.published={evaluate.published} is of evaluate.k={row.k}, not of {evaluate.k}: set that, or leave"
            " evaluate.published empty"
        )


def set_names(evaluate: EvaluateConfig) -> None:
    """A set's name begins the ids of its questions, up to the first `/`."""
    for name in evaluate.sets:
        if not name or "/" in name:
            raise ValueError(f"evaluate.sets.{name}: a set's name must not be empty or hold `/`; rename it")


def policy_gradient(grpo: GrpoConfig, data: DataConfig) -> None:
    """What of GRPO goes together: nothing is set that would have no effect."""
    for name, needs, is_there in (
        ("layout", "grpo.reward=paper", grpo.reward == "paper"),
        ("correction_cap", "grpo.correction=tis or mis", grpo.correction != "none"),
        ("kl_estimator", "grpo.kl_coefficient above 0", grpo.kl_coefficient > 0),
        ("gradient_variance_draws", "grpo.gradient_variance_every above 0", grpo.gradient_variance_every > 0),
    ):
        value = getattr(grpo, name)
        if value != GrpoConfig.model_fields[name].default and not is_there:
            raise ValueError(f"grpo.{name}={value} has an effect with {needs} alone: set that too, or leave it out")
    if grpo.overlong_tokens is not None and grpo.overlong_tokens > grpo.max_tokens:
        raise ValueError(
            f"grpo.overlong_tokens={grpo.overlong_tokens} exceeds grpo.max_tokens={grpo.max_tokens}: the last so many of"
            " a response's tokens are meant"
        )
    if grpo.compute_matched and grpo.questions_per_step * grpo.num_trajectories % grpo.num_updated:
        raise ValueError(
            f"grpo.compute_matched: grpo.questions_per_step={grpo.questions_per_step} times"
            f" grpo.num_trajectories={grpo.num_trajectories} trajectories are no multiple of"
            f" grpo.num_updated={grpo.num_updated}: choose one that divides them"
        )
    if grpo.selection == "lhat_descent" and data.answers == "code":
        raise ValueError(
            "grpo.selection=lhat_descent asks how likely the gold answer is, and data.answers=code has none: choose"
            " another selection"
        )


def drill(settings: DrillConfig) -> None:
    """Faults that are to befall a run are named so that they can."""
    try:
        faults.parse(settings.faults)
    except ValueError as error:
        raise ValueError(f"drill.faults: {error}") from None


def learner_probe(train: TrainConfig) -> None:
    """Who probes while a policy learns says on what, and the other way round."""
    if bool(train.probe_every) != bool(train.probe_data):
        raise ValueError(
            f"train.probe_every={train.probe_every} and train.probe_data={train.probe_data!r} need each other: name the step"
            " whose judged trajectories are probed (train.probe_data=verify), or set neither"
        )


def asynchrony(grpo: GrpoConfig) -> None:
    """Nothing is under way when new weights come to a synchronous run."""
    if not grpo.max_staleness and grpo.partial_rollouts != "wait":
        raise ValueError(
            f"grpo.partial_rollouts={grpo.partial_rollouts} has no effect with grpo.max_staleness=0, where nothing is"
            " under way when new weights come: set grpo.max_staleness=1 or more, or leave it at wait"
        )


def weight_sync(grpo: GrpoConfig, engine: EngineConfig, train: TrainConfig) -> None:
    """NCCL knows GPUs alone, and no two of its ranks share one."""
    if grpo.weight_sync == "nccl":
        for name, is_so, remedy in (
            (f"engine.kind={engine.kind}", engine.kind == "vllm", "engine.kind=vllm"),
            (f"engine.gpus_per_engine={engine.gpus_per_engine:g}", engine.gpus_per_engine >= 1, "1 or more"),
            (f"train.gpus_per_worker={train.gpus_per_worker:g}", train.gpus_per_worker >= 1, "1"),
        ):
            if not is_so:
                raise ValueError(
                    f"grpo.weight_sync=nccl sends from GPU to GPU, and {name} has none of its own: set that to {remedy},"
                    " or grpo.weight_sync=object_store"
                )
