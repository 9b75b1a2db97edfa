"""Low-rank adapters: the policy's weights stay as they are, and beside each chosen one a product of two thin matrices is
trained (Hu et al. 2021, arXiv:2106.09685).

Whoever wants the policy's weights (engines, the step's folder) gets them merged, under their own names; what computes
and what is checkpointed are the adapters.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from transformers import PreTrainedModel

from raml_ray.settings import TrainConfig

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
"""How peft names what lies within an adapted layer, in this order: its own weight and bias, then A, then B."""


def add(model: PreTrainedModel, settings: TrainConfig) -> None:
    """Freeze the model and put an adapter of rank `train.lora_rank` beside every linear layer that `train.lora_targets`
    names, in place. A is drawn from torch's generator and B is 0: the policy is still the one that it was.

    Raises: ValueError if a target is none of the model's linear layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    targets = set(settings.lora_targets) or linear
    if unknown := targets - linear:
        raise ValueError(
            f"train.lora_targets: {', '.join(sorted(unknown))} are no linear layers of {model.config.model_type}"
            f" policies: name some of {', '.join(sorted(linear)) or 'none, there are none: set train.lora_rank=0'}"
        )
    config = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=sorted(targets))  # type: ignore[arg-type]
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)


def merged(tensors: Iterable[tuple[str, Tensor]], settings: TrainConfig) -> Iterator[tuple[str, Tensor]]:
    """The weights of the policy that the adapted one computes: W + (`lora_alpha` / `lora_rank`) B A, under W's name.

    `tensors` are whole, in the model's own order, in which those of a layer lie together; one layer's are held at once.
    """
    base: tuple[str, Tensor] | None = None
    for name, tensor in tensors:
        if name.endswith(f"{BASE}weight"):
            base = name.replace(BASE, "."), tensor
        elif name.endswith(DOWN):
            down_RI = tensor
        elif name.endswith(UP):
            assert base is not None
            scale = settings.lora_alpha / settings.lora_rank
            yield base[0], base[1] + scale * (tensor.float() @ down_RI.float()).to(base[1].dtype)
            base = None
        else:
            yield name.replace(BASE, "."), tensor
    assert base is None
