"""Branching the answer from a cache gives what one forward pass per prefix gives."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from raml_ray.miniature import base, task
from raml_ray.settings import BaseConfig, EngineConfig, MiniatureConfig, PromptConfig
from raml_ray.text import prompts
from raml_ray.text.suffix import AnswerSuffix, answer_suffix
from raml_ray.workers import branch_attention, prefix_requests, probe, probe_memory, probe_support
from raml_ray.workers.engine import Engine
from raml_ray.workers.probe_support import SUPPORTED
from raml_ray.workers.probe_text import Probe

VOCAB_SIZE = 53
TOKENS = [(7 * index * index + 3) % VOCAB_SIZE for index in range(30)]
SUFFIX = AnswerSuffix([50, 51, 4, 9, 12], [False, False, True, True, True])


EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
OWN_SIZES: dict[str, dict[str, object]] = {
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0, "sliding_window": 64},
    "exaone4": {"sliding_window": 64},
    "gemma2": {"sliding_window": 64},
    "gemma3_text": {"sliding_window": 64},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "gpt_oss": EXPERTS | {"sliding_window": 64},
    "mixtral": EXPERTS,
    "olmo3": {"sliding_window": 64},
    "olmoe": EXPERTS,
    "qwen2_moe": EXPERTS,
    "qwen3_moe": EXPERTS,
}


def policy(model_type: str, **changed: object) -> PreTrainedModel:
    torch.manual_seed(11)
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "sliding_window": None,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(model_type, **(sizes | OWN_SIZES.get(model_type, {}) | changed))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def one_forward_per_prefix(
    model: PreTrainedModel, lengths: Sequence[int], suffix: AnswerSuffix, token_ids: Sequence[int] = TOKENS
) -> np.ndarray:
    rows = []
    for length in lengths:
        ids = torch.tensor([*token_ids[:length], *suffix.token_ids])
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        rows.append(logprobs[-len(suffix.token_ids) :][torch.tensor(suffix.is_answer)].numpy())
    return np.stack(rows)


def from_the_tree(
    model: PreTrainedModel, lengths: Sequence[int], suffix: AnswerSuffix, memory_mib: float = 64
) -> np.ndarray:
    ((found,),) = probe.answer_logprobs(model, [Probe(TOKENS, lengths, [suffix])], memory_mib=memory_mib)
    return found.numpy()


@pytest.mark.parametrize("model_type", SUPPORTED)
@pytest.mark.parametrize("memory_mib", [0.15, 64])
def test_branches_give_what_one_forward_per_prefix_gives(model_type: str, memory_mib: float) -> None:
    model = policy(model_type)
    found = from_the_tree(model, range(4, 31), SUFFIX, memory_mib)
    expected = one_forward_per_prefix(model, range(4, 31), SUFFIX)
    assert found.shape == (27, 3)  # prefixes of 4 .. 30 tokens
    assert np.abs(found - expected).max() < 1e-5
    # Different prefixes do give different values, so the agreement says something
    assert np.ptp(expected, axis=0).min() > 0.5


ONE_LAYER: dict[str, object] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
WINDOWS: dict[str, dict[str, object]] = {
    "cohere2": ONE_LAYER,
    "exaone4": ONE_LAYER,
    "gemma2": ONE_LAYER,
    "gemma3_text": ONE_LAYER,
    "gpt_oss": ONE_LAYER,
    "mistral": {"sliding_window": 8},
    "mixtral": {"sliding_window": 8},
    "olmo3": ONE_LAYER,
    "phi3": {"sliding_window": 8},
    "qwen2": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": ONE_LAYER | {"use_sliding_window": True},
    "qwen3_moe": {"sliding_window": 8, "use_sliding_window": True},
    "smollm3": ONE_LAYER | {"use_sliding_window": True},
    "starcoder2": {"sliding_window": 8},
}


@pytest.mark.parametrize("model_type", WINDOWS)
@pytest.mark.parametrize("memory_mib", [0.15, 64])
def test_a_sliding_window_hides_what_it_hides_in_one_forward_per_prefix(model_type: str, memory_mib: float) -> None:
    model = policy(model_type, **WINDOWS[model_type])
    expected = one_forward_per_prefix(model, range(1, 31), SUFFIX)
    assert np.abs(from_the_tree(model, range(1, 31), SUFFIX, memory_mib) - expected).max() < 1e-5
    # Two windowed layers reach no further than 15 tokens, so the window is narrower than the text and does something
    whole = policy(model_type, **(WINDOWS[model_type] | {"sliding_window": 64}))
    assert np.abs(one_forward_per_prefix(whole, range(20, 31), SUFFIX) - expected[19:]).max() > 1e-3


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
@pytest.mark.parametrize("changed", [{}, WINDOWS["qwen2"]])
def test_every_kind_of_attention_gives_the_same(attention: str, changed: dict[str, object]) -> None:
    model = policy("qwen2", **changed)
    expected = one_forward_per_prefix(model, range(1, 31), SUFFIX)
    model.set_attn_implementation(attention)
    with torch.compiler.set_stance("force_eager"):  # FlexAttention's own formula, without compiling it
        found = from_the_tree(model, range(1, 31), SUFFIX, 0.5)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_branches_apart_give_what_a_mask_over_all_of_them_gives(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = policy("qwen2").to(dtype)
    probes = [Probe(TOKENS, range(1, 31), [SUFFIX, AnswerSuffix([8], [True])]), Probe(TOKENS[9:], [1, 7], [SUFFIX])]
    kinds: list[str] = []
    model.register_forward_pre_hook(lambda *_: kinds.append(model.config._attn_implementation))
    apart = probe.answer_logprobs(model, probes, memory_mib=64)
    assert set(kinds) == {branch_attention.BRANCHING}
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(branch_attention, "where_it_can", lambda _: nullcontext())
    together = probe.answer_logprobs(model, probes, memory_mib=64)
    gaps = [
        float((a - b).abs().max())
        for one, other in zip(apart, together, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    assert max(gaps) < {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype], "nats"


@pytest.mark.parametrize("memory_mib", [0.2, 64])
@pytest.mark.parametrize(
    ("model_type", "changed"),
    [*((model_type, {}) for model_type in SUPPORTED), *WINDOWS.items()],
    ids=[*SUPPORTED, *(f"{model_type}-window" for model_type in WINDOWS)],
)
def test_texts_and_answers_in_one_pack_do_not_see_each_other(
    model_type: str, changed: dict[str, object], memory_mib: float
) -> None:
    model = policy(model_type, **changed)
    answers = [AnswerSuffix([50, 51, *tail], [False, False] + [True] * len(tail)) for tail in ([4, 9], [4, 7], [8])]
    texts = [TOKENS, TOKENS[5:17], TOKENS[:1], TOKENS[::-1]]
    probes = [Probe(ids, range(1, len(ids) + 1, 1 + index), answers[index:]) for index, ids in enumerate(texts[:3])]
    probes.append(Probe(texts[3], [2, 3, 29, 30], [SUFFIX]))
    found = probe.answer_logprobs(model, probes, memory_mib=memory_mib)
    for one, of_probe in zip(probes, found, strict=True):
        assert len(of_probe) == len(one.suffixes)
        for suffix, logprob_KA in zip(one.suffixes, of_probe, strict=True):
            expected = one_forward_per_prefix(model, one.lengths, suffix, one.token_ids)
            assert np.abs(logprob_KA.numpy() - expected).max() < 1e-5


@pytest.fixture(scope="module")
def trained() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The miniature of its own shape, from its own documents: after 40 steps it is far from random, and from sure."""
    losses: list[float] = []
    settings = BaseConfig(num_steps=40, batch_size=16, warmup_steps=5, num_threads=1)
    found = base.train(MiniatureConfig(), settings, seed=0, report=lambda _, values: losses.append(values["base/loss"]))
    assert losses[-1] < 0.7 * losses[0]
    return found


