"""Which policies L-hat can be probed on, and how far each kind of their layers sees."""

from transformers import PretrainedConfig, PreTrainedModel

from raml_ray.workers.recurrent_forms import FORMS

SUPPORTED = (
    "cohere",
    "cohere2",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
)
"""Architectures (config.model_type) that are probed exactly by test. Others are looked at when they come
(`probe_proof`)."""
FLEX = "flex_attention"
"""Attention that skips the pairs which do not see each other: on GPUs."""
ATTENTION = ("sdpa", "eager", FLEX)


KNOWN = f"known are, by attention, {', '.join(SUPPORTED)}, and, by their state, {', '.join(FORMS)}"


def check(model: PreTrainedModel) -> None:
    """Raises: ValueError if one of the policy's settings, its attention or its state is none that a probe knows."""
    config = model.config
    if is_recurrent(model):
        return
    if model._is_stateful:
        raise ValueError(f"{config.model_type} policies cannot be probed: {KNOWN}")
    settings = config.to_dict()
    if unknown := set(settings.get("layer_types") or ()) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"{config.model_type} with {', '.join(sorted(unknown))} layers cannot be probed")
    rope = settings.get("rope_parameters") or {}
    for entry in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if (kind := entry.get("rope_type")) in ("dynamic", "longrope"):
            raise ValueError(
                f"{config.model_type} with {kind} RoPE cannot be probed: its angles depend on the row's length"
            )
    if config._attn_implementation not in ATTENTION:
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} takes no block mask: load the policy with 'sdpa'"
        )


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether all that the policy knows of its past is a state."""
    return model.config.model_type in FORMS


def use_blocks(model: PreTrainedModel) -> None:
    """Make the model skip the pairs that do not see each other, where its device can: FlexAttention, compiled, on a GPU.

    Raises: ValueError as `check`.
    """
    check(model)
    if model.device.type == "cuda" and not is_recurrent(model):
        model.set_attn_implementation(FLEX)


def windows(config: PretrainedConfig) -> dict[str, int | None]:
    """Kind of layer -> positions that it sees, None for all. Layers that name no kinds all have the window, if there is one."""
    settings = config.to_dict()
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    kinds = settings.get("layer_types") or ["sliding_attention" if window else "full_attention"]
    return {kind: settings["sliding_window"] if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}
