"""Changes of W_v that training makes, to hold a trajectory's pseudo-update against: steps of SGD on the question's answer,
and a low-rank adapter distilled from the policy that has read the trajectory.

All of them change W_v of every layer and nothing else, and none touches the policy: changed weights stand in for its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raml_ray import records
from raml_ray.formulas import landscape as formulas
from raml_ray.settings import RealUpdatesConfig
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers.answer_loss import answer_logits, answer_loss, token_losses
from raml_ray.workers.landscape import changed
from raml_ray.workers.pseudo_update import value_patches
from raml_ray.workers.traced_attention import attention_modules

KINDS = ("pseudo", "sgd", "lora")

Change = Mapping[str, Tensor]
"""Of every layer's W_v, by parameter name, float32."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question with a trajectory, and the answer that is asked for."""

    prompt_ids: Sequence[int]
    trajectory_ids: Sequence[int]
    suffix: AnswerSuffix

    @property
    def read_ids(self) -> list[int]:
        """Prompt and trajectory."""
        return [*self.prompt_ids, *self.trajectory_ids]


class Effect(NamedTuple):
    """What a policy says of a case's answer, without the trajectory unless that is said."""

    lhat: float
    """Nats per answer token."""
    lhat_first: float
    """Of the answer's first token."""
    lhat_rest: float | None
    """Mean over its further ones; None where there is none."""
    kl: float
    """Divergence of its answer distributions from those of the policy that has read the trajectory, nats per answer token."""


def first_token_alone(suffix: AnswerSuffix) -> AnswerSuffix:
    """The same suffix, with the answer's first token for the answer."""
    first = suffix.is_answer.index(True)
    return AnswerSuffix(suffix.token_ids, [place == first for place in range(len(suffix.token_ids))])


def changes(
    model: PreTrainedModel, case: Case, asked: AnswerSuffix, settings: RealUpdatesConfig, seed: int
) -> dict[str, Change]:
    """The change of each of KINDS, made for the answer tokens that `asked` marks in the case's suffix.

    Raises: ValueError as `value_patches` does, or if one is 0, which has no direction.
    """
    made: dict[str, Change] = {
        "pseudo": pseudo(model, case, asked),
        "sgd": descended(model, case.prompt_ids, asked, settings.sgd_steps, settings.sgd_learning_rate),
        "lora": distilled(model, case, asked, settings, seed),
    }
    for kind, change in made.items():
        if not formulas.norm(change) > 0:
            raise ValueError(f"the change of W_v by {kind} is 0 or no number: it has no direction")
    return made


def pseudo(model: PreTrainedModel, case: Case, asked: AnswerSuffix) -> Change:
    """The smallest change that stands in for the trajectory's keys in every layer. Raises: ValueError as `value_patches`."""
    start = len(case.prompt_ids)
    return value_patches(model, case.read_ids, asked, range(start, start + len(case.trajectory_ids)))


def descended(
    model: PreTrainedModel, prompt_ids: Sequence[int], asked: AnswerSuffix, num_steps: int, learning_rate: float
) -> Change:
    """What so many steps of plain SGD on L_q make of W_v: the question's answer without any trajectory."""
    start = _value_weights(model)
    moved = start
    for _ in range(num_steps):
        moved = {name: weight.detach().requires_grad_() for name, weight in moved.items()}
        with torch.enable_grad():
            loss = answer_loss(model, prompt_ids, asked, moved)
            gradients = torch.autograd.grad(loss, list(moved.values()))
        moved = {
            name: weight.detach() - learning_rate * gradient
            for (name, weight), gradient in zip(moved.items(), gradients, strict=True)
        }
    return {name: (moved[name] - weight).float() for name, weight in start.items()}


def distilled(
    model: PreTrainedModel, case: Case, asked: AnswerSuffix, settings: RealUpdatesConfig, seed: int
) -> Change:
    """A low-rank adapter on W_v with which the policy without the trajectory says of the answer's tokens what it says with
    it: Adam on the divergence of the two, averaged over the tokens (Hinton et al. 2015; Hu et al. 2021)."""
    start = _value_weights(model)
    teacher_AV = _logprobs(model, case.read_ids, asked)
    down, up = {}, {}
    for name, weight_OI in start.items():
        draw = torch.Generator().manual_seed(records.seed_of(seed, "lora", name))
        size = (settings.lora_rank, weight_OI.shape[1])
        down[name] = (torch.randn(size, generator=draw) / weight_OI.shape[1] ** 0.5).to(weight_OI.device)
        up[name] = torch.zeros(weight_OI.shape[0], settings.lora_rank, device=weight_OI.device)
    thin = [part.requires_grad_() for part in (*down.values(), *up.values())]
    optimizer = torch.optim.Adam(thin, lr=settings.lora_learning_rate)
    for _ in range(settings.lora_steps):
        with torch.enable_grad():
            adapted = {name: weight + up[name] @ down[name] for name, weight in start.items()}
            logits_AV = answer_logits(model, case.prompt_ids, asked, adapted)
            loss = _divergence(teacher_AV, logits_AV)
            gradients = torch.autograd.grad(loss, thin)
        for part, gradient in zip(thin, gradients, strict=True):
            part.grad = gradient
        optimizer.step()
    return {name: (up[name] @ down[name]).detach().float() for name in start}


@torch.no_grad()
def effect(
    model: PreTrainedModel, case: Case, change: Change | None = None, *, with_trajectory: bool = False
) -> Effect:
    """What the policy says of the answer with W_v changed by this."""
    weights = None if change is None else changed(model, change)
    prefix = case.read_ids if with_trajectory else case.prompt_ids
    logits_AV = answer_logits(model, prefix, case.suffix, weights)
    loss_A = token_losses(logits_AV, case.suffix)
    rest = float(loss_A[1:].mean()) if len(loss_A) > 1 else None
    kl = float(_divergence(_logprobs(model, case.read_ids, case.suffix), logits_AV))
    return Effect(float(loss_A.mean()), float(loss_A[0]), rest, kl)


def _value_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(each.v_proj.weight)]: each.v_proj.weight.detach() for each in attention_modules(model)}


@torch.no_grad()
def _logprobs(model: PreTrainedModel, prefix_ids: Sequence[int], suffix: AnswerSuffix) -> Tensor:
    return answer_logits(model, prefix_ids, suffix).log_softmax(-1)


def _divergence(teacher_AV: Tensor, logits_AV: Tensor) -> Tensor:
    """KL of the teacher from the student, mean over tokens, from the teacher's log-probabilities."""
    student_AV = logits_AV.log_softmax(-1)
    return torch.nn.functional.kl_div(student_AV, teacher_AV, reduction="batchmean", log_target=True)
