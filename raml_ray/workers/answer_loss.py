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
    ids = torch.tensor([*prefix_ids, *suffix.token_ids], device=model.get_input_embeddings().weight.device)
    at_A = len(prefix_ids) + torch.tensor(suffix.is_answer, device=ids.device).nonzero()[:, 0]
    asked = {"input_ids": ids[None], "use_cache": False, "logits_to_keep": at_A - 1}
    output = model(**asked) if weights is None else functional_call(model, dict(weights), kwargs=asked)
    return torch.nn.functional.cross_entropy(output.logits[0].float(), ids[at_A])
