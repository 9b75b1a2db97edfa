"""What a trajectory's tokens write into the state of a policy that has one, beside the gradient they should follow.

As `pseudo_update`, for the miniature's twins: here a token is one change of each head's state, k^T u, whatever reads it. That
it is exact for every query is checked against what the policy computed for all tokens at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm
from transformers import PreTrainedModel

from raml_ray.formulas import pseudo_update as formulas
from raml_ray.miniature.twins import Memory, Written
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers.answer_loss import answer_loss, token_losses
from raml_ray.workers.pseudo_update import HeadUpdates, TokenUpdate, places, stacked

READER = "answer"
"""An update that serves every query serves the answer's."""


def token_update(
    model: PreTrainedModel, token_ids: Sequence[int], *, first_position: int, suffix: AnswerSuffix, seed: int
) -> TokenUpdate:
    """The update of the last of these tokens; those from `first_position` on are the trajectory's. A twin has one set of
    heads, its key-value heads: a state each.

    Raises: ValueError if there is no token before it, the policy's weights are not float32, or the suffix is bare.
    """
    place, other, generator = places(model, token_ids, first_position, seed)
    states = states_after(model, token_ids[:-1])
    before, gradients = state_gradients(model, states, place, suffix)
    whole = Memory()
    with torch.no_grad():
        _hidden(model, [*token_ids, *suffix.token_ids], 0, whole)
        after = float(answer_loss(model, token_ids, suffix))
    layers = [
        _layer(whole.written[layer], states[layer], -gradients[layer], place, other, generator) for layer in states
    ]
    return TokenUpdate(before, after, {READER: stacked(layers)})


@torch.no_grad()
def states_after(model: PreTrainedModel, token_ids: Sequence[int]) -> dict[int, Tensor]:
    """Each layer's state, (1, G, D, E)."""
    memory = Memory()
    _hidden(model, token_ids, 0, memory)
    return memory.states


def loss_from(model: PreTrainedModel, states: dict[int, Tensor], num_read: int, suffix: AnswerSuffix) -> Tensor:
    """L-hat behind these states of so many tokens, nats per answer token.

    Raises: ValueError if the suffix begins with the answer: what decodes it was read already.
    """
    if suffix.is_answer[0]:
        raise ValueError("the answer's first token is decoded before any suffix: set analyze.suffix to some text")
    at_A = torch.tensor(suffix.is_answer).nonzero()[:, 0] - 1
    hidden_TH = _hidden(model, suffix.token_ids, num_read, Memory(dict(states)))
    return token_losses(model.get_output_embeddings()(hidden_TH[at_A]), suffix).mean()


def state_gradients(
    model: PreTrainedModel, states: dict[int, Tensor], num_read: int, suffix: AnswerSuffix
) -> tuple[float, dict[int, Tensor]]:
    """L-hat behind the states, and its gradient with respect to each. Raises: ValueError as `loss_from`."""
    leaves = {layer: state.detach().requires_grad_() for layer, state in states.items()}
    with torch.enable_grad():
        loss = loss_from(model, leaves, num_read, suffix)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
    return float(loss.detach()), dict(zip(leaves, gradients, strict=True))


def change(written: Written, state_1GDE: Tensor, place: int) -> Tensor:
    """What the token at this place writes into the state, (G, D, E)."""
    return _next(written, state_1GDE[0], place) - state_1GDE[0]


def _next(written: Written, state_GDE: Tensor, place: int) -> Tensor:
    """The state after the token at this place."""
    key_GD, value_GE = written.key_BGTD[0, :, place], written.value_BGTE[0, :, place]
    if written.beta_BGT is None:
        return formulas.linear_attention_update(state_GDE, key_GD, value_GE)
    return formulas.delta_rule_update(state_GDE, key_GD, value_GE, written.beta_BGT[0, :, place, None])


def _layer(
    written: Written,
    state_1GDE: Tensor,
    descent_1GDE: Tensor,
    place: int,
    other: int | None,
    generator: torch.Generator,
) -> HeadUpdates:
    """One layer's, each (G,)."""
    change_GDE, descent_GDE = change(written, state_1GDE, place), descent_1GDE[0]
    size_G = vector_norm(change_GDE, dim=(-2, -1))
    key_GD = written.key_BGTD[0, :, place]
    noise_GE = torch.randn(written.value_BGTE[0, :, place].shape, generator=generator).to(size_G.device)
    swapped_GDE = change_GDE * torch.nan if other is None else change(written, state_1GDE, other)
    error_G, left_G = _errors(written, state_1GDE[0], change_GDE, place)
    return HeadUpdates(
        mass=torch.full_like(size_G, torch.nan),
        direction_norm=size_G / vector_norm(key_GD, dim=-1),
        patch_norm=size_G,
        reconstruction_error=error_G,
        gradient_norm=vector_norm(descent_GDE, dim=(-2, -1)),
        cosine=_cosine(change_GDE, descent_GDE),
        cosine_random=formulas.value_patch_cosine(key_GD, noise_GE, descent_GDE),
        cosine_shuffled=_cosine(swapped_GDE, descent_GDE),
        patch_norm_shuffled=vector_norm(swapped_GDE, dim=(-2, -1)),
        transfer_error=left_G,
    )


def _errors(written: Written, state_GDE: Tensor, change_GDE: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """Of each head over the token's own query and every later one: the largest difference of what the changed state gives
    and what the policy gave, as a share of the latter; and all these differences as a share of what the token does to them."""
    num_groups, num_tokens = written.key_BGTD.shape[1], written.key_BGTD.shape[2]
    queries_GHTD = written.query_BHTD[0].unflatten(0, (num_groups, -1))
    outputs_GHTE = written.output_BHTE[0].unflatten(0, (num_groups, -1))
    changed_GDE, unchanged_GDE = state_GDE + change_GDE, state_GDE
    errors, gaps, steps = [], [], []
    for query in range(place, num_tokens):
        if query > place:
            changed_GDE, unchanged_GDE = (_next(written, each, query) for each in (changed_GDE, unchanged_GDE))
        wanted_GHE, query_GHD = outputs_GHTE[:, :, query], queries_GHTD[:, :, query]
        gap_GH = vector_norm(query_GHD @ changed_GDE - wanted_GHE, dim=-1)
        errors.append(gap_GH / vector_norm(wanted_GHE, dim=-1))
        gaps.append(gap_GH)
        steps.append(vector_norm(query_GHD @ unchanged_GDE - wanted_GHE, dim=-1))
    left_G = torch.stack(gaps).sum((0, 2)) / torch.stack(steps).sum((0, 2))
    return torch.stack(errors).amax((0, 2)), left_G


def _cosine(one_GDE: Tensor, other_GDE: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one_GDE.flatten(1), other_GDE.flatten(1), dim=-1)


def _hidden(model: PreTrainedModel, token_ids: Sequence[int], num_read: int, memory: Memory) -> Tensor:
    """What decodes each next token, (T, H), behind the memory's states of so many tokens."""
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([list(token_ids)], device=device)
    position_1T = num_read + torch.arange(ids.shape[1], device=device)[None]
    hidden: Tensor = model.base_model(
        input_ids=ids, position_ids=position_1T, use_cache=False, memory=memory
    ).last_hidden_state[0]
    return hidden
