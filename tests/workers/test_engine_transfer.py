"""The learner's end of vLLM's native transfer, as far as it goes without a GPU: what it would send, and in which order."""

from pathlib import Path

import pytest
import torch

from raml_ray.settings import TrainConfig
from raml_ray.workers import sharding
from tests.workers import ranks, tiny


@pytest.mark.vllm
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_declared_is_what_a_learner_sends(tied: bool, tmp_path: Path) -> None:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    from raml_ray.workers import engine_transfer

    tiny.model(tied=tied).save_pretrained(tmp_path)
    with ranks.alone():
        learner = sharding.wrap(tiny.model(tied=tied), TrainConfig())
        source = engine_transfer.LearnerSource(
            engine_transfer.architecture(str(tmp_path), torch.bfloat16), lambda: learner.full_tensors(torch.bfloat16)
        )
        declared = source.metadata()
        # vLLM's own comparison of names, dtypes and shapes, which it makes while it sends; twice, as for two versions.
        for _ in range(2):
            sent = dict(NCCLTrainerWeightTransferEngine._checked_iter(source, declared))
        state = learner.full_state(torch.bfloat16)
    assert {meta.name for meta in declared} == sent.keys() == state.keys()
    assert ("lm_head.weight" in sent) == (not tied)
    assert all(torch.equal(sent[name], tensor) for name, tensor in state.items())