def test_of_a_trained_policy_on_trajectories_of_its_task_the_tree_gives_what_one_forward_per_prefix_gives(
    trained: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = trained
    probes = []
    for question in task.questions("train", MiniatureConfig(num_train=2), seed=0):
        prompt_ids = prompts.prompt_token_ids(tokenizer, question.problem, PromptConfig())
        answers = [question.answer, str(int(question.answer) + 1)]
        suffixes = [answer_suffix(tokenizer, "paper", answer) for answer in answers]
        (text,) = task.oracle(question.problem, MiniatureConfig(), num=1, seed=0)
        ids = [*prompt_ids, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        probes.append(Probe(ids, range(len(prompt_ids), len(ids) + 1), suffixes))
    found = probe.answer_logprobs(model, probes, memory_mib=2)  # many passes, with both trajectories in some
    gaps, spans = [], []
    for one, of_probe in zip(probes, found, strict=True):
        for suffix, logprob_KA in zip(one.suffixes, of_probe, strict=True):
            expected = one_forward_per_prefix(model, one.lengths, suffix, one.token_ids)
            gaps.append(np.abs(logprob_KA.numpy() - expected).max())
            spans.append(np.ptp(expected.mean(axis=1)))
    assert len(gaps) == 2 * 2
    assert max(gaps) < 1e-5, "nats"
    assert min(spans) > 0.2  # what was trained reads its trajectories: L-hat changes along each


@pytest.mark.parametrize(
    "suffix",
    [AnswerSuffix([8], [True]), AnswerSuffix([8, 9], [True, True]), AnswerSuffix([8, 9, 10], [False, True, False])],
)
def test_an_answer_may_begin_at_the_suffixs_first_token_or_end_before_its_last(suffix: AnswerSuffix) -> None:
    model = policy("llama")
    expected = one_forward_per_prefix(model, range(1, 31), suffix)
    assert np.abs(from_the_tree(model, range(1, 31), suffix) - expected).max() < 1e-5


def test_the_loss_is_the_mean_over_answer_tokens_only() -> None:
    model = policy("qwen2")
    ((found,),) = probe.answer_nll(model, [Probe(TOKENS, range(5, 31), [SUFFIX])], memory_mib=64)
    expected = one_forward_per_prefix(model, range(5, 31), SUFFIX)
    assert found == pytest.approx(-expected.mean(axis=1), abs=1e-5)


def test_a_policy_that_knows_nothing_pays_ln_v_everywhere() -> None:
    model = policy("qwen2", tie_word_embeddings=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    ((found,),) = probe.answer_nll(model, [Probe(TOKENS, range(2, 31), [SUFFIX])], memory_mib=64)
    assert np.array_equal(found, np.full(29, math.log(VOCAB_SIZE), dtype=np.float32))


def test_what_follows_a_prefix_does_not_reach_it() -> None:
    model = policy("llama")
    texts = [TOKENS, TOKENS[:20] + [1] * 10]
    (before,), (after,) = probe.answer_nll(model, [Probe(ids, range(1, 31), [SUFFIX]) for ids in texts], memory_mib=64)
    assert before[:20] == pytest.approx(after[:20], abs=1e-6)
    assert np.abs(before[21:] - after[21:]).min() > 1e-4


def test_a_smaller_memory_means_more_passes_and_too_little_is_refused_by_name() -> None:
    model = policy("qwen2")
    passes: list[int] = []
    model.register_forward_pre_hook(
        lambda _, given, named: passes.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    counts = {}
    for memory_mib in (0.15, 0.5, 64):
        passes.clear()
        from_the_tree(model, range(1, 31), SUFFIX, memory_mib)
        # Every token of the text, and of each of the 30 branches the four before the answer's last.
        assert sum(passes) == 30 + 30 * 4
        costs = probe_memory.costs(model.config, 4, num_masks=1, is_eager=False)
        read, *branched = passes
        assert costs.bytes(read, 0, 0) <= memory_mib * 2**20
        assert all(costs.bytes(size, 0, 0, num_own=4) <= memory_mib * 2**20 for size in branched)
        counts[memory_mib] = len(passes)
    assert counts[0.15] > counts[0.5] > counts[64] == 2
    with pytest.raises(ValueError, match=r"analyze\.probe_memory_mib=0\.01 has no room"):
        from_the_tree(model, range(1, 31), SUFFIX, 0.01)


@pytest.mark.parametrize(("vocab_size", "memory_mib"), [(53, 4), (20_000, 8)])
def test_what_a_pass_holds_stays_within_the_memory_and_fills_it(vocab_size: int, memory_mib: float) -> None:
    model = policy("qwen2", vocab_size=vocab_size, max_position_embeddings=512, hidden_size=128)
    token_ids = TOKENS * 10
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        probe.answer_nll(model, [Probe(token_ids, range(1, 301, 4), [SUFFIX])], memory_mib=memory_mib)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    assert 0.4 < held.max() / (memory_mib * 2**20) <= 1


def test_the_bytes_of_a_pass_by_hand() -> None:
    costs = probe_memory.costs(policy("qwen2").config, 4, num_masks=1, is_eager=False)
    # 2 layers of 2 heads, one layer's again, and 4 heads: 10 heads of 16 numbers, key and value, 4 bytes each
    assert costs.per_key == 10 * 16 * 2 * 4
    assert costs.per_logits == VOCAB_SIZE * 8
    assert costs.bytes(5, 20, 3) == 25 * costs.per_key + 5 * costs.per_token + 125 * costs.per_pair
    assert costs.bytes(5, 20, 3, num_own=2) == 25 * costs.per_key + 5 * costs.per_token + 5 * 22 * costs.per_pair
    assert costs.bytes(1, 20, 300) == 21 * costs.per_key + 300 * VOCAB_SIZE * 8  # here the head is the peak


def test_an_architecture_that_no_test_knows_is_probed_where_a_look_at_it_proves_exact() -> None:
    model = policy(
        "stablelm", num_key_value_heads=4, partial_rotary_factor=0.5
    )  # without transformers' attention functions
    assert not model._supports_attention_backend
    found = from_the_tree(model, range(4, 31), SUFFIX)
    assert np.abs(found - one_forward_per_prefix(model, range(4, 31), SUFFIX)).max() < 1e-5


def test_an_architecture_whose_tree_is_not_exact_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy("helium")
    exact = probe._by_tree

    def off(model: PreTrainedModel, probes: Sequence[Probe], memory_mib: float) -> list[list[torch.Tensor]]:
        return [[found_KA + 0.01 for found_KA in of_probe] for of_probe in exact(model, probes, memory_mib)]

    monkeypatch.setattr(probe, "_by_tree", off)
    with pytest.raises(ValueError, match="helium policies cannot be probed: a tree of answers differs by"):
        from_the_tree(model, [1], SUFFIX)


@pytest.mark.parametrize(
    ("model_type", "changed", "named"),
    [
        ("ministral", ONE_LAYER, "ministral policies with a sliding window cannot be probed"),
        ("nemotron", {}, "nemotron policies cannot be probed"),
    ],
)
def test_other_architectures_are_refused_by_name(model_type: str, changed: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        from_the_tree(policy(model_type, **changed), [1], SUFFIX)


@pytest.mark.parametrize(
    ("lengths", "num_tokens", "suffix", "named"),
    [
        ([0, 1], 30, SUFFIX, "prefixes of 0 .. 1 tokens"),
        ([30, 31], 30, SUFFIX, "prefixes of 30 .. 31 tokens"),
        ([3, 3], 30, SUFFIX, "must ascend"),
        ([], 30, SUFFIX, "prefixes of none"),
        ([60], 60, SUFFIX, "context of 64"),
        ([1], 30, AnswerSuffix([1, 2], [False, False]), "at least one answer token"),
    ],
)
def test_positions_and_suffixes_that_make_no_sense_are_refused(
    lengths: list[int], num_tokens: int, suffix: AnswerSuffix, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        probe.answer_nll(policy("qwen2"), [Probe((TOKENS * 2)[:num_tokens], lengths, [suffix])], memory_mib=64)


@pytest.mark.gpu
@pytest.mark.parametrize("changed", [{}, WINDOWS["qwen2"]])
def test_compiled_block_masks_give_what_one_forward_per_prefix_gives(changed: dict[str, object]) -> None:
    model = policy("qwen2", head_dim=64, **changed)
    expected = one_forward_per_prefix(model, range(1, 31), SUFFIX)
    model.to("cuda")
    probe_support.use_blocks(model)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = from_the_tree(model, range(1, 31), SUFFIX)
    assert torch.cuda.max_memory_allocated() - before <= 64 * 2**20
    assert np.abs(found - expected).max() < 1e-4  # TF32 is off by default; reductions are in another order


@pytest.mark.vllm
def test_the_probe_agrees_with_one_engine_request_per_prefix(tmp_path: Path) -> None:
    # the miniature's shape
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 1}
    model = policy("qwen2", head_dim=32, intermediate_size=288, **sizes)
    model.save_pretrained(tmp_path)
    engine = Engine(str(tmp_path), EngineConfig(max_model_len=64, kv_cache_gib=0.05, max_num_seqs=16), seed=0)
    lengths = range(6, len(TOKENS) + 1)
    expected = prefix_requests.answer_nll(engine, TOKENS, lengths, SUFFIX)
    engine.close()
    ((found,),) = probe.answer_nll(model, [Probe(TOKENS, lengths, [SUFFIX])], memory_mib=0.5)
    assert found == pytest.approx(expected, abs=1e-5)
