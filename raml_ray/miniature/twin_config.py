"""The settings of the miniature's twins. Imported, it makes them known to transformers, at the cost of its model imports."""

from transformers import AutoConfig, Qwen2Config

from raml_ray.miniature import TWIN


class TwinConfig(Qwen2Config):
    """A Qwen2 of that shape with another kind of attention."""

    model_type = TWIN
    use_cache: bool = False
    twin_attention: str = "linear"
    """`linear` or `delta`."""


AutoConfig.register(TWIN, TwinConfig)
