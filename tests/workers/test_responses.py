"""Responses whose thinking is cut at a budget: exactly there, and the same whatever else is asked."""

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from raml_ray.config import Config, ConfigError, override
from raml_ray.miniature import base
from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import BaseConfig, EngineConfig
from raml_ray.workers.engine import Engine
from raml_ray.workers.engine_loop import EngineFailure, EngineLoop
from raml_ray.workers.responses import Budget, Response, budget_of, respond
from raml_ray.workers.sampling import Completion, Failure, Request, Sampling, Span
from raml_ray.workers.scripted_engine import ScriptedEngine

TOKENIZER = miniature.build()
EOS = int(TOKENIZER.eos_token_id)
SAMPLING = Sampling(1.0, 1.0, -1, max_tokens=10, stop_token_ids=(EOS,))


def ids(text: str) -> list[int]:
    return [int(token) for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]]


FORCED = ids("\n</think>\n\n\\boxed{")
BUDGET = Budget(
    thinking_tokens=4, forced_token_ids=tuple(FORCED), answer_tokens=2, max_model_len=64, tokenizer=TOKENIZER
)
THOUGHT = ids("<think>\n 3 8")
ENDED = ids("<think> 11</think>\n")
assert len(THOUGHT) == len(ENDED) == BUDGET.thinking_tokens

Answer = Callable[[Request, Sampling], Completion | Failure]


