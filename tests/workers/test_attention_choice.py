import pytest
import torch

from raml_ray.settings import TrainConfig
from raml_ray.workers import attention_choice
from raml_ray.workers.attention_choice import Choice, choose
from tests.workers import ranks, tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_flash_attention_where_it_can_be_had_and_says_why_not_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auto = TrainConfig()
    monkeypatch.setattr(attention_choice, "is_flash_attn_2_available", lambda: True)
    assert choose(auto, GPU, torch.bfloat16) == Choice("flash_attention_2", "which is installed")
    assert choose(auto, CPU, torch.bfloat16)[:2] == ("sdpa", "because training runs on cpu")
    assert choose(auto, GPU, torch.float32)[:2] == ("sdpa", "because flash-attn does not compute in float32")
    unknown = tiny.model()
    unknown._supports_flash_attn = False
    assert choose(auto, GPU, torch.bfloat16, unknown).why == "because Qwen2ForCausalLM does not know it"
    monkeypatch.setattr(attention_choice, "is_flash_attn_2_available", lambda: False)
    found = choose(auto, GPU, torch.bfloat16)
    assert found == (
        "sdpa",
        "because flash-attn is not installed here",
        "install flash-attn with deploy/install.sh gpu",
    )


def test_what_is_asked_for_by_name_is_taken_or_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "is_flash_attn_2_available", lambda: True)
    assert choose(TrainConfig(attention="sdpa"), GPU, torch.bfloat16).name == "sdpa"
    flash = TrainConfig(attention="flash_attention_2")
    assert choose(flash, GPU, torch.bfloat16).name == "flash_attention_2"
    monkeypatch.setattr(attention_choice, "is_flash_attn_2_available", lambda: False)
    with pytest.raises(ValueError, match=r"not installed here: install flash-attn with deploy/install\.sh gpu, or set"):
        choose(flash, GPU, torch.bfloat16)
    with pytest.raises(ValueError, match=r"float32: set train\.dtype=bfloat16, or set train\.attention=auto"):
        choose(flash, GPU, torch.float32)


@pytest.mark.parametrize("packing", [True, False])
def test_a_learner_is_refused_flash_attention_on_a_cpu(packing: bool) -> None:
    from raml_ray.workers import sharding

    with ranks.alone(), pytest.raises(ValueError, match=r"runs on cpu: set train\.gpus_per_worker=1"):
        sharding.wrap(tiny.model(), TrainConfig(attention="flash_attention_2", packing=packing))
