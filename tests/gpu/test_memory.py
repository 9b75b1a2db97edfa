"""The memory that `raml plan` and every training step are held to, against what a GPU held. Not run where there is none."""

import gc

import pytest
import torch
from transformers import Qwen2ForCausalLM

from raml_ray.formulas import architecture, memory
from raml_ray.stages import room
from raml_ray.workers import sharding
from tests.gpu.test_learners import GPU, HALF_BILLION, accumulated, examples

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("group")]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_learner_holds_about_what_is_estimated(recompute: bool) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    settings = GPU.model_copy(update={"activation_checkpointing": recompute, "max_tokens_per_micro_batch": 4096})
    learner = sharding.wrap(Qwen2ForCausalLM(HALF_BILLION), settings)
    given = examples(2, 2048, HALF_BILLION.vocab_size)
    for _ in range(2):  # moments exist from the second step on
        accumulated(learner, given, settings)
        learner.step(1e-5)
    made = architecture.of(HALF_BILLION.to_dict())
    assert made is not None
    estimated = memory.estimate(made, room.split_of(settings, made), 4096, on_host=False)
    held = torch.cuda.max_memory_allocated()  # of tensors alone: contexts and work space are none
    assert 0.6 < (estimated.total - estimated.process) / held < 1.6
