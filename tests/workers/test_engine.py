"""Token ids in, token ids and log-probabilities out: the real engine against the learner, and the scripted one."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from raml_ray.settings import EngineConfig
from raml_ray.workers import weights
from raml_ray.workers.engine import CannotServe, Engine
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling
from raml_ray.workers.scripted_engine import ScriptedEngine
from tests.workers import tiny

VOCAB_SIZE = 61
SETTINGS = EngineConfig(max_model_len=48, kv_cache_gib=0.05, max_num_seqs=8)
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=12)


def word(token: int) -> str:
    """Two characters: a letter and a digit."""
    return f"{chr(ord('A') + token // 10)}{token % 10}"


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny.served(vocab_size=VOCAB_SIZE, max_position_embeddings=48, seed=3)


@pytest.fixture(scope="module")
def engine(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("policy")
    model.save_pretrained(path)
    words = Tokenizer(models.WordLevel({word(token): token for token in range(VOCAB_SIZE)}, unk_token=word(0)))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("[A-Z][0-9]"), "isolated")
    words.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=[word(60)]).save_pretrained(path)
    started = Engine(str(path), SETTINGS, seed=0, needs_text=True)
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
def test_penalties_and_min_p_shape_the_distribution_that_is_sampled_from(
    engine: Engine, model: LlamaForCausalLM
) -> None:
    prompt = [1, 7, 2, 7]
    shaped = replace(
        SAMPLING, temperature=0.8, min_p=0.2, repetition_penalty=1.5, presence_penalty=0.4, frequency_penalty=0.3
    )
    reply = completions(engine.generate([Request(prompt, seed=11)], shaped))[0]
    for place, (token, logprob) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True)):
        before = reply.token_ids[:place]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + before])).logits[0, -1].double()
        for seen in {*prompt, *before}:
            logits[seen] = logits[seen] / 1.5 if logits[seen] > 0 else logits[seen] * 1.5
        for seen, times in Counter(before).items():
            logits[seen] -= 0.4 + 0.3 * times
        probabilities = (logits / 0.8).softmax(-1)
        probabilities[probabilities < 0.2 * probabilities.max()] = 0
        assert logprob == pytest.approx(math.log(probabilities[token] / probabilities.sum()), abs=1e-4)


@pytest.mark.vllm
def test_no_response_ends_before_min_tokens(engine: Engine) -> None:
    requests = [Request([5, index], seed=index) for index in range(12)]
    ends_soon = replace(SAMPLING, stop_token_ids=tuple(range(30)))
    assert min(len(reply.token_ids) for reply in completions(engine.generate(requests, ends_soon))) == 1
    for reply in completions(engine.generate(requests, replace(ends_soon, min_tokens=5))):
        assert len(reply.token_ids) >= 5
        assert all(token >= 30 for token in reply.token_ids[:5])
    # Where there is no room for so many, a response is as long as it can be.
    crowded = completions(engine.generate([Request([5] * 46, 0)], replace(ends_soon, min_tokens=5)))[0]
    assert len(crowded.token_ids) == 2


@pytest.mark.vllm
def test_bias_and_bad_words_shape_the_distribution_that_is_sampled_from(
    engine: Engine, model: LlamaForCausalLM
) -> None:
    free = completions(engine.generate([Request([4, 9], 21)], SAMPLING))[0].token_ids
    one, two = word(free[0]), word(free[0]) + word(free[1])
    # Of two tokens in a row the second alone is left out, and only behind the first.
    apart = completions(engine.generate([Request([4, 9], 21)], replace(SAMPLING, bad_words=(two,))))[0].token_ids
    assert (apart[0], apart[1] != free[1]) == (free[0], True)
    shaped = replace(SAMPLING, temperature=0.8, bad_words=(one,), logit_bias=((5, 3.0), (6, -2.5)))
    reply = completions(engine.generate([Request([4, 9], 21)], shaped))[0]
    assert free[0] not in reply.token_ids
    for place, (token, logprob) in enumerate(zip(reply.token_ids, reply.logprobs, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([[4, 9, *reply.token_ids[:place]]])).logits[0, -1].double()
        logits[5] += 3.0
        logits[6] -= 2.5
        logits[free[0]] = -math.inf
        assert logprob == pytest.approx(float((logits / 0.8).log_softmax(-1)[token]), abs=1e-4)


@pytest.mark.vllm
def test_a_stop_text_ends_a_response_with_the_token_that_completes_it(engine: Engine) -> None:
    request = Request([4, 9], 21)
    full = completions(engine.generate([request], SAMPLING))[0]
    text = "".join(word(token) for token in full.token_ids)
    across = text[9:11]  # the digit of the fifth token and the letter of the sixth
    end = (text.find(across) + 1) // 2 + 1
    reply = completions(engine.generate([request], replace(SAMPLING, stop=("no such", across))))[0]
    assert (reply.token_ids, reply.finish_reason) == (full.token_ids[:end], "stop")
    assert reply.logprobs == full.logprobs[:end]
    assert completions(engine.generate([request], replace(SAMPLING, stop=("no such",))))[0] == full
    # A text that is in the prompt alone ends nothing.
    assert completions(engine.generate([request], replace(SAMPLING, stop=(word(4) + word(9),))))[0] == full


@pytest.mark.vllm
def test_a_special_token_can_be_a_stop_text(engine: Engine) -> None:
    for seed in range(200):
        reply = completions(engine.generate([Request([4, 9], seed)], SAMPLING))[0]
        if 60 in reply.token_ids[:-1]:
            break
    stopped = completions(engine.generate([Request([4, 9], seed)], replace(SAMPLING, stop=(word(60),))))[0]
    assert stopped.token_ids == reply.token_ids[: reply.token_ids.index(60) + 1]
    assert stopped.finish_reason == "stop"


def test_an_engine_that_reads_along_needs_a_tokenizer(model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer"):
        Engine(str(tmp_path), SETTINGS, seed=0, needs_text=True)


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
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"bad_words": ("Wait", " ")}, "bad_words"),
        ({"logit_bias": ((3, math.inf),)}, "logit_bias"),
        ({"min_tokens": 5}, "min_tokens=5: .* max_tokens=4"),
        ({"stop": ("a", "")}, "stop"),
    ],
)
def test_sampling_that_no_distribution_has_is_refused(changed: dict[str, object], named: str) -> None:
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 4}
    with pytest.raises(ValueError, match=named):
        Sampling(**(values | changed))  # type: ignore[arg-type]


@pytest.mark.vllm
def test_a_policy_that_nobody_can_serve_is_told_from_an_engine_that_could_not_start(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(CannotServe, match="unheard_of"):
        Engine(str(tmp_path), SETTINGS, seed=0)
    model.save_pretrained(tmp_path)
    with pytest.raises(CannotServe, match="has no tokenizer"):
        Engine(str(tmp_path), SETTINGS, seed=0, needs_text=True)
    # 10 TiB are more than any machine has, yet another one might.
    with pytest.raises(ValueError, match="memory") as found:
        Engine(str(tmp_path), SETTINGS.model_copy(update={"kv_cache_gib": 10240.0}), seed=0)
    assert not isinstance(found.value, CannotServe)


def test_sampling_is_recorded_as_json() -> None:
    assert json.loads(Sampling(0.6, 0.9, 20, 8, (1, 2)).to_json()) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "max_tokens": 8,
        "stop_token_ids": [1, 2],
    }
    penalised = replace(SAMPLING, presence_penalty=0.5, stop=("\n",))
    assert json.loads(penalised.to_json()) == json.loads(SAMPLING.to_json()) | {"presence_penalty": 0.5, "stop": ["\n"]}


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
    arrays, layout = weights.pack([("w", torch.ones(3))])
    assert scripted.load_weights([(arrays, layout)], 7) == [weights.checksum(arrays, layout)]
    assert scripted.version == 7
    assert completions(scripted.generate([Request([1], 0)], SAMPLING))[0].version == 7
    assert scripted.token_logprobs([[1, 2]])[0].tolist() == pytest.approx([-math.log(VOCAB_SIZE)])


def test_a_script_says_how_long_responses_are_and_steps_take(tmp_path: Path) -> None:
    (tmp_path / "scripted.json").write_text('{"seconds_per_step": 0.002, "tokens": [2, 4]}')
    engine = ScriptedEngine(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)
    sampling = replace(SAMPLING, stop_token_ids=(3,))
    began = time.monotonic()
    replies = completions(engine.generate([Request([1], seed) for seed in range(40)], sampling))
    assert {len(reply.token_ids) for reply in replies} == {2, 3, 4}
    # 40 responses of 2 tokens or more, at most 8 side by side
    assert time.monotonic() - began >= 10 * 0.002
    longer = completions(engine.generate([Request([1], 0)], replace(sampling, min_tokens=6)))[0]
    assert (len(longer.token_ids), longer.finish_reason) == (6, "stop")
    (tmp_path / "scripted.json").write_text('{"seconds_per_token": 1}')
    with pytest.raises(TypeError, match="seconds_per_token"):
        ScriptedEngine(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)


def test_poison_befalls_every_engine_that_meets_it_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "poison-raise-17").touch()
    for _ in range(2):
        engine = ScriptedEngine(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)
        assert len(completions(engine.generate([Request([1, 7], 0)], SAMPLING))) == 1
        with pytest.raises(RuntimeError, match="came by poison-raise-17"):
            engine.generate([Request([1], 0), Request([2, 17], 0)], SAMPLING)


def test_a_held_engine_gives_so_many_replies_and_the_rest_when_it_is_let_go(tmp_path: Path) -> None:
    hold = tmp_path / "hold-2"
    hold.touch()
    engine = ScriptedEngine(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)
    for number in range(5):
        engine.add(number, Request([1], number), replace(SAMPLING, max_tokens=1))
    assert [len(engine.step()) for _ in range(3)] == [2, 0, 0]
    hold.unlink()
    assert (len(engine.step()), engine.num_unfinished) == (3, 0)


def test_a_fault_befalls_an_engine_when_half_of_its_requests_are_finished(tmp_path: Path) -> None:
    engine = ScriptedEngine(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)
    (tmp_path / "fault-generate-raise-0").touch()
    for number in range(4):
        engine.add(number, Request([1], number), replace(SAMPLING, max_tokens=number + 1))
    assert [number for number, _ in engine.step()] == [0]
    with pytest.raises(RuntimeError, match="came by fault-generate-raise-0"):
        engine.step()
    assert not list(tmp_path.glob("fault-*"))


def test_a_scripted_engine_has_no_text_that_could_stop_it(scripted: ScriptedEngine) -> None:
    with pytest.raises(ValueError, match="no text"):
        scripted.generate([Request([1], 0)], replace(SAMPLING, stop=(".",)))
    with pytest.raises(ValueError, match=r"engine\.kind=scripted"):
        ScriptedEngine("unused", SETTINGS, seed=0, vocab_size=VOCAB_SIZE, needs_text=True)
