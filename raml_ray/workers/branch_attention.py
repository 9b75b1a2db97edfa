"""Attention of branches on cached texts, on a CPU: to the texts and within each branch apart, so that nothing is computed
for pairs of branches.

A dense mask over a pass's keys would cost the square of the pass, nearly all of it between branches that do not see each
other. A softmax over two sets of keys is the mean of the softmaxes over each, weighted by the sums of their exponentials:
the kernel gives the logarithm of that sum beside its output (as FlashAttention does over blocks of keys, arXiv:2205.14135).
It is called by its private name: torch's public function keeps that logarithm to itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

BRANCHING = "raml_branching"
"""The name of `_branching` among transformers' attention functions."""


@contextmanager
def where_it_can(model: PreTrainedModel) -> Iterator[None]:
    """For a while the model takes `branch_sizes`, if it lies on a CPU and attends by torch's kernel, called by its name."""
    before = model.config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu" or not model._supports_attention_backend:
        yield
        return
    model.set_attn_implementation(BRANCHING)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _branching(
    module: nn.Module,
    query_1HND: Tensor,
    key_1GMD: Tensor,
    value_1GMD: Tensor,
    mask_11NK: Tensor | None,
    *,
    branch_sizes: Sequence[int] | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention's output, (1, N, H, D).

    With `branch_sizes`, tokens of each branch, the N queries are all of the branches, one behind the other, and the last N
    of the M keys are their own; an additive mask says what they see of the M - N keys before, and then of the first token of
    their own branch, its second and so on. Without, torch's own.
    """
    if branch_sizes is None:
        output_1NHD: Tensor = sdpa_attention_forward(
            module, query_1HND, key_1GMD, value_1GMD, mask_11NK, scaling=scaling, **kwargs
        )[0]
        return output_1NHD, None
    assert mask_11NK is not None
    num_queries = query_1HND.shape[2]
    num_cached = key_1GMD.shape[2] - num_queries
    shared = query_1HND.shape[1] // key_1GMD.shape[1]
    (cached_key, key), (cached_value, value) = (
        repeat_kv(states, shared).split([num_cached, num_queries], dim=2) for states in (key_1GMD, value_1GMD)
    )
    seen_11NC, own_11NS = mask_11NK.split([num_cached, mask_11NK.shape[3] - num_cached], dim=3)
    output_HND, sum_HN = _within(query_1HND, key, value, own_11NS, branch_sizes, scaling)
    before_1HND, before_1HN = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_1HND, cached_key, cached_value, attn_mask=seen_11NC, scale=scaling
    )
    # Where nothing before is seen, all scores there are the lowest of numbers, and the weight 0.
    weight_HN1 = (before_1HN[0] - sum_HN).sigmoid()[..., None].to(output_HND.dtype)
    return output_HND.lerp(before_1HND[0], weight_HN1).transpose(0, 1)[None], None


def _within(
    query_1HND: Tensor,
    key_1HND: Tensor,
    value_1HND: Tensor,
    mask_11NS: Tensor,
    branch_sizes: Sequence[int],
    scaling: float | None,
) -> tuple[Tensor, Tensor]:
    """Output (H, N, D) and log-sum-exp (H, N) of attention within branches, those of one size at once.

    Products of matrices: the kernel takes twice as long for so few keys.
    """
    scale = query_1HND.shape[-1] ** -0.5 if scaling is None else scaling
    runs = [(size, len(list(same))) for size, same in groupby(branch_sizes)]
    rows = [size * count for size, count in runs]
    parts = [states[0].split(rows, dim=1) for states in (query_1HND, key_1HND, value_1HND)]
    outputs, sums = [], []
    for (size, count), mask_NS, *row in zip(runs, mask_11NS[0, 0].split(rows), *parts, strict=True):
        query, key, value = (states_HND.unflatten(1, (count, size)) for states_HND in row)
        score_HBSS = (query @ key.mT).float() * scale + mask_NS[:, :size].unflatten(0, (count, size))
        sum_HBS1 = score_HBSS.logsumexp(-1, keepdim=True)
        weight_HBSS = (score_HBSS - sum_HBS1).exp_().to(value.dtype)
        outputs.append((weight_HBSS @ value).flatten(1, 2))
        sums.append(sum_HBS1.flatten(1))
    return torch.cat(outputs, dim=1), torch.cat(sums, dim=1)


ALL_ATTENTION_FUNCTIONS.register(BRANCHING, _branching)
ALL_MASK_ATTENTION_FUNCTIONS.register(BRANCHING, sdpa_mask)
