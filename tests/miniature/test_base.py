import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from raml_ray.miniature import base, tokenizer
from raml_ray.miniature.documents import Document
from raml_ray.settings import BaseConfig, MiniatureConfig

Reports = list[tuple[int, Mapping[str, float]]]

TOKENIZER = tokenizer.build()
SMALL = BaseConfig(
    num_steps=12, batch_size=16, hidden_size=64, num_heads=2, num_layers=2, intermediate_size=64, num_threads=1
)


def trained(seed: int, settings: BaseConfig = SMALL) -> tuple[torch.nn.Module, Reports]:
    reports: Reports = []
    model, _ = base.train(
        MiniatureConfig(), settings, seed=seed, report=lambda step, values: reports.append((step, values))
    )
    return model, reports


@pytest.fixture(scope="module")
def run() -> tuple[torch.nn.Module, Reports]:
    return trained(seed=0)


def test_documents_are_packed_whole_with_positions_of_their_own():
    documents = [Document([1, 2], [False, True]), Document([3] * 95, [True] * 95), Document([4, 5, 6], [True] * 3)]
    batch = base.packed(documents, pad=0)
    assert batch.token_BT.shape == (2, base.ROW_TOKENS)
    assert batch.token_BT[1, :6].tolist() == [4, 5, 6, 1, 2, 0]
    assert batch.position_BT[1, :6].tolist() == [0, 1, 2, 0, 1, 0]
    assert batch.document_BT[1, :6].tolist() == [0, 0, 0, 1, 1, -1]
    assert batch.learned_BT[1, :6].tolist() == [True, True, True, False, True, False]
    assert (batch.document_BT >= 0).sum() == 2 + 95 + 3


def test_the_loss_of_packed_documents_is_that_of_each_alone():
    model = base.initial(SMALL, TOKENIZER, seed=0)
    texts = ["Sum: _ 3 8\n _ _ 11", "Sum mod 10: 2 3 8\n 2 _ 1", "\n 1 2 _ 3 4 5 6 7 8 9"]
    documents = [Document(ids, [False] * 4 + [True] * (len(ids) - 4)) for ids in map(TOKENIZER.encode, texts)]
    total = count = 0.0
    for document in documents:
        logits_TV = model(torch.tensor([document.token_ids])).logits[0]
        target_T = torch.tensor(document.token_ids)
        total += torch.nn.functional.cross_entropy(logits_TV[3:-1], target_T[4:], reduction="sum").item()
        count += len(document.token_ids) - 4
    assert base.mean_loss(model, base.packed(documents, pad=0)).item() == pytest.approx(total / count, abs=1e-5)


def test_training_lowers_the_loss_and_reports_every_tenth_step_and_the_last(run):
    _, reports = run
    assert [step for step, _ in reports] == [10, 12]
    assert set(reports[0][1]) == {"base/loss", "base/learning_rate", "base/tokens_per_s"}
    assert reports[-1][1]["base/loss"] < math.log(len(TOKENIZER)) - 1  # a uniform guess costs ln V
    assert all(values["base/tokens_per_s"] > 0 for _, values in reports)


def test_training_is_decided_by_the_seed_and_leaves_the_global_state_alone(run):
    model, reports = run
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    before = torch.get_num_threads()
    again, again_reports = trained(seed=0)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == before
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert [values["base/loss"] for _, values in again_reports] == [values["base/loss"] for _, values in reports]
    assert trained(seed=1)[1][-1][1]["base/loss"] != reports[-1][1]["base/loss"]


def test_the_learning_rate_rises_linearly_and_falls_to_a_tenth():
    factor = base._schedule(BaseConfig(num_steps=110, warmup_steps=10))
    assert [factor(0), factor(4), factor(10)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(60) == pytest.approx(0.55)  # half way from 1 to 0.1
    assert factor(110) == pytest.approx(0.1)


def test_a_run_shorter_than_its_warmup_works():
    _, reports = trained(0, SMALL.model_copy(update={"num_steps": 2, "warmup_steps": 20}))
    assert reports[-1][1]["base/learning_rate"] == pytest.approx(2 / 20 * SMALL.muon_learning_rate)


def test_a_saved_policy_loads_as_any_other(run, tmp_path: Path):
    model, _ = run
    base.save(model, TOKENIZER, tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded, loaded_tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([loaded_tokenizer.encode("Sum: _ 3 8\n")])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == TOKENIZER.eos_token_id
    assert loaded.config.tie_word_embeddings


class Called(TorchFunctionMode):
    """What torch is asked for."""

    def __init__(self):
        super().__init__()
        self.functions = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.functions.add(function)
        return function(*args, **(kwargs or {}))


def test_training_never_computes_in_bfloat16():
    with Called() as called:
        trained(seed=0, settings=SMALL.model_copy(update={"num_steps": 1}))
    assert torch.addmm in called.functions  # Muon's, among others
    assert torch.Tensor.bfloat16 not in called.functions


def test_muon_orthogonalises_in_float32():
    """Of two equal singular values, each 1 / sqrt(2) of the whole, five quintic steps can be worked out on one number."""
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.eye(2)
    optimizer = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    value = 1 / math.sqrt(2)
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    with base.InFloat32():
        optimizer.step()
    torch.testing.assert_close(weight.detach(), -value * torch.eye(2), atol=1e-6, rtol=0)
