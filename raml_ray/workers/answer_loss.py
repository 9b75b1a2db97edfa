"""L-hat after one prefix as a scalar that can be differentiated, under the policy's weights or others in their place."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from raml_ray.text.suffix import AnswerSuffix


def answer_loss(
    model: PreTrainedModel,
    prefix_ids: Sequence[int],
    suffix: AnswerSuffix,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """L-hat after the prefix, nats per answer token; `weights` stand in for the parameters of their names."""
    return token_losses(answer_logits(model, prefix_ids, suffix, weights), suffix).mean()


def answer_losses(
    model: PreTrainedModel,
    prefixes: Sequence[Sequence[int]],
    suffix: AnswerSuffix,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """`answer_loss` after each of P prefixes, (P,), from one forward pass."""
    logits_PAV = _logits(model, prefixes, suffix, weights)
    return torch.stack([token_losses(logits_AV, suffix).mean() for logits_AV in logits_PAV])


def token_losses(logits_AV: Tensor, suffix: AnswerSuffix) -> Tensor:
    """Of each answer token the negative log-probability, nats, (A,)."""
    pairs = zip(suffix.token_ids, suffix.is_answer, strict=True)
    answer_A = torch.tensor([token for token, is_answer in pairs if is_answer], device=logits_AV.device)
    return torch.nn.functional.cross_entropy(logits_AV, answer_A, reduction="none")


def answer_logits(
    model: PreTrainedModel,
    prefix_ids: Sequence[int],
    suffix: AnswerSuffix,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The logits that decode the answer's tokens, one row per token, float32, (A, V); `weights` as in `answer_loss`."""
    return _logits(model, [prefix_ids], suffix, weights)[0]


def _logits(
    model: PreTrainedModel,
    prefixes: Sequence[Sequence[int]],
    suffix: AnswerSuffix,
    weights: Mapping[str, Tensor] | None,
) -> Tensor:
    """`answer_logits` after each of P prefixes, (P, A, V)."""
    device = model.get_input_embeddings().weight.device
    rows = [torch.tensor([*prefix, *suffix.token_ids], device=device) for prefix in prefixes]
    # Padding stands behind the answers, where no token that counts looks.
    ids_PT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    at_A = torch.tensor(suffix.is_answer, device=device).nonzero()[:, 0] - 1
    at_PA = torch.tensor([[len(prefix)] for prefix in prefixes], device=device) + at_A
    kept_K = at_PA.unique()
    asked = {"input_ids": ids_PT, "use_cache": False, "logits_to_keep": kept_K}
    output = model(**asked) if weights is None else functional_call(model, dict(weights), kwargs=asked)
    place_P1 = torch.arange(len(rows), device=device)[:, None]
    logits_PAV: Tensor = output.logits[place_P1, torch.searchsorted(kept_K, at_PA)].float()
    return logits_PAV
