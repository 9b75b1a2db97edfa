"""Token ids in, token ids and log-probabilities out: the real engine against the learner, and the scripted one."""

import json
import math
from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raml_ray.settings import EngineConfig
from raml_ray.workers import weights
from raml_ray.workers.engine import Completion, Engine, Failure, Request, Sampling
from raml_ray.workers.scripted_engine import ScriptedEngine

VOCAB_SIZE = 61
SETTINGS = EngineConfig(max_model_len=48, kv_cache_gib=0.05, max_num_seqs=8)
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=12)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=48,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def engine(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("policy")
    model.save_pretrained(path)
    started = Engine(str(path), SETTINGS, seed=0)
    yield started
    started.close()


@pytest.fixture
def scripted() -> ScriptedEngine:
    return ScriptedEngine("unused", SETTINGS, seed=0, vocab_size=VOCAB_SIZE)


def completions(replies: list[Completion | Failure]) -> list[Completion]:
    assert all(isinstance(reply, Completion) for reply in replies), replies
    return [reply for reply in replies if isinstance(reply, Completion)]


@pytest.mark.vllm
def test_logprobs_are_those_of_the_distribution_that_was_sampled_from(engine: Engine, model: LlamaForCausalLM) -> None:
    requests = [Request([1 + index, 7, 2], seed=index) for index in range(8)]
    for temperature in (1.0, 0.6):
        replies = completions(engine.generate(requests, Sampling(temperature, 1.0, -1, 12)))
        for request, reply in zip(requests, replies, strict=True):
            ids = torch.tensor(request.prompt_token_ids + reply.token_ids)
            with torch.no_grad():
                logits = model(ids[None]).logits[0, 2:-1] / temperature
            expected = logits.log_softmax(-1).gather(1, ids[3:, None])[:, 0]
            assert reply.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.vllm
def test_top_k_of_one_leaves_no_doubt(engine: Engine) -> None:
    reply = completions(engine.generate([Request([4, 4], 1)], Sampling(1.0, 1.0, 1, 6)))[0]
    # The one token that is left has probability 1
    assert reply.logprobs == [0.0] * 6


@pytest.mark.vllm
def test_order_and_company_of_requests_change_nothing(engine: Engine) -> None:
    requests = [Request([index % 5, 9, 3], seed=100 + index) for index in range(20)]
    replies = engine.generate(requests, SAMPLING)
    assert engine.generate(requests[::-1], SAMPLING)[::-1] == replies
    assert [engine.generate([request], SAMPLING)[0] for request in requests[:3]] == replies[:3]
    # Equal prompts differ by their seeds alone
    assert replies[0] != replies[5]


@pytest.mark.vllm
def test_one_bad_request_spoils_no_other(engine: Engine) -> None:
    good = Request([1, 2, 3], 5)
    bad = [Request([], 0), Request([1] * 48, 0), Request([VOCAB_SIZE], 0), Request([-1], 0)]
    replies = engine.generate([bad[0], good, *bad[1:]], SAMPLING)
    assert replies[1] == engine.generate([good], SAMPLING)[0]
    assert isinstance(replies[1], Completion)
    reasons = [reply.reason for reply in replies if isinstance(reply, Failure)]
    assert [reason.split()[0] for reason in reasons] == ["empty", "prompt", "prompt", "prompt"]
    assert "max_model_len=48" in reasons[1]
    assert "vocabulary of 61" in reasons[2]


@pytest.mark.vllm
def test_a_response_ends_at_a_stop_token_or_where_the_room_ends(engine: Engine) -> None:
    prompt = [5] * 44
    full = completions(engine.generate([Request(prompt, 8)], SAMPLING))[0]
    assert (len(full.token_ids), full.finish_reason) == (4, "length")
    stop = Sampling(1.0, 1.0, -1, 12, stop_token_ids=(full.token_ids[2],))
    stopped = completions(engine.generate([Request(prompt, 8)], stop))[0]
    end = full.token_ids.index(full.token_ids[2]) + 1
    assert stopped.token_ids == full.token_ids[:end]
    assert stopped.finish_reason == "stop"
    assert len(stopped.logprobs) == end


@pytest.mark.vllm
def test_token_logprobs_are_the_learners_of_every_token_but_the_first(engine: Engine, model: LlamaForCausalLM) -> None:
    sequences = [[3, 1, 4, 1, 5], [2, 7], list(range(48))]  # the last fills the policy's context
    found = weights.compare(engine.token_logprobs(sequences), list(weights.token_logprobs(model, sequences)))
    assert found.max_abs < 1e-5
    with pytest.raises(ValueError, match=r"sequence 1: .*predecessor"):
        engine.token_logprobs([[1, 2], [1]])
    with pytest.raises(ValueError, match=r"sequence 0 of 49 tokens: engine.max_model_len=48"):
        engine.token_logprobs([[1] * 49])


@pytest.mark.vllm
def test_threads_can_still_be_set_beside_an_engine(engine: Engine) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_sampling_that_no_distribution_has_is_refused(changed: dict[str, float], named: str) -> None:
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 4}
    with pytest.raises(ValueError, match=named):
        Sampling(**(values | changed))  # type: ignore[arg-type]


def test_sampling_is_recorded_as_json() -> None:
    assert json.loads(Sampling(0.6, 0.9, 20, 8, (1, 2)).to_json()) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "max_tokens": 8,
        "stop_token_ids": [1, 2],
    }


def test_scripted_replies_depend_on_the_seed_alone(scripted: ScriptedEngine) -> None:
    requests = [Request([index, 9], seed=index) for index in range(50)]
    sampling = Sampling(1.0, 1.0, -1, 10, stop_token_ids=(3,))
    replies = completions(scripted.generate(requests, sampling))
    assert scripted.generate(requests[::-1], sampling)[::-1] == replies
    assert len({tuple(reply.token_ids) for reply in replies}) > 40
    for reply in replies:
        assert reply.finish_reason == ("stop" if reply.token_ids[-1] == 3 else "length")
        assert 3 not in reply.token_ids[:-1]
        assert 1 <= len(reply.token_ids) <= 10
        assert reply.logprobs == [-math.log(VOCAB_SIZE)] * len(reply.token_ids)
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}


def test_scripted_failures_are_the_real_engines(scripted: ScriptedEngine) -> None:
    replies = scripted.generate([Request([], 0), Request([1], 0), Request([61], 0)], SAMPLING)
    assert [isinstance(reply, Failure) for reply in replies] == [True, False, True]


def test_a_scripted_engine_takes_a_version_with_its_weights(scripted: ScriptedEngine) -> None:
    flat, layout = weights.flatten([("w", torch.ones(3))])
    assert scripted.load_weights(flat, layout, 7) == weights.checksum(flat, layout)
    assert scripted.version == 7
    assert completions(scripted.generate([Request([1], 0)], SAMPLING))[0].version == 7
    assert scripted.token_logprobs([[1, 2]])[0].tolist() == pytest.approx([-math.log(VOCAB_SIZE)])
