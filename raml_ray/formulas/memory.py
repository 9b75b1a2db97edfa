"""How much memory a learner takes, estimated before it starts, and the most tokens of one pass that fit.

What is counted, per device; s bytes of the dtype that is computed in, R ranks, P parameters, of which P' are trained:

    weights      4 P / R, and the units that are whole at a time in s: the embeddings and two layers. DeepSpeed: 4 P' / R of
                 its own, beside the weights in s, which stages 1 and 2 keep whole. Twice, with a reference policy
    gradients    4 P', since ranks add them up once a step, and 4 P' / R then; ZeRO-2 and 3 only the latter
    moments      8 P' / R
    activations  per token and layer 2 D (4 + 2 s) in norms, 3 W s + 2 K s around attention, 4 I s in the MLP, all kept until
                 the backward pass; recomputed layers keep D s, and one layer at a time the rest
    logits       of one chunk of tokens: in s and in float32, their softmax and their gradient
"""

from typing import Literal, NamedTuple

from raml_ray.formulas.architecture import Architecture

CHUNK = 1024
"""Tokens whose logits exist at once."""
GIB = 2**30
HOST_BYTES, DEVICE_BYTES = GIB, 3 * GIB // 2
"""What a process has before there is a model: on the host its libraries, on a GPU contexts, communicators and kernels' work
space."""
HOST_HOLES = 1.25
"""On the host: what activations take, over what they are. The C library's heap keeps holes between them."""


class Split(NamedTuple):
    """How a learner is divided and computes: `Split(num_ranks=8, dtype_bytes=2)`."""

    num_ranks: int
    dtype_bytes: int
    stage: Literal[0, 1, 2, 3] = 0
    """Of ZeRO; 0 is FSDP2."""
    offload: bool = False
    """Moments, and (FSDP2, ZeRO-3) weights and summed gradients, lie elsewhere."""
    recompute: bool = False
    """Layers are computed again in the backward pass."""
    adapters: int = 0
    """Parameters of adapters; the others are frozen then."""
    reference: bool = False
    """A second policy lies beside it, which is not trained."""


class Memory(NamedTuple):
    """Bytes on one device."""

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    process: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value / GIB:.3g}" for name, value in self._asdict().items())
        return f"{self.total / GIB:.3g} GiB ({parts})"


def estimate(made: Architecture, split: Split, num_tokens: int, *, on_host: bool) -> Memory:
    """What a learner holds at most when one pass has so many tokens, all of them scored."""
    total = made.num_parameters + split.adapters
    trained = split.adapters or total
    return Memory(
        *_state(made, split, total, trained),
        round(num_tokens * _bytes_per_token(made, split) * (HOST_HOLES if on_host else 1)),
        min(num_tokens, CHUNK) * made.vocab_size * (12 if split.dtype_bytes == 4 else 12 + 2 * split.dtype_bytes),
        HOST_BYTES if on_host else DEVICE_BYTES,
    )


def _state(made: Architecture, split: Split, total: int, trained: int) -> tuple[int, int, int]:
    """Weights, gradients and moments."""
    ranks, size = split.num_ranks, split.dtype_bytes
    moved = split.offload and split.stage in (0, 3)
    weights = 0 if moved else 4 * (total if split.stage == 0 else trained) // ranks
    if split.stage in (1, 2):
        weights += size * total
    else:
        if split.stage == 3 and not moved:
            weights += size * total // ranks
        weights += size * (made.embedding_parameters + 2 * made.layer_parameters)
    shard = 0 if moved else 4 * trained // ranks
    gradients = shard if split.stage in (2, 3) else 4 * trained + (shard if ranks > 1 else 0)
    return weights * (2 if split.reference else 1), gradients, 0 if split.offload else 8 * trained // ranks


def _bytes_per_token(made: Architecture, split: Split) -> int:
    size, keys = split.dtype_bytes, made.num_kv_heads * made.head_dim
    norm = made.hidden * (4 + 2 * size)
    layer = 2 * norm + size * (3 * made.attention_width + 2 * keys + 4 * made.intermediate)
    kept = made.num_layers * made.hidden * size + layer if split.recompute else made.num_layers * layer
    # The last norm and what is picked from it; gradients on their way through one MLP.
    return kept + norm + made.hidden * size + 3 * size * made.intermediate


def longest(made: Architecture, split: Split, available: int, *, on_host: bool) -> int:
    """The most tokens of one pass that fit into so many bytes; 0 if none does."""
    low, high = 0, 2**31
    while low < high:
        middle = (low + high + 1) // 2
        if estimate(made, split, middle, on_host=on_host).total <= available:
            low = middle
        else:
            high = middle - 1
    return low
