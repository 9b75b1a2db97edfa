"""Which policies L-hat can be probed on, and how far each kind of their layers sees."""

from transformers import PretrainedConfig, PreTrainedModel

from raml_ray.workers.recurrent_forms import FORMS

SUPPORTED = ("gemma", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""Architectures (config.model_type) whose every layer attends to what the mask allows, at the positions it is given."""
BY_KIND = ("gemma3_text", "qwen2", "qwen3")
"""Those of them that take one mask per kind of layer."""
FLEX = "flex_attention"
"""Attention that skips the pairs which do not see each other: on GPUs."""
ATTENTION = ("sdpa", "eager", FLEX)


def check(model: PreTrainedModel) -> None:
    """Raises: ValueError if the architecture, one of its settings, or its attention is none that a probe knows."""
    config = model.config
    if is_recurrent(model):
        return
    if config.model_type not in SUPPORTED:
        raise ValueError(
            f"{config.model_type} policies cannot be probed: known are, by attention, {', '.join(SUPPORTED)}, and, by their"
            f" state, {', '.join(FORMS)}"
        )
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
    """Make the model skip the pairs that do not see each other, where its device can: FlexAttention, compiled, on a GPU."""
    if model.device.type == "cuda" and not is_recurrent(model):
        model.set_attn_implementation(FLEX)


def windows(config: PretrainedConfig) -> dict[str, int | None]:
    """Kind of layer -> positions that it sees, None for all."""
    settings = config.to_dict()
    kinds = settings.get("layer_types") or ["full_attention"]
    if config.model_type == "mistral" and settings.get("sliding_window"):
        kinds = ["sliding_attention"]
    return {kind: settings["sliding_window"] if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}
