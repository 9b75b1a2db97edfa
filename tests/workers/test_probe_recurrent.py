"""Answers decoded from copies of a recurrent policy's state are those of one forward pass per prefix."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers import policy as policies
from raml_ray.workers import probe
from raml_ray.workers.probe_text import Probe
from raml_ray.workers.recurrent_forms import FORMS, num_bytes
from tests.workers.test_probe import SUFFIX, TOKENS, VOCAB_SIZE, one_forward_per_prefix

SIZES: dict[str, dict[str, object]] = {
    "mamba": {"state_size": 8, "expand": 2},
    "falcon_mamba": {"state_size": 8, "expand": 2},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "rwkv": {"context_length": 512, "attention_hidden_size": 64, "intermediate_size": 96, "rescale_every": 1},
}


def recurrent(model_type: str) -> PreTrainedModel:
    torch.manual_seed(11)
    config = AutoConfig.for_model(
        model_type, vocab_size=VOCAB_SIZE, hidden_size=64, num_hidden_layers=2, **SIZES[model_type]
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # logits far enough from uniform that a wrong state shows
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in name:
                parameter += 0.15 * torch.randn_like(parameter)
    return model.eval()


def test_every_recurrent_form_is_tested() -> None:
    assert set(SIZES) <= set(FORMS)


@pytest.mark.parametrize("model_type", SIZES)
@pytest.mark.parametrize("memory_mib", [0.35, 64])
def test_copies_of_the_state_give_what_one_forward_per_prefix_gives(model_type: str, memory_mib: float) -> None:
    model = recurrent(model_type)
    ((found,),) = probe.answer_logprobs(model, [Probe(TOKENS, range(1, 31), [SUFFIX])], memory_mib=memory_mib)
    expected = one_forward_per_prefix(model, range(1, 31), SUFFIX)
    assert np.abs(found.numpy() - expected).max() < 1e-5
    assert np.ptp(expected, axis=0).min() > 0.3  # different prefixes do give different values


@pytest.mark.parametrize("model_type", ["mamba", "rwkv"])
@pytest.mark.parametrize("memory_mib", [0.35, 64])
def test_texts_side_by_side_and_answers_of_one_tree_do_not_see_each_other(model_type: str, memory_mib: float) -> None:
    model = recurrent(model_type)
    answers = [AnswerSuffix([50, 51, *tail], [False, False] + [True] * len(tail)) for tail in ([4, 9], [4, 7], [8])]
    texts = [TOKENS[:18], TOKENS[5:17], TOKENS[:1]]
    probes = [Probe(ids, range(1, len(ids) + 1, 1 + index), answers[index:]) for index, ids in enumerate(texts)]
    probes.append(Probe(TOKENS[::-1], [2, 30], [AnswerSuffix([8], [True])]))
    found = probe.answer_logprobs(model, probes, memory_mib=memory_mib)
    for one, of_probe in zip(probes, found, strict=True):
        for suffix, logprob_KA in zip(one.suffixes, of_probe, strict=True):
            expected = one_forward_per_prefix(model, one.lengths, suffix, one.token_ids)
            assert np.abs(logprob_KA.numpy() - expected).max() < 1e-5


def test_a_smaller_memory_decodes_fewer_positions_at_once_and_too_little_is_refused() -> None:
    model = recurrent("mamba")
    rows: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda _, given, named: rows.append(named["input_ids"].shape[0]), with_kwargs=True
    )
    widest = {}
    for memory_mib in (0.35, 1, 64):
        rows.clear()
        probe.answer_nll(model, [Probe(TOKENS, range(1, 31), [SUFFIX])], memory_mib=memory_mib)
        # one token for the form's sizes, thirty of the text, four behind each of thirty prefixes
        assert sum(rows) == 1 + 30 + 30 * 4
        widest[memory_mib] = max(rows)
        assert widest[memory_mib] * num_bytes(FORMS["mamba"](model).start(1)) < memory_mib * 2**20
    assert widest[0.35] < widest[1] < widest[64] == 30
    with pytest.raises(ValueError, match=r"analyze\.probe_memory_mib=0\.01 has no room for one position's state"):
        probe.answer_nll(model, [Probe(TOKENS, [1], [SUFFIX])], memory_mib=0.01)


@pytest.mark.parametrize(("model_type", "memory_mib"), [("mamba", 2), ("rwkv", 1)])
def test_what_is_held_stays_within_the_memory_and_fills_it(model_type: str, memory_mib: float) -> None:
    model = recurrent(model_type)
    token_ids = TOKENS * 4
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        probe.answer_nll(model, [Probe(token_ids, range(1, 121), [SUFFIX])], memory_mib=memory_mib)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    assert 0.3 < held.max() / (memory_mib * 2**20) <= 1


@pytest.mark.parametrize("model_type", ["mamba", "rwkv"])
def test_a_folder_of_a_recurrent_policy_loads_and_is_probed(
    model_type: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(model_type)
    model = recurrent(model_type)
    model.config.rescale_every = 0  # RWKV as it was trained
    expected = one_forward_per_prefix(model, [7, 30], SUFFIX)
    recurrent(model_type).save_pretrained(folder)
    loaded = policies.load_model(str(folder)).eval()
    ((found,),) = probe.answer_logprobs(loaded, [Probe(TOKENS, [7, 30], [SUFFIX])], memory_mib=64)
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_mixtures_of_attention_and_recurrence_are_refused_by_name() -> None:
    config = AutoConfig.for_model("bamba", vocab_size=VOCAB_SIZE, hidden_size=64, num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"bamba policies cannot be probed: .* mamba2, .*rwkv"):
        probe.check(model, Probe(TOKENS, [1], [SUFFIX]))
