"""Keys and values that are attended to as constants: the outer loss without its second-order path.

The model's attention function is put behind one that cuts the gradient of the marked tokens' keys and values, after
every norm and rotation that the architecture puts on them. So the pass is the same as without, whatever computes it
(packed, padded, flash), however it is split over ranks or recomputed, and only the backward pass loses a path; a second
pass over a frozen cache would cost less, but have to be written again for each of these.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Constants:
    """Which tokens' keys and values are constants, on its way through the model."""

    def __init__(self, model: "PreTrainedModel", constant_BT: Tensor) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        name = str(model.config._attn_implementation)
        if name not in ALL_ATTENTION_FUNCTIONS:
            raise ValueError(_refusal(model, f"attention {name!r} cannot be put behind another function"))
        if not isinstance(inner := ALL_ATTENTION_FUNCTIONS[name], _Detaching):
            ALL_ATTENTION_FUNCTIONS[name] = _Detaching(inner)
        self._model = model
        self._constant_B1T1 = constant_BT[:, None, :, None]
        self._layers: set[int] = set()

    def detached(self, layer: nn.Module, states_BHTD: Tensor) -> Tensor:
        """The layer's keys or values, those of the marked tokens without a gradient."""
        self._layers.add(id(layer))
        return torch.where(self._constant_B1T1, states_BHTD.detach(), states_BHTD)

    def check(self) -> None:
        """After a forward pass. Raises: ValueError unless every layer of the model looked here."""
        asked = self._model.config.get_text_config().num_hidden_layers
        if len(self._layers) != asked:
            raise ValueError(_refusal(self._model, f"{len(self._layers)} of {asked} layers hand down what is constant"))


class _Detaching:
    """An attention function of transformers' that passes on what it is given, but for the gradient of `constants`."""

    def __init__(self, inner: Callable[..., tuple[Tensor, Tensor | None]]) -> None:
        self._inner = inner

    def __call__(
        self,
        module: nn.Module,
        query_BHTD: Tensor,
        key_BHTD: Tensor,
        value_BHTD: Tensor,
        *arguments: Any,
        constants: Constants | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if constants is not None:
            key_BHTD, value_BHTD = (constants.detached(module, states) for states in (key_BHTD, value_BHTD))
        return self._inner(module, query_BHTD, key_BHTD, value_BHTD, *arguments, **kwargs)


def _refusal(model: "PreTrainedModel", why: str) -> str:
    return f"{model.config.model_type} policies: {why}: set sft.outer_loss=answer_only"