class HandMade:
    """A loop that answers at once what it is told to, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[tuple[Request, Sampling]] = []

    def submit(self, request: Request, sampling: Sampling) -> "Future[Completion | Failure]":
        self.asked.append((request, sampling))
        future: Future[Completion | Failure] = Future()
        future.set_result(self._answer(request, sampling))
        return future


def first_then(first: Completion, second: Completion | Failure) -> HandMade:
    """The first answer is to the bare prompt [1], the second to a longer one."""
    return HandMade(lambda request, _: first if request.prompt_token_ids == [1] else second)


def completion(token_ids: list[int], reason: str = "length", version: int = 0) -> Completion:
    return Completion(
        token_ids, [-0.5] * len(token_ids), "stop" if reason == "stop" else "length", [Span(version, 0, len(token_ids))]
    )


def test_without_a_budget_a_request_is_asked_once_and_as_it_is() -> None:
    loop = HandMade(lambda request, _: completion([*request.prompt_token_ids, EOS], "stop", version=3))
    replies = respond(loop, [Request([7], 1), Request([8], 2)], SAMPLING)
    assert replies == [Response([7, EOS], [-0.5] * 2, "stop", 3), Response([8, EOS], [-0.5] * 2, "stop", 3)]
    assert loop.asked == [(Request([7], 1), SAMPLING), (Request([8], 2), SAMPLING)]


def test_thinking_is_cut_after_the_budget_and_the_answer_sampled_behind_the_forced_text() -> None:
    loop = first_then(completion(THOUGHT), completion([5, 6]))
    (reply,) = respond(loop, [Request([1], 77)], SAMPLING, BUDGET)
    assert isinstance(reply, Response)
    assert reply.token_ids == THOUGHT + FORCED + [5, 6]
    assert reply.forced == [(4, 4 + len(FORCED))]
    assert reply.logprobs == [-0.5] * 4 + [0.0] * len(FORCED) + [-0.5] * 2
    assert reply.finish_reason == "length"
    (_, first), (asked, second) = loop.asked
    assert (first.max_tokens, second.max_tokens) == (4, 2)
    assert asked.prompt_token_ids == [1, *THOUGHT, *FORCED]
    assert asked.seed != 77


def test_a_response_that_ended_thinking_in_time_goes_on_to_its_ordinary_length() -> None:
    loop = first_then(completion(ENDED), completion([5, EOS], "stop"))
    assert respond(loop, [Request([1], 77)], SAMPLING, BUDGET) == [
        Response([*ENDED, 5, EOS], [-0.5] * 6, "stop", 0, forced=[])
    ]
    asked, second = loop.asked[1]
    assert asked.prompt_token_ids == [1, *ENDED]
    assert second == replace(SAMPLING, max_tokens=6)


def test_a_response_that_ends_within_the_budget_is_left_alone() -> None:
    loop = first_then(completion([5, EOS], "stop"), Failure("never asked"))
    assert respond(loop, [Request([1], 0)], SAMPLING, BUDGET) == [Response([5, EOS], [-0.5] * 2, "stop", 0)]
    assert len(loop.asked) == 1


def test_the_end_of_thinking_is_seen_in_several_tokens_too() -> None:
    pieces = [token for character in "</think>" for token in ids(character)]
    assert len(pieces) == 8
    assert not set(pieces) & set(ids("</think>"))
    budget = replace(BUDGET, thinking_tokens=8)
    whole = first_then(completion(pieces), completion([5]))
    cut = first_then(completion([5, *pieces[:7]]), completion([5]))
    sampling = replace(SAMPLING, max_tokens=40)
    assert [reply.forced for reply in respond(whole, [Request([1], 0)], sampling, budget)] == [[]]
    assert [reply.forced for reply in respond(cut, [Request([1], 0)], sampling, budget)] == [[(8, 8 + len(FORCED))]]


def test_a_prompt_is_refused_where_the_forced_text_and_one_token_do_not_fit() -> None:
    fits = replace(BUDGET, max_model_len=1 + 4 + len(FORCED) + 1)
    loop = first_then(completion(THOUGHT), completion([5]))
    fitting, refused = respond(loop, [Request([1], 0), Request([1, 1], 0)], SAMPLING, fits)
    assert isinstance(fitting, Response)
    assert isinstance(refused, Failure)
    assert f"prompt of 2 tokens: with thinking_budget=4, the {len(FORCED)} tokens of budget_text" in refused.reason
    assert f"engine.max_model_len={fits.max_model_len}" in refused.reason


def test_fewest_tokens_count_over_both_parts() -> None:
    for least, expected in ((2, (2, 0)), (6, (4, 2)), (10, (4, 6))):
        loop = first_then(completion(ENDED), completion([5]))
        respond(loop, [Request([1], 0)], replace(SAMPLING, min_tokens=least), BUDGET)
        assert tuple(sampling.min_tokens for _, sampling in loop.asked) == expected


def test_a_failure_of_either_part_is_the_reply_and_spoils_no_other() -> None:
    def answer(request: Request, _: Sampling) -> Completion | Failure:
        if request.prompt_token_ids == [2]:
            return Failure("first")
        if len(request.prompt_token_ids) == 1:
            return completion(THOUGHT)
        return Failure("second") if request.prompt_token_ids[0] == 3 else completion([5])

    replies = respond(HandMade(answer), [Request([1], 0), Request([2], 0), Request([3], 0)], SAMPLING, BUDGET)
    assert [type(reply) for reply in replies] == [Response, Failure, Failure]
    assert replies[1:] == [Failure("first"), Failure("second")]


def test_a_response_of_two_policies_is_none() -> None:
    loop = first_then(completion(THOUGHT, version=1), completion([5], version=2))
    assert respond(loop, [Request([1], 0)], SAMPLING, BUDGET) == [
        Failure("weights 1 began the response, 2 would end it")
    ]


def test_an_engine_that_fails_is_not_taken_for_a_bad_row() -> None:
    class Dead:
        def submit(self, request: Request, sampling: Sampling) -> "Future[Completion | Failure]":
            future: Future[Completion | Failure] = Future()
            future.set_exception(EngineFailure("stalled"))
            return future

    with pytest.raises(EngineFailure, match="stalled"):
        respond(Dead(), [Request([1], 0)], SAMPLING, BUDGET)


def test_a_second_request_does_not_wait_for_the_others_first() -> None:
    class Late:
        """Answers the request of prompt [2] only after the second one of prompt [1] has come."""

        def __init__(self) -> None:
            self._late: Future[Completion | Failure] = Future()

        def submit(self, request: Request, sampling: Sampling) -> "Future[Completion | Failure]":
            if request.prompt_token_ids == [2]:
                return self._late
            future: Future[Completion | Failure] = Future()
            future.set_result(completion(THOUGHT))
            if len(request.prompt_token_ids) > 1:
                self._late.set_result(completion([EOS], "stop"))
            return future

    with ThreadPoolExecutor(1) as threads:
        replies = threads.submit(respond, Late(), [Request([1], 0), Request([2], 0)], SAMPLING, BUDGET)
        first, second = replies.result(timeout=30)
    assert isinstance(first, Response)
    assert first.forced
    assert second == Response([EOS], [-0.5], "stop", 0)


def check(plain: Response, budgeted: Response, *, budget: Budget, max_tokens: int) -> str:
    """That the budgeted response is what it should be beside the one without a budget; which of the three it is."""
    cut = budget.thinking_tokens
    if len(plain.token_ids) <= cut and plain.finish_reason == "stop":
        assert budgeted == plain
        return "ended"
    assert budgeted.token_ids[:cut] == plain.token_ids[:cut]
    assert budgeted.logprobs[:cut] == pytest.approx(plain.logprobs[:cut], abs=1e-5)
    assert len(budgeted.logprobs) == len(budgeted.token_ids) > cut
    assert (budgeted.finish_reason == "stop") == (budgeted.token_ids[-1] == EOS)
    if budget.has_ended(plain.token_ids[:cut]):
        assert budgeted.forced == []
        assert len(budgeted.token_ids) <= max_tokens
        return "continued"
    end = cut + len(budget.forced_token_ids)
    assert budgeted.forced == [(cut, end)]
    assert tuple(budgeted.token_ids[cut:end]) == budget.forced_token_ids
    assert set(budgeted.logprobs[cut:end]) == {0.0}
    assert end < len(budgeted.token_ids) <= end + budget.answer_tokens
    return "cut"


class SameStart(ScriptedEngine):
    """A scripted engine whose shorter response is the beginning of its longer one, as a real engine's is."""

    def _reply(self, request: Request, sampling: Sampling) -> tuple[list[int], bool]:
        token_ids, stops = super()._reply(request, replace(sampling, max_tokens=60))
        return token_ids[: sampling.max_tokens], stops and len(token_ids) <= sampling.max_tokens


