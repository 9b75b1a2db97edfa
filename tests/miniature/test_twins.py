"""Twins of the miniature's policy: their states are those of the recurrence, and no other program takes them for softmax."""

from pathlib import Path

import pytest
import torch

from raml_ray.config import Config, ConfigError, Step, override
from raml_ray.formulas.pseudo_update import delta_rule_update, linear_attention_update
from raml_ray.miniature import base, documents, twins
from raml_ray.workers import policy as policies
from raml_ray.workers.traced_attention import attention_modules
from tests.miniature.test_base import SMALL, TOKENIZER, trained

KINDS = ("linear", "delta")


def twin(kind: str) -> twins.TwinForCausalLM:
    model = base.initial(SMALL.model_copy(update={"attention": kind}), TOKENIZER, seed=0)
    assert isinstance(model, twins.TwinForCausalLM)
    return model.eval()


def test_pseudo_values_by_hand() -> None:
    key_BGTD, value_BGTE = torch.eye(2)[[0, 0, 1]][None, None], torch.tensor([[[[2.0], [6.0], [1.0]]]])
    beta_BGT = torch.tensor([[[0.5, 0.5, 1.0]]])
    seen = torch.ones(1, 1, 3, 3).tril()
    # S = 0: half of 2 is written; the key reads 1: half of 6 - 1; another key reads nothing
    found = twins.written_values(key_BGTD, value_BGTE, beta_BGT, seen, None)
    assert found.flatten().tolist() == [1.0, 2.5, 1.0]
    # a state that answers 4 to the first key: half of 2 - 4, then half of 6 - 3
    start = torch.tensor([[4.0], [0.0]])[None, None]
    assert twins.written_values(key_BGTD, value_BGTE, beta_BGT, seen, start).flatten().tolist() == [-1.0, 1.5, 1.0]
    assert torch.equal(twins.written_values(key_BGTD, value_BGTE, None, seen, start), value_BGTE)


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_at_once_are_the_recurrence_one_by_one(kind: str) -> None:
    model, memory = twin(kind), twins.Memory()
    ids = torch.arange(40)[None] * 7 % len(TOKENIZER)
    with torch.no_grad():
        model.model(input_ids=ids, use_cache=False, memory=memory)
    for layer, state_1GDE in memory.states.items():
        written = memory.written[layer]
        state_GDE = torch.zeros_like(state_1GDE[0])
        for place in range(40):
            key_GD, value_GE = written.key_BGTD[0, :, place], written.value_BGTE[0, :, place]
            if written.beta_BGT is None:
                state_GDE = linear_attention_update(state_GDE, key_GD, value_GE)
            else:
                state_GDE = delta_rule_update(state_GDE, key_GD, value_GE, written.beta_BGT[0, :, place, None])
            # both query heads read the one key-value head's state
            read_HE = written.query_BHTD[0, :, place] @ state_GDE[0]
            assert torch.allclose(read_HE, written.output_BHTE[0, :, place], atol=1e-5, rtol=1e-4)
        assert torch.allclose(state_GDE, state_1GDE[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_packed_documents_is_that_of_each_alone(kind: str) -> None:
    model = twin(kind)
    texts = ["Sum: _ 3 8\n _ _ 11", "Sum mod 10: 2 3 8\n 2 _ 1", "\n 1 2 _ 3 4 5 6 7 8 9"]
    read = [documents.Document(ids, [True] * len(ids)) for ids in map(TOKENIZER.encode, texts)]
    losses = [base.mean_loss(model, base.packed([one], pad=0)) * (len(one.token_ids) - 1) for one in read]
    # a document's own first token is learned behind another one: it is no prediction of its own
    whole = [documents.Document(one.token_ids, [False, *one.learned[1:]]) for one in read]
    expected = sum(loss.item() for loss in losses) / sum(len(one.token_ids) - 1 for one in read)
    assert base.mean_loss(model, base.packed(whole, pad=0)).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_twins_learn_from_the_same_documents_by_the_same_recipe(kind: str) -> None:
    model, reports = trained(0, SMALL.model_copy(update={"attention": kind}))
    assert isinstance(model, twins.TwinForCausalLM)
    losses = [values["base/loss"] for _, values in reports]
    assert losses[-1] < 5  # a uniform guess costs ln 422 = 6.0
    softmax = base.initial(SMALL, TOKENIZER, seed=0)
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in softmax.parameters())
    assert more == 2 * 32 + (2 * (64 + 1) if kind == "delta" else 0)  # a norm, and a rate, in each of two layers


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_twin_loads_as_a_twin_and_as_nothing_else(kind: str, tmp_path: Path) -> None:
    model = twin(kind)
    base.save(model, TOKENIZER, tmp_path)
    loaded = policies.load_model(str(tmp_path)).eval()
    ids = torch.tensor([TOKENIZER.encode("Sum: _ 3 8\n")])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert policies.load_config(str(tmp_path)).model_type == "raml_twin"
    with pytest.raises(ValueError, match="can be measured by analyze, not sampled"), torch.no_grad():
        model(ids, use_cache=True)
    with pytest.raises(ValueError, match="raml_twin policies cannot be traced"):
        attention_modules(model)


def test_no_engine_or_learner_is_given_a_twin() -> None:
    steps = (
        Step(name="base", stage="base", overrides={"base.attention": "delta"}),
        Step(name="sft", stage="sft", policy="base"),
    )
    with pytest.raises(ConfigError, match=r"'sft' builds on 'base', whose base\.attention=delta no engine or learner"):
        override(Config(), {"steps": [step.model_dump() for step in steps]})
    measured = (steps[0], Step(name="lhat", stage="analyze", policy="base"))
    assert Config(steps=measured).for_step("base").base.attention == "delta"
    with pytest.raises(ConfigError, match=r"base\.attention=linear is of the miniature's policy"):
        override(Config(), {"base.kind": "random", "base.attention": "linear"})
