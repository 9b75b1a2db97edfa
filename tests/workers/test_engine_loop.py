"""One engine asked by many threads at once: nobody's answer depends on the others, and a failure reaches everyone."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from raml_ray.settings import EngineConfig
from raml_ray.workers import weights
from raml_ray.workers.engine import Engine
from raml_ray.workers.engine_loop import EngineFailure, EngineLoop, Together
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling, SteppedEngine
from raml_ray.workers.scripted_engine import ScriptedEngine
from tests.workers import tiny

VOCAB_SIZE = 61
SETTINGS = EngineConfig(max_model_len=64, max_num_seqs=8)
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=12, stop_token_ids=(3,))
DEADLINE_S = 60

Reply = Completion | Failure


@pytest.fixture
def scripted(tmp_path: Path) -> ScriptedEngine:
    return ScriptedEngine(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)


@pytest.fixture
def opened() -> Iterator[Callable[..., EngineLoop[SteppedEngine]]]:
    """Makes loops that are closed afterwards."""
    loops: list[EngineLoop[SteppedEngine]] = []

    def make(
        engine: SteppedEngine, reasons: list[str], stall_timeout_s: float = DEADLINE_S
    ) -> EngineLoop[SteppedEngine]:
        loops.append(EngineLoop(lambda: engine, stall_timeout_s=stall_timeout_s, on_failure=reasons.append))
        return loops[-1]

    yield make
    for loop in loops:
        loop.close()


Opened = Callable[..., EngineLoop[SteppedEngine]]


def asked_by_threads(loop: EngineLoop, requests: list[Request], num_threads: int) -> list[Reply]:
    """Every thread asks its share, each request after the answer to the one before: the engine is never empty."""
    replies: dict[int, Reply] = {}

    def ask(first: int) -> None:
        for index in range(first, len(requests), num_threads):
            replies[index] = loop.submit(requests[index], SAMPLING).result(DEADLINE_S)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [replies[index] for index in range(len(requests))]


def test_many_threads_get_the_answers_that_one_call_gets(scripted: ScriptedEngine, opened: Opened) -> None:
    requests = [Request([index % 60, 9], seed=index) for index in range(200)]
    requests[50] = Request([], seed=50)
    expected = scripted.generate(requests, SAMPLING)
    before = scripted.num_tokens
    assert before == sum(len(reply.token_ids) for reply in expected if isinstance(reply, Completion))
    reasons: list[str] = []
    loop = opened(scripted, reasons)
    assert asked_by_threads(loop, requests, num_threads=16) == expected
    assert isinstance(expected[50], Failure)
    assert loop.num_tokens == 2 * before
    assert reasons == []


def test_a_short_request_leaves_while_a_long_one_runs_and_another_takes_its_place(tmp_path: Path) -> None:
    engine = ScriptedEngine(str(tmp_path), EngineConfig(max_num_seqs=2), seed=0, vocab_size=VOCAB_SIZE)
    long, short = Sampling(1.0, 1.0, -1, max_tokens=9), Sampling(1.0, 1.0, -1, max_tokens=3)
    assert engine.add(0, Request([1], 0), long) is None
    for number in (1, 2, 3):
        assert engine.add(number, Request([1], number), short) is None
    assert engine.num_unfinished == 4
    finished = {step: [number for number, _ in engine.step()] for step in range(1, 10)}
    # Places for two: the short ones follow each other beside the long one, which ends in its ninth step.
    assert {step: numbers for step, numbers in finished.items() if numbers} == {3: [1], 6: [2], 9: [0, 3]}
    assert (engine.num_unfinished, engine.num_tokens) == (0, 18)


def test_a_call_is_made_between_steps_and_can_hold_requests_until_the_next(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "scripted.json").write_text('{"seconds_per_step": 0.005, "tokens": [30, 30]}')
    engine = ScriptedEngine(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)
    loop = opened(engine, list[str]())
    sent = [weights.pack([("w", torch.ones(3))])]
    long = Sampling(1.0, 1.0, -1, max_tokens=30)
    running = loop.submit(Request([1], 1), long)
    time.sleep(0.03)
    assert loop.call(lambda: engine.load_weights(sent, 4), holds=True).result(DEADLINE_S)
    steps = engine._num_steps
    time.sleep(0.05)
    assert engine._num_steps == steps and not running.done()
    assert loop.call(lambda: threading.current_thread().name).result(DEADLINE_S) == "engine loop"
    time.sleep(0.05)
    assert engine._num_steps == steps
    loop.call(lambda: None, holds=False)
    reply = running.result(DEADLINE_S)
    assert isinstance(reply, Completion)
    assert [(span.version, span.end) for span in reply.weight_versions] == [(0, steps), (4, 30)]
    cut = loop.submit(Request([1], 1), long)
    while not engine._running:
        time.sleep(0.001)
    loop.call(engine.cut).result(DEADLINE_S)
    reply = cut.result(DEADLINE_S)
    assert isinstance(reply, Completion)
    assert (reply.finish_reason, reply.version) == ("cut", 4)


def test_requests_that_are_together_enter_before_one_step_in_the_order_of_their_seeds(
    tmp_path: Path, opened: Opened
) -> None:
    class Noted(ScriptedEngine):
        seeds: tuple[int, ...] = ()
        before_step: list[tuple[int, ...]]

        def add(self, number: int, request: Request, sampling: Sampling) -> Failure | None:
            self.seeds += (request.seed,)
            return super().add(number, request, sampling)

        def step(self) -> list[tuple[int, Completion]]:
            self.before_step.append(self.seeds)
            return super().step()

    engine = Noted(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)
    engine.before_step = []
    loop = opened(engine, [])
    three = Together("wave", 3)
    answers = [loop.submit(Request([9], seed), SAMPLING, three) for seed in (7, 2)]
    assert loop.submit(Request([9], 1), SAMPLING).result(DEADLINE_S)  # what comes by itself neither waits nor counts
    assert not wait(answers, 0.2).done
    answers.append(loop.submit(Request([9], 5), SAMPLING, three))
    assert wait(answers, DEADLINE_S).not_done == set()
    steps = list(dict.fromkeys(engine.before_step))
    assert steps == [(1,), (1, 2, 5, 7)]


def test_requests_whose_others_never_come_are_a_stall(tmp_path: Path, opened: Opened) -> None:
    engine = ScriptedEngine(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)
    loop = opened(engine, [], stall_timeout_s=0.2)
    with pytest.raises(EngineFailure, match="stall_timeout_s"):
        loop.submit(Request([9], 1), SAMPLING, Together("wave", 2)).result(DEADLINE_S)


def test_a_call_that_raises_or_hangs_fails_the_engine(tmp_path: Path, opened: Opened) -> None:
    def engine_loop(reasons: list[str]) -> EngineLoop[SteppedEngine]:
        engine = ScriptedEngine(str(tmp_path), SETTINGS, seed=0, vocab_size=VOCAB_SIZE)
        return opened(engine, reasons, stall_timeout_s=0.2)

    reasons: list[str] = []
    loop = engine_loop(reasons)
    with pytest.raises(EngineFailure, match="ZeroDivisionError"):
        loop.call(lambda: 1 // 0).result(DEADLINE_S)
    with pytest.raises(EngineFailure, match="ZeroDivisionError"):
        loop.submit(Request([1], 1), SAMPLING).result(DEADLINE_S)
    over = threading.Event()
    with pytest.raises(EngineFailure, match="stall_timeout_s"):
        engine_loop(reasons).call(lambda: over.wait(DEADLINE_S)).result(DEADLINE_S)
    over.set()
    # Held, and never let go: who holds it has died.
    held = engine_loop(reasons)
    held.call(lambda: None, holds=True).result(DEADLINE_S)
    with pytest.raises(EngineFailure, match="stall_timeout_s"):
        held.submit(Request([1], 1), SAMPLING).result(DEADLINE_S)
    assert len(reasons) == 3


def test_what_the_engine_raises_reaches_everyone_who_waits_and_everyone_who_comes_later(
    scripted: ScriptedEngine, tmp_path: Path, opened: Opened
) -> None:
    (tmp_path / "poison-raise-60").touch()
    reasons: list[str] = []
    loop = opened(scripted, reasons)
    assert isinstance(loop.submit(Request([1], 1), SAMPLING).result(DEADLINE_S), Completion)
    futures = [loop.submit(Request([60 if index == 5 else 1], index), SAMPLING) for index in range(40)]
    assert not wait(futures, DEADLINE_S).not_done
    failures = [future.exception() for future in futures if future.exception() is not None]
    assert failures and all(isinstance(failure, EngineFailure) for failure in failures)
    assert futures[5].exception() in failures
    assert reasons == ["RuntimeError: a scripted engine came by poison-raise-60"]
    with pytest.raises(EngineFailure, match="came by poison-raise-60"):
        loop.submit(Request([1], 1), SAMPLING).result(DEADLINE_S)
    assert len(reasons) == 1


class Hanging(ScriptedEngine):
    """Its second step ends when it is let go."""

    def __init__(self, policy_path: str) -> None:
        super().__init__(policy_path, SETTINGS, seed=0, vocab_size=VOCAB_SIZE)
        self.steps, self.let_go = 0, threading.Event()

    def step(self) -> list[tuple[int, Completion]]:
        self.steps += 1
        if self.steps == 2:
            self.let_go.wait(DEADLINE_S)
        return super().step()


def test_a_step_that_does_not_end_fails_the_engine_and_an_idle_engine_never_stalls(
    tmp_path: Path, opened: Opened
) -> None:
    engine, reasons = Hanging(str(tmp_path)), list[str]()
    loop = opened(engine, reasons, stall_timeout_s=0.2)
    time.sleep(0.5)
    assert reasons == []  # nothing to do is no stall
    began = time.monotonic()
    waiting = loop.submit(Request([1], 1), Sampling(1.0, 1.0, -1, max_tokens=12))
    with pytest.raises(EngineFailure, match=r"engine\.stall_timeout_s=0\.2"):
        waiting.result(DEADLINE_S)
    assert 0.2 <= time.monotonic() - began < DEADLINE_S / 2
    assert len(reasons) == 1
    engine.let_go.set()  # too late: what the step then answers is nobody's


def test_after_closing_nobody_waits_and_the_engine_is_free(tmp_path: Path) -> None:
    (tmp_path / "scripted.json").write_text('{"seconds_per_step": 0.01, "tokens": [1000, 1000]}')
    settings = EngineConfig(max_model_len=2000)
    engine = ScriptedEngine(str(tmp_path), settings, seed=0, vocab_size=VOCAB_SIZE)
    reasons: list[str] = []
    loop = EngineLoop(lambda: engine, stall_timeout_s=DEADLINE_S, on_failure=reasons.append)
    endless = Sampling(1.0, 1.0, -1, max_tokens=1500, stop_token_ids=(3,))
    futures: list[Future[Reply]] = [loop.submit(Request([1], index), endless) for index in range(3)]
    time.sleep(0.05)
    loop.close()
    for future in [*futures, loop.submit(Request([1], 9), endless)]:
        with pytest.raises(EngineFailure, match="closed"):
            future.result(0)
    assert reasons == []
    assert loop.num_tokens == 0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = tmp_path_factory.mktemp("policy")
    tiny.served(vocab_size=VOCAB_SIZE, max_position_embeddings=1024, seed=5).save_pretrained(path)
    started = Engine(str(path), EngineConfig(max_model_len=560, kv_cache_gib=0.05, max_num_seqs=32), seed=0)
    yield started
    started.close()


def long_requests(num: int) -> list[Request]:
    tokens = random.Random(4)
    return [Request(tokens.choices(range(VOCAB_SIZE), k=500), seed=index) for index in range(num)]


@pytest.mark.vllm
def test_more_long_seeded_prompts_than_fit_into_a_step_are_all_answered(engine: Engine) -> None:
    requests = long_requests(24)
    budget = engine._vllm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert sum(len(request.prompt_token_ids) for request in requests) > 2 * budget
    replies = engine.generate(requests, SAMPLING)
    assert all(isinstance(reply, Completion) for reply in replies)
    # What the prompts were read with changes nothing: alone they get the same.
    for index in (0, 11, 23):
        assert tokens_of(engine.generate([requests[index]], SAMPLING)) == tokens_of([replies[index]])


def tokens_of(replies: list[Reply]) -> list[list[int]]:
    assert all(isinstance(reply, Completion) for reply in replies), replies
    return [reply.token_ids for reply in replies if isinstance(reply, Completion)]


@pytest.mark.vllm
def test_a_request_that_enters_a_busy_engine_gets_what_it_gets_alone(engine: Engine, opened: Opened) -> None:
    others = [Request([index % 7, 5, 8], seed=1000 + index) for index in range(60)]
    mine = [Request([index % 3, 2], seed=index) for index in range(12)] + long_requests(4)
    alone = [engine.generate([request], SAMPLING)[0] for request in mine]
    reasons: list[str] = []
    loop = opened(engine, reasons)
    busy = [loop.submit(request, Sampling(1.0, 1.0, -1, max_tokens=100)) for request in others]
    entered = asked_by_threads(loop, mine, num_threads=4)
    # Responses of 100 tokens cannot all have ended: half of them have to wait for a place first.
    assert not all(future.done() for future in busy)
    assert tokens_of(entered) == tokens_of(alone)
    for found, expected in zip(entered, alone, strict=True):
        assert isinstance(found, Completion) and isinstance(expected, Completion)
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert found.finish_reason == expected.finish_reason
    assert not wait(busy, DEADLINE_S).not_done
    assert reasons == []
    loop.close()


@pytest.mark.vllm
def test_sequences_are_scored_while_requests_go_on(engine: Engine) -> None:
    request = Request([1, 2], 0)
    alone = engine.generate([request], SAMPLING)[0]
    scored = engine.token_logprobs([[1, 2, 3], [4, 5]])
    assert engine.add(7, request, SAMPLING) is None
    engine.step()
    among = engine.token_logprobs([[1, 2, 3], [4, 5]])
    assert [row.tolist() for row in among] == [pytest.approx(row.tolist(), abs=1e-5) for row in scored]
    with pytest.raises(RuntimeError, match="1 unfinished requests"):
        engine.generate([Request([1], 0)], SAMPLING)
    finished = []
    while engine.num_unfinished:
        finished += engine.step()
    assert [number for number, _ in finished] == [7]
    assert tokens_of([finished[0][1]]) == tokens_of([alone])


@pytest.mark.vllm
def test_new_weights_meet_requests_under_way_and_no_key_of_the_old_ones_is_found_again(
    engine: Engine, opened: Opened
) -> None:
    """The same engine with the weights that it has, with others, and with the first again."""
    own = tiny.served(vocab_size=VOCAB_SIZE, max_position_embeddings=1024, seed=5)
    other = tiny.served(vocab_size=VOCAB_SIZE, max_position_embeddings=1024, seed=6)
    prompt = random.Random(2).choices(range(VOCAB_SIZE), k=200)  # long enough for blocks that a cache would keep
    request, long = Request(prompt, 3), Sampling(1.0, 1.0, -1, max_tokens=40)

    def load(model: LlamaForCausalLM, version: int) -> list[str]:
        return engine.load_weights(weights.buckets(model.named_parameters(), torch.float32, 2**16), version)

    def expected(model: LlamaForCausalLM, reply: Completion) -> list[float]:
        return next(weights.token_logprobs(model, [prompt + reply.token_ids])).tolist()[len(prompt) - 1 :]

    before = engine.generate([request], long)[0]
    assert isinstance(before, Completion)
    assert engine.add(1, request, long) is None
    for _ in range(15):
        assert engine.step() == []
    load(other, 1)
    (_, reply), *_ = [answer for _ in range(40) for answer in engine.step()]
    assert [tuple(span) for span in reply.weight_versions] == [(0, 0, 15), (1, 15, 40)]
    assert reply.token_ids[:15] == before.token_ids[:15]
    assert reply.logprobs[:15] == pytest.approx(expected(own, reply)[:15], abs=1e-4)
    # What comes later is drawn with the other weights from keys and values of both: near to, not the other policy's.
    assert np.abs(np.array(reply.logprobs[15:]) - expected(other, reply)[15:]).max() > 1e-3
    # A fresh request finds nothing of the old weights', though its prompt is the same.
    fresh = engine.generate([request], long)[0]
    assert isinstance(fresh, Completion)
    assert fresh.logprobs == pytest.approx(expected(other, fresh), abs=1e-4)
    assert [tuple(span) for span in fresh.weight_versions] == [(1, 0, 40)]

    # Cut: what is there is given with the reason, what had not begun has no token.
    assert engine.add(2, request, long) is None
    engine.step()
    engine.step()
    assert engine.add(3, request, long) is None
    engine.cut()
    load(own, 2)
    cut = dict(engine.step())
    assert [(cut[n].finish_reason, len(cut[n].token_ids), len(cut[n].logprobs)) for n in (2, 3)] == [
        ("cut", 2, 2),
        ("cut", 0, 0),
    ]
    assert cut[2].token_ids == fresh.token_ids[:2]
    assert engine.num_unfinished == 0
    again = engine.generate([request], long)[0]
    assert isinstance(again, Completion)
    assert (again.token_ids, again.version) == (before.token_ids, 2)


@pytest.mark.vllm
def test_stop_texts_need_an_engine_that_reads_along(engine: Engine) -> None:
    with pytest.raises(ValueError, match="needs_text=True"):
        engine.add(0, Request([1, 2], 0), Sampling(1.0, 1.0, -1, 8, stop=(".",)))
    assert engine.num_unfinished == 0


def test_the_engine_is_started_in_the_thread_that_steps_it_and_what_that_raises_is_told() -> None:
    started: list[str] = []

    def start() -> ScriptedEngine:
        started.append(threading.current_thread().name)
        raise ValueError("no such policy")

    with pytest.raises(ValueError, match="no such policy"):
        EngineLoop(start, stall_timeout_s=DEADLINE_S, on_failure=started.append)
    assert started == ["engine loop"]