@pytest.fixture
def scripted() -> Iterator[EngineLoop[SameStart]]:
    engine = SameStart("unused", EngineConfig(max_model_len=200, max_num_seqs=16), seed=0, vocab_size=len(TOKENIZER))
    loop = EngineLoop(lambda: engine, stall_timeout_s=30, on_failure=print)
    yield loop
    loop.close()


def test_of_many_responses_each_is_cut_continued_or_left_alone(scripted: EngineLoop[SameStart]) -> None:
    budget = replace(BUDGET, thinking_tokens=40, max_model_len=200)
    sampling = replace(SAMPLING, max_tokens=60)
    requests = [Request([1 + index % 3], seed=index) for index in range(300)]
    kinds = [
        check(plain, budgeted, budget=budget, max_tokens=60)
        for plain, budgeted in zip(
            respond(scripted, requests, sampling), respond(scripted, requests, sampling, budget), strict=True
        )
        if isinstance(plain, Response) and isinstance(budgeted, Response)
    ]
    assert len(kinds) == 300
    assert min(kinds.count(kind) for kind in ("ended", "continued", "cut")) >= 5


def test_order_and_company_change_no_response(scripted: EngineLoop[SameStart]) -> None:
    budget = replace(BUDGET, thinking_tokens=20, max_model_len=200)
    sampling = replace(SAMPLING, max_tokens=60)
    requests = [Request([1], seed=index) for index in range(50)]
    replies = respond(scripted, requests, sampling, budget)
    assert respond(scripted, requests[::-1], sampling, budget)[::-1] == replies
    assert respond(scripted, requests[7:8], sampling, budget) == replies[7:8]


