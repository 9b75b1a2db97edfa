"""Architectures that no test knows are looked at once: does a tree of answers give what one forward pass per prefix gives?"""

from collections.abc import Callable, Sequence
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers import probe_support
from raml_ray.workers.probe_text import Probe

ByTree = Callable[[PreTrainedModel, Sequence[Probe], float], list[list[Tensor]]]
LENGTHS, MEMORY_MIB = (1, 5, 12), 256.0
_PROVEN: WeakSet[PreTrainedModel] = WeakSet()


def check(model: PreTrainedModel, by_tree: ByTree) -> None:
    """Two short random texts in one row, of each three prefixes, and two answers that begin alike; once for each policy in
    memory.

    Raises: ValueError if a log-probability differs by more than 0.001 nats in float32 (rounding: 1e-6) or 0.5 in half
    precision, where small faults are not seen; if the policy cannot read the tree at all; or if it has a sliding window,
    which may be longer than what is looked at.
    """
    if model in _PROVEN:
        return
    name = model.config.model_type
    if any(probe_support.windows(model.config).values()):
        raise ValueError(f"{name} policies with a sliding window cannot be probed: {probe_support.KNOWN}")
    probes = _probes(model.config.vocab_size)
    try:
        found = by_tree(model, probes, MEMORY_MIB)
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} policies cannot be probed ({type(error).__name__}: {error}): {probe_support.KNOWN}"
        ) from error
    expected = [[_by_forward(model, probe, suffix) for suffix in probe.suffixes] for probe in probes]
    pairs = [pair for both in zip(found, expected, strict=True) for pair in zip(*both, strict=True)]
    most = 1e-3 if model.dtype.itemsize >= 4 else 0.5
    if not all(torch.allclose(one, other, rtol=0, atol=most, equal_nan=True) for one, other in pairs):
        gap = max(float((one - other).abs().max()) for one, other in pairs)
        raise ValueError(
            f"{name} policies cannot be probed: a tree of answers differs by {gap:.2g} nats from one pass per prefix,"
            f" where {most:g} is allowed; {probe_support.KNOWN}"
        )
    _PROVEN.add(model)


def _probes(vocab_size: int) -> list[Probe]:
    draw = torch.Generator().manual_seed(0)
    *texts, answer = (torch.randint(vocab_size, (size,), generator=draw).tolist() for size in (LENGTHS[-1], 9, 5))
    one = AnswerSuffix(answer, [False, False, True, True, True])
    other = AnswerSuffix([*answer[:3], (answer[3] + 1) % vocab_size], [False, False, True, True])
    return [Probe(text, [length for length in LENGTHS if length <= len(text)], [one, other]) for text in texts]


def _by_forward(model: PreTrainedModel, probe: Probe, suffix: AnswerSuffix) -> Tensor:
    """(K, A), as the tree has them."""
    rows = []
    for length in probe.lengths:
        ids_1T = torch.tensor([[*probe.token_ids[:length], *suffix.token_ids]], device=model.device)
        logprob_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        logprob_T = logprob_TV.gather(1, ids_1T[0, 1:, None])[-len(suffix.token_ids) :, 0].cpu()
        rows.append(logprob_T[torch.tensor(suffix.is_answer)])
    return torch.stack(rows)
