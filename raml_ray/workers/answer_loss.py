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
    ids = torch.tensor([*prefix_ids, *suffix.token_ids], device=model.get_input_embeddings().weight.device)
    at_A = len(prefix_ids) + torch.tensor(suffix.is_answer, device=ids.device).nonzero()[:, 0]
    asked = {"input_ids": ids[None], "use_cache": False, "logits_to_keep": at_A - 1}
    output = model(**asked) if weights is None else functional_call(model, dict(weights), kwargs=asked)
    logits_AV: Tensor = output.logits[0].float()
    return logits_AV
