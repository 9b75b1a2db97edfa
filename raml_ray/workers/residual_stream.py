"""What the layers of a policy pass on: read at chosen tokens, or with a subspace taken out of it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raml_ray.formulas.subspaces import without


def layers(model: PreTrainedModel, chosen: Sequence[int]) -> dict[int, nn.Module]:
    """Number (from 1) -> layer, of the chosen ones; of all if none is.

    Raises: ValueError if the architecture keeps its layers elsewhere, or has no layer of a number.
    """
    found = getattr(model.base_model, "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise ValueError(f"architecture {model.config.model_type!r} keeps its layers where they are not known to be")
    numbered: dict[int, nn.Module] = dict(enumerate(found, start=1))
    if unknown := set(chosen) - numbered.keys():
        raise ValueError(f"features.layers: the policy has layers 1 .. {len(numbered)}, not {sorted(unknown)}")
    return {number: numbered[number] for number in chosen or numbered}


@torch.inference_mode()
def states(
    model: PreTrainedModel, of: dict[int, nn.Module], token_ids: Sequence[int], positions: Sequence[int]
) -> Tensor:
    """The output of each layer at those tokens, (L, K, D) float32, on the host."""
    seen: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            seen[number] = _hidden(output)[0, positions].float().cpu()

        return hook

    with ExitStack() as hooks:
        for number, layer in of.items():
            hooks.callback(layer.register_forward_hook(keep(number)).remove)
        ids = torch.tensor([list(token_ids)], device=model.get_input_embeddings().weight.device)
        model.base_model(input_ids=ids, use_cache=False)
    return torch.stack([seen[number] for number in of])


@contextmanager
def projected(layer: nn.Module, basis_DR: Tensor, mean_D: Tensor) -> Iterator[None]:
    """Within the block the layer passes on `formulas.subspaces.without` of its output, for every token."""

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        hidden = _hidden(output)
        basis, mean = (each.to(hidden.device, torch.float32) for each in (basis_DR, mean_D))
        changed = without(hidden.float(), basis, mean).to(hidden.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _hidden(output: Any) -> Tensor:
    """Layers of some architectures give a tuple, of which the hidden states are the first."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden
