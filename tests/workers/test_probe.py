"""Branching the answer from a cache gives what one forward pass per prefix gives."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from raml_ray.settings import EngineConfig
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers import probe
from raml_ray.workers.engine import Engine

VOCAB_SIZE = 53
TOKENS = [(7 * index * index + 3) % VOCAB_SIZE for index in range(30)]
SUFFIX = AnswerSuffix([50, 51, 4, 9, 12], [False, False, True, True, True])


def policy(model_type: str, **changed: object) -> PreTrainedModel:
    torch.manual_seed(11)
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "sliding_window": None,
    }
    config = AutoConfig.for_model(model_type, **(sizes | changed))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def one_forward_per_prefix(model: PreTrainedModel, first_position: int, suffix: AnswerSuffix) -> np.ndarray:
    rows = []
    for length in range(first_position, len(TOKENS) + 1):
        ids = torch.tensor(TOKENS[:length] + suffix.token_ids)
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        rows.append(logprobs[-len(suffix.token_ids) :][torch.tensor(suffix.is_answer)].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("model_type", probe.SUPPORTED)
@pytest.mark.parametrize("positions_per_chunk", [1, 7, 64])
def test_branches_give_what_one_forward_per_prefix_gives(model_type: str, positions_per_chunk: int) -> None:
    model = policy(model_type)
    found = probe.answer_logprobs(
        model, TOKENS, first_position=4, suffix=SUFFIX, positions_per_chunk=positions_per_chunk
    )
    expected = one_forward_per_prefix(model, 4, SUFFIX)
    assert found.shape == (27, 3)  # prefixes of 4 .. 30 tokens
    assert np.abs(found.numpy() - expected).max() < 1e-5
    # Different prefixes do give different values, so the agreement says something
    assert np.ptp(expected, axis=0).min() > 0.5


def test_eager_attention_gives_the_same() -> None:
    model = policy("qwen2", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    found = probe.answer_logprobs(model, TOKENS, first_position=1, suffix=SUFFIX, positions_per_chunk=8)
    assert np.abs(found.numpy() - one_forward_per_prefix(model, 1, SUFFIX)).max() < 1e-5


@pytest.mark.parametrize(
    "suffix",
    [AnswerSuffix([8], [True]), AnswerSuffix([8, 9], [True, True]), AnswerSuffix([8, 9, 10], [False, True, False])],
)
def test_an_answer_may_begin_at_the_suffixs_first_token_or_end_before_its_last(suffix: AnswerSuffix) -> None:
    model = policy("llama")
    found = probe.answer_logprobs(model, TOKENS, first_position=1, suffix=suffix, positions_per_chunk=7)
    assert np.abs(found.numpy() - one_forward_per_prefix(model, 1, suffix)).max() < 1e-5


def test_a_single_token_is_a_prefix_too() -> None:
    model = policy("qwen2")
    found = probe.answer_nll(model, TOKENS[:1], first_position=1, suffix=SUFFIX)
    assert found == pytest.approx(-one_forward_per_prefix(model, 1, SUFFIX)[:1].mean(axis=1), abs=1e-5)


def test_the_loss_is_the_mean_over_answer_tokens_only() -> None:
    model = policy("qwen2")
    found = probe.answer_nll(model, TOKENS, first_position=5, suffix=SUFFIX)
    assert found == pytest.approx(-one_forward_per_prefix(model, 5, SUFFIX).mean(axis=1), abs=1e-5)


def test_a_policy_that_knows_nothing_pays_ln_v_everywhere() -> None:
    model = policy("qwen2", tie_word_embeddings=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    found = probe.answer_nll(model, TOKENS, first_position=2, suffix=SUFFIX)
    assert found.shape == (29,)
    assert np.array_equal(found, np.full(29, math.log(VOCAB_SIZE), dtype=np.float32))


def test_what_follows_a_prefix_does_not_reach_it() -> None:
    model = policy("llama")
    changed = TOKENS[:20] + [1] * 10
    before = probe.answer_nll(model, TOKENS, first_position=1, suffix=SUFFIX)
    after = probe.answer_nll(model, changed, first_position=1, suffix=SUFFIX)
    assert before[:20] == pytest.approx(after[:20], abs=1e-6)
    assert np.abs(before[21:] - after[21:]).min() > 1e-4


@pytest.mark.parametrize(
    ("model_type", "changed", "named"),
    [
        ("gpt_neox", {"num_key_value_heads": None}, "gpt_neox"),
        ("mistral", {"sliding_window": 8}, "mistral with sliding_attention"),
        (
            "qwen2",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
            "qwen2 with sliding_attention",
        ),
    ],
)
def test_other_architectures_are_refused_by_name(model_type: str, changed: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        probe.answer_nll(policy(model_type, **changed), TOKENS, first_position=1, suffix=SUFFIX)


@pytest.mark.parametrize(
    ("first_position", "num_tokens", "suffix", "named"),
    [
        (0, 30, SUFFIX, "first_position=0"),
        (31, 30, SUFFIX, "first_position=31"),
        (1, 60, SUFFIX, "context of 64"),
        (1, 30, AnswerSuffix([1, 2], [False, False]), "at least one answer token"),
    ],
)
def test_positions_and_suffixes_that_make_no_sense_are_refused(
    first_position: int, num_tokens: int, suffix: AnswerSuffix, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        probe.answer_nll(policy("qwen2"), (TOKENS * 2)[:num_tokens], first_position=first_position, suffix=suffix)


@pytest.mark.vllm
def test_the_probe_agrees_with_one_engine_request_per_prefix(tmp_path: Path) -> None:
    model = policy("qwen2")
    model.save_pretrained(tmp_path)
    engine = Engine(str(tmp_path), EngineConfig(max_model_len=64, kv_cache_gib=0.05, max_num_seqs=16), seed=0)
    sequences = [TOKENS[:length] + SUFFIX.token_ids for length in range(6, len(TOKENS) + 1)]
    expected = [-float(logprobs[-3:].mean()) for logprobs in engine.token_logprobs(sequences)]
    engine.close()
    found = probe.answer_nll(model, TOKENS, first_position=6, suffix=SUFFIX, positions_per_chunk=8)
    assert found == pytest.approx(np.array(expected), abs=1e-5)