def budget_with(**settings: object) -> Budget | None:
    config = override(Config(), {name.replace("__", "."): value for name, value in settings.items()})
    generate = config.generate
    sampling = Sampling(
        1.0, 1.0, -1, generate.max_tokens, (EOS,), presence_penalty=generate.presence_penalty, stop=generate.stop
    )
    return budget_of(generate, sampling, config.prompt, config.engine, TOKENIZER)


def test_no_budget_is_asked_for_unless_it_is() -> None:
    assert budget_with() is None


def test_the_budget_is_what_the_settings_say() -> None:
    made = budget_with(generate__thinking_budget=32)
    assert made is not None
    forced = ids("\n</think>\n\n**Final Answer**\n\\boxed{")
    assert made == Budget(32, tuple(forced), 64, 512, TOKENIZER)
    assert made.to_json() == (f'{{"answer_tokens": 64, "forced_token_ids": {forced}, "thinking_tokens": 32}}')


def test_a_budget_reaches_an_engine_in_another_process() -> None:
    sent = pickle.loads(pickle.dumps(BUDGET))
    assert sent == BUDGET
    assert sent.has_ended(ENDED)
    assert not sent.has_ended(THOUGHT)


def test_no_response_gets_longer_than_its_most_tokens() -> None:
    forced = len(ids("\n</think>\n\n**Final Answer**\n\\boxed{"))
    made = budget_with(generate__thinking_budget=100)
    assert made is not None
    assert made.answer_tokens == 128 - 100 - forced


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generate__thinking_budget": 128}, r"generate.thinking_budget=128 .* within generate.max_tokens=128"),
        ({"generate__thinking_budget": 122}, r"leave no room for an answer"),
        ({"generate__budget_text": ""}, r"generate.budget_text='' holds no token"),
        ({"generate__budget_text": "x<|im_end|>"}, r"budget_text='x<\|im_end\|>' holds a token that ends a response"),
        ({"prompt__thinking": False}, r"prompt.thinking=false ends the thinking before it begins"),
        ({"prompt__response_prefix": "<think>\n\n</think>\n\n"}, r"prompt.response_prefix ends the thinking"),
        ({"generate__presence_penalty": 0.5}, r"generate.presence_penalty and generate.frequency_penalty"),
    ],
)
def test_a_budget_that_cannot_be_kept_names_its_setting(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        budget_with(**{"generate__thinking_budget": 16, **settings})


@pytest.mark.vllm
@pytest.mark.slow
def test_a_real_engine_answers_behind_the_forced_text_as_the_policy_would(tmp_path: Path) -> None:
    import torch

    from raml_ray.workers.policy import load_model

    path = str(tmp_path)
    base.save(base.initial(BaseConfig(num_layers=2), TOKENIZER, seed=0), TOKENIZER, path)
    settings = EngineConfig(max_model_len=160, kv_cache_gib=0.05, max_num_seqs=32)
    loop = EngineLoop(lambda: Engine(path, settings, seed=0), stall_timeout_s=120, on_failure=print)
    budget = replace(BUDGET, thinking_tokens=70, answer_tokens=8, max_model_len=160)
    sampling = replace(SAMPLING, max_tokens=100)
    requests = [Request(ids("Sum: _ 3 8"), seed=index) for index in range(64)]
    try:
        pairs = list(zip(respond(loop, requests, sampling), respond(loop, requests, sampling, budget), strict=True))
    finally:
        loop.close()
        loop.engine.close()
    kinds = []
    model = load_model(path).eval()
    for request, (plain, budgeted) in zip(requests, pairs, strict=True):
        assert isinstance(plain, Response)
        assert isinstance(budgeted, Response)
        kinds.append(check(plain, budgeted, budget=budget, max_tokens=100))
        whole = torch.tensor(request.prompt_token_ids + budgeted.token_ids)
        start = len(request.prompt_token_ids)
        with torch.no_grad():
            logprobs = model(whole[None]).logits[0, start - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(1, whole[start:, None])[:, 0]
        for first, end in budgeted.forced:
            expected[first:end] = 0.0
        assert budgeted.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    assert min(kinds.count(kind) for kind in ("ended", "continued", "cut")) >= 1
