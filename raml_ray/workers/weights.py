"""A policy's weights on their way from learner to engine: the bytes of each tensor, and the proof that they arrived.

Neither vLLM nor Ray is known here: both ends of a weight sync import this module.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

_HASHED_AT_ONCE = 16 * 2**20
_ALIGNMENT = 64
"""Bytes. A tensor in the scratch starts at a multiple, whatever dtypes precede it."""


class Entry(NamedTuple):
    """What one array holds: `Entry("model.norm.weight", (96,), "float32")`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, shapes and dtypes of tensors that travel together, in their order."""

    entries: tuple[Entry, ...]

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries)


Packed = tuple[list[np.ndarray], Layout]
"""Of each tensor its bytes, uint8 (num_bytes,), and what they are."""


def _dtype(name: str) -> torch.dtype:
    dtype = torch.__dict__.get(name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no torch dtype")
    return dtype


def layout_of(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Layout:
    """The layout of named tensors when every floating-point one is sent as `dtype`."""
    return Layout(
        tuple(
            Entry(
                name,
                tuple(tensor.shape),
                str(dtype if tensor.is_floating_point() else tensor.dtype).removeprefix("torch."),
            )
            for name, tensor in tensors
        )
    )


class Scratch:
    """Memory for what is cast or fetched from a device, again and again: the next tensors overwrite the last.

    Memory that is touched for the first time takes five times as long to be written as memory that has been.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def arrays(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """One for each number of bytes."""
        places = [0, *accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]
        if len(self._memory) < places[-1]:
            self._memory = np.empty(places[-1], dtype=np.uint8)
        return [self._memory[start : start + size] for start, size in zip(places[:-1], sizes, strict=True)]


def pack(
    tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype = torch.float32, scratch: Scratch | None = None
) -> Packed:
    """Named tensors as arrays of bytes, floating-point ones cast to `dtype` (the engine's).

    A tensor that lies on the CPU as it is to be sent is not copied: its array shares its memory. The others lie in the
    scratch, if there is one. A list of arrays is one object to an object store, which lays them end to end.
    """
    named = [(name, tensor.detach()) for name, tensor in tensors]
    layout = layout_of(named, dtype)
    ready = [
        tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.dtype == _dtype(entry.dtype)
        for (_, tensor), entry in zip(named, layout.entries, strict=True)
    ]
    sizes = [entry.num_bytes for entry, is_ready in zip(layout.entries, ready, strict=True) if not is_ready]
    made = iter((scratch or Scratch()).arrays(sizes))
    arrays = []
    for (_, tensor), entry, is_ready in zip(named, layout.entries, ready, strict=True):
        if is_ready:
            arrays.append(tensor.reshape(-1).view(torch.uint8).numpy())
        else:
            arrays.append(next(made))
            _tensor_of(arrays[-1], entry).copy_(tensor)
    return arrays, layout


def buckets(
    tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, num_bytes: int, scratch: Scratch | None = None
) -> Iterator[Packed]:
    """Named tensors as buckets of at most `num_bytes` each, in their order; a larger tensor is one by itself.

    No more tensors are taken from the iterator at once than one bucket holds. With a scratch a bucket is overwritten by the
    next one.
    """
    named: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        needed = layout_of([(name, tensor)], dtype).num_bytes
        if named and size + needed > num_bytes:
            yield pack(named, dtype, scratch)
            named, size = [], 0
        named.append((name, tensor))
        size += needed
    if named:
        yield pack(named, dtype, scratch)


def views(arrays: Sequence[np.ndarray], layout: Layout) -> dict[str, Tensor]:
    """The tensors of a bucket by name, sharing its memory (which may be read-only: do not write to them then).

    Raises: ValueError if the arrays are not bytes, or not as many as the layout says.
    """
    if len(arrays) != len(layout.entries):
        raise ValueError(f"{len(arrays)} arrays of weights, the layout says {len(layout.entries)}")
    for array, entry in zip(arrays, layout.entries, strict=True):
        if array.dtype != np.uint8 or array.shape != (entry.num_bytes,):
            raise ValueError(f"{entry.name} is {array.dtype} {array.shape}, the layout says uint8 ({entry.num_bytes},)")
    with warnings.catch_warnings():
        # Arrays out of an object store are read-only, of which torch would warn at every sync.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {entry.name: _tensor_of(array, entry) for array, entry in zip(arrays, layout.entries, strict=True)}


def _tensor_of(array: np.ndarray, entry: Entry) -> Tensor:
    return torch.from_numpy(array).view(_dtype(entry.dtype)).view(entry.shape)


def checksum(arrays: Sequence[np.ndarray], layout: Layout) -> str:
    """Sixteen hex digits of the arrays' bytes and their layout.

    Against accidents, not against attacks: this hash is as fast as a copy, where cryptographic ones take ten times as long.
    It is the hash of the hashes of parts, which are made side by side.
    """
    parts = [
        array.data[start : start + _HASHED_AT_ONCE]
        for array in arrays
        for start in range(0, array.nbytes, _HASHED_AT_ONCE)
    ]
    digest = xxhash.xxh3_64(repr(layout.entries).encode())
    for found in map(xxhash.xxh3_64_digest, parts) if len(parts) < 2 else _hashers().map(xxhash.xxh3_64_digest, parts):
        digest.update(found)
    return digest.hexdigest()


@cache
def _hashers() -> ThreadPoolExecutor:
    """Two threads read memory twice as fast as one; more need more cores than a learner or an engine may have."""
    return ThreadPoolExecutor(2, thread_name_prefix="checksum")


class Agreement(NamedTuple):
    """How far engine and learner are apart on the same tokens."""

    max_abs: float
    """Largest difference of two log-probabilities, nats."""
    k3: float
    """Estimate of KL(engine || learner) on tokens that the engine sampled, nats per token."""


def compare(engine_logprobs: Sequence[np.ndarray], learner_logprobs: Sequence[np.ndarray]) -> Agreement:
    """The agreement of two lists of per-token log-probabilities, sequence by sequence.

    Raises: ValueError if the lists or their sequences differ in length, or hold no token.

    Source: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    shapes = [array.shape for array in engine_logprobs], [array.shape for array in learner_logprobs]
    if shapes[0] != shapes[1]:
        raise ValueError(f"log-probabilities of engine and learner differ in shape: {shapes[0]} and {shapes[1]}")
    if not sum(map(math.prod, shapes[0])):
        raise ValueError("no token to compare engine and learner on")
    engine = np.concatenate([np.asarray(array, dtype=np.float64) for array in engine_logprobs])
    learner = np.concatenate([np.asarray(array, dtype=np.float64) for array in learner_logprobs])
    delta = learner - engine
    return Agreement(float(np.abs(delta).max()), float((np.expm1(delta) - delta).mean()))


def first_difference(
    engine_outputs: Mapping[str, np.ndarray], learner_outputs: Mapping[str, np.ndarray], tolerance: float
) -> str | None:
    """The first module, in forward order, whose outputs differ by more than the tolerance; None if none does.

    Raises: ValueError if the modules or their shapes differ.
    """
    if list(engine_outputs) != list(learner_outputs):
        raise ValueError(f"modules differ: engine {list(engine_outputs)}, learner {list(learner_outputs)}")
    for name, engine in engine_outputs.items():
        learner = learner_outputs[name]
        if engine.shape != learner.shape:
            raise ValueError(f"outputs of {name} differ in shape: engine {engine.shape}, learner {learner.shape}")
        # Written so that a NaN differs.
        if not bool((np.abs(engine - learner) <= tolerance).all()):
            return name
    return None


def traced_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are compared, in forward order: embed_tokens, layers.0 .., norm.

    Raises: ValueError if the model is not built so (Llama, Qwen2, Qwen3 and their kin are).
    """
    children = dict(model.named_children())
    decoder = children.get("model")
    parts = dict(decoder.named_children()) if decoder is not None else {}
    missing = {"embed_tokens", "layers", "norm"} - parts.keys()
    if missing:
        raise ValueError(f"{type(model).__name__} has no model.{', model.'.join(sorted(missing))}: it cannot be traced")
    layers = {f"layers.{index}": layer for index, layer in enumerate(parts["layers"].children())}
    return {"embed_tokens": parts["embed_tokens"], **layers, "norm": parts["norm"]}


def learner_outputs(model: nn.Module, token_ids: list[int]) -> dict[str, np.ndarray]:
    """Outputs of a Hugging Face causal LM's modules for one sequence, (T, hidden), and `lm_head`: the last token's logits, (V,)."""
    outputs: dict[str, np.ndarray] = {}

    def recorder(name: str) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def record(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[name] = as_array((output[0] if isinstance(output, tuple) else output)[0])

        return record

    hooks = [module.register_forward_hook(recorder(name)) for name, module in traced_modules(model).items()]
    try:
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([token_ids], device=device), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return outputs | {"lm_head": as_array(logits[0, -1])}


def as_array(tensor: Tensor) -> np.ndarray:
    """A float32 copy on the host."""
    array: np.ndarray = tensor.detach().to("cpu", torch.float32, copy=True).numpy()
    return array


def token_logprobs(model: nn.Module, sequences: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """Of each sequence the log-probability of every token but the first, float32, nats, (T - 1,)."""
    device = next(model.parameters()).device
    for sequence in sequences:
        ids_T = torch.tensor(sequence, device=device)
        with torch.no_grad():
            logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].float()
        yield as_array(logits_TV.log_softmax(-1).gather(1, ids_T[1:, None])[:, 0])
