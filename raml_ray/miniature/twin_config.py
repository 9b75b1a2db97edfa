"""The architecture of the miniature's twins, by a name that no other program knows: none takes one for a softmax policy."""

from transformers import AutoConfig, Qwen2Config

MODEL_TYPE = "raml_twin"


class TwinConfig(Qwen2Config):
    """A Qwen2 of that shape with another kind of attention."""

    model_type = MODEL_TYPE
    use_cache: bool = False
    twin_attention: str = "linear"
    """`linear` or `delta`."""


AutoConfig.register(MODEL_TYPE, TwinConfig)
