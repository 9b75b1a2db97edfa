"""Which kernel computes attention, and why: flash-attn (Dao 2023, arXiv:2307.08691) or torch's own."""

from typing import Literal, NamedTuple

import torch
from transformers.utils import is_flash_attn_2_available

from raml_ray.settings import TrainConfig

INSTALL = "install flash-attn with deploy/install.sh gpu"


class Choice(NamedTuple):
    """`Choice("sdpa", "because training runs on a CPU", "set train.gpus_per_worker=1")`."""

    name: Literal["flash_attention_2", "sdpa"]
    why: str
    remedy: str = ""
    """What would have to change for flash-attn."""


def choose(
    settings: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    model: torch.nn.Module | None = None,
) -> Choice:
    """The kernel that `train.attention` gives on the device, with the policy's class if that is known already.

    Raises: ValueError with the remedy if flash-attn is asked for and cannot be had.
    """
    if settings.attention == "sdpa":
        return Choice("sdpa", "because train.attention=sdpa")
    found = _had(device, dtype, model)
    if settings.attention == "flash_attention_2" and found.name != "flash_attention_2":
        raise ValueError(
            f"train.attention=flash_attention_2 cannot be had {found.why}: {found.remedy}, or set train.attention=auto"
        )
    return found


def _had(device: torch.device, dtype: torch.dtype, model: torch.nn.Module | None) -> Choice:
    if device.type != "cuda":
        return Choice("sdpa", f"because training runs on {device.type}", "set train.gpus_per_worker=1")
    if dtype.itemsize != 2:
        name = str(dtype).removeprefix("torch.")
        return Choice("sdpa", f"because flash-attn does not compute in {name}", "set train.dtype=bfloat16")
    if not is_flash_attn_2_available():
        return Choice("sdpa", "because flash-attn is not installed here", INSTALL)
    if model is not None and not model._supports_flash_attn:
        return Choice("sdpa", f"because {type(model).__name__} does not know it", "take another policy")
    return Choice("flash_attention_2", "which is installed")
