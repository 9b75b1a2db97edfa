"""GRPO draws nothing in its passes: what scores a trajectory again is the policy that the engines sample with."""

from typing import Any

import pytest
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raml_ray.settings import TrainConfig
from raml_ray.text.batches import batches
from raml_ray.workers import grpo_loop, grpo_update, sharding
from tests.workers import meters, ranks, tiny
from tests.workers.test_grpo_loop import LIMITS, SETTINGS, groups

SIZES = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def qwen() -> PreTrainedModel:
    """Draws in attention, by a number that each of its modules holds."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(**SIZES, intermediate_size=48, num_key_value_heads=1, initializer_range=0.2, attention_dropout=0.3)
    )


def falcon() -> PreTrainedModel:
    """Draws in the decoder layer itself, by the numbers of its config."""
    torch.manual_seed(0)
    return FalconForCausalLM(
        FalconConfig(**SIZES, initializer_range=0.2, hidden_dropout=0.3, attention_dropout=0.3, alibi=False)
    )


def gpt2() -> PreTrainedModel:
    """Draws in modules of their own."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, n_positions=64, initializer_range=0.2, resid_pdrop=0.3, embd_pdrop=0.3))


MODELS = pytest.mark.parametrize("model", [qwen, falcon, gpt2])
RECOMPUTES = pytest.mark.parametrize("recomputes", [False, True])


def limits(recomputes: bool) -> TrainConfig:
    return LIMITS.model_copy(update={"activation_checkpointing": recomputes, "packing": False})


def run(policy: sharding.Sharded, settings: TrainConfig, **changes: Any) -> list[tuple[float, float]]:
    """Two versions; loss and gradient norm of each."""
    seen: list[tuple[float, float]] = []
    grpo_loop.train(
        policy, SETTINGS.model_copy(update={"num_steps": 2, "num_minibatches": 2, **changes}), settings, seed=5,
        start_version=0, sample=lambda version: (groups(version), {}), publish=lambda version: {},
        report=lambda version, metrics: seen.append((metrics["grpo/loss"], metrics["grpo/grad_norm"])),
        save=lambda version: None,
    )  # fmt: skip
    return seen


@MODELS
@RECOMPUTES
def test_what_scores_again_is_what_learns(model: Any, recomputes: bool) -> None:
    """`rescored` says of every token what the pass with a gradient finds of it: each ratio is 1."""
    settings = limits(recomputes)
    with ranks.alone():
        policy = sharding.wrap(model(), settings)
        run(policy, settings, learning_rate=0.0)
        examples = tiny.examples(4)
        found = grpo_update.rescored({"old_logprob": policy}, examples, SETTINGS, settings)
        again = policy.token_logprobs(next(batches(examples, 1000, 1, packing=False)))
    assert again.requires_grad
    for example, row_T in zip(found, again, strict=True):
        start, end = len(example.prompt_token_ids), len(example)
        assert row_T[start:end].tolist() == pytest.approx(list(example.fields["old_logprob"]), abs=1e-6)


@MODELS
@RECOMPUTES
def test_no_loss_or_gradient_depends_on_a_draw(model: Any, recomputes: bool) -> None:
    with ranks.alone():
        found = []
        for seed in (1, 2):
            policy = sharding.wrap(model(), limits(recomputes))
            torch.manual_seed(seed)
            found.append(run(policy, limits(recomputes)))
    assert found[0] == found[1]


def test_layers_are_computed_again_all_the_same() -> None:
    kept = []
    with ranks.alone():
        for recomputes in (False, True):
            policy = sharding.wrap(qwen(), limits(recomputes))
            run(policy, limits(recomputes))
            with meters.kept_for_backward() as sizes:
                policy.token_logprobs(next(batches(tiny.examples(9), 1000, 1, packing=False)))
            kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3
