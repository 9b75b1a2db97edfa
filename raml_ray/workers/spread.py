"""One policy over several GPUs, each with a part of its layers: for looking at policies that no GPU holds alone."""

from torch import nn
from transformers import PreTrainedModel


def device_map(model: PreTrainedModel, num_gpus: int) -> dict[str, str]:
    """Module -> device, as `from_pretrained` takes it: equal runs of layers, and all else on the first.

    What enters and what leaves the model is then on one device, as it is for a policy that lies whole: hidden states go
    back there for the last norm and the output head. Raises: ValueError if there are fewer layers than GPUs.
    """
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"architecture {model.config.model_type!r} keeps its layers where they are not known to be: set"
            " analyze.gpus_per_policy=1"
        )
    if len(layers) < num_gpus:
        raise ValueError(f"analyze.gpus_per_policy={num_gpus} exceeds the policy's {len(layers)} layers: lower it")
    base = model.base_model_prefix
    found = {f"{base}.layers.{index}": f"cuda:{index * num_gpus // len(layers)}" for index in range(len(layers))}
    rest = [f"{base}.{name}" for name, _ in model.base_model.named_children() if name != "layers"]
    rest += [name for name, _ in model.named_children() if name != base]
    return found | dict.fromkeys(rest, "cuda:0")
