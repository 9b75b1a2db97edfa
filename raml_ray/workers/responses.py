"""Whole responses from one engine, their thinking cut at a budget if one is given (budget forcing; paper, Fig. 11).

With a budget of N tokens a response begins as a request of at most N tokens. One that ends by itself is done. One whose
thinking has ended is continued to its ordinary length. Of any other the forced text takes the places from N on, and an
answer is sampled behind it. What is sampled in the second place has a seed of its own, which hangs on the first alone,
so that a response is the same in whatever company and order it is made. (A stop text that begins in the one and ends in
the other is not seen.)
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from raml_ray import records
from raml_ray.config import ConfigError
from raml_ray.settings import EngineConfig, EvaluateConfig, GenerateConfig, PromptConfig
from raml_ray.workers.sampling import Completion, Failure, FinishReason, Request, Sampling

END_OF_THINKING = "</think>"


class Loop(Protocol):
    """Who answers requests: an EngineLoop."""

    def submit(self, request: Request, sampling: Sampling) -> "Future[Completion | Failure]": ...


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a response may think, and what follows if it has not come to an end by then."""

    thinking_tokens: int
    """N: response tokens after which thinking is cut."""
    forced_token_ids: tuple[int, ...]
    """Put behind thinking that was cut."""
    answer_tokens: int
    """Most tokens behind the forced ones."""
    max_model_len: int
    """Tokens that the engine holds of prompt and response together."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)
    """Thinking ends with the text `</think>`, which may be one token or several."""

    def to_json(self) -> str:
        """What decides a response, besides its prompt, its sampling and the engine's length."""
        values = {
            "thinking_tokens": self.thinking_tokens,
            "forced_token_ids": self.forced_token_ids,
            "answer_tokens": self.answer_tokens,
        }
        return json.dumps(values, sort_keys=True)

    def refusal(self, prompt_token_ids: Sequence[int]) -> str | None:
        """Why no answer fits behind thinking that uses up the budget, or None if one does."""
        needed = len(prompt_token_ids) + self.thinking_tokens + len(self.forced_token_ids) + 1
        if needed <= self.max_model_len:
            return None
        return (
            f"prompt of {len(prompt_token_ids)} tokens: with thinking_budget={self.thinking_tokens}, the"
            f" {len(self.forced_token_ids)} tokens of budget_text and an answer it needs {needed}, more than"
            f" engine.max_model_len={self.max_model_len}; raise it or lower the budget"
        )

    def has_ended(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens of a response hold the end of its thinking."""
        return END_OF_THINKING in str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))


@dataclass(frozen=True, slots=True)
class Response:
    """What was answered to a request: a Completion, some of whose tokens may have been put there."""

    token_ids: list[int]
    """The token that stopped it included."""
    logprobs: list[float]
    """Of each token under the distribution that it was drawn from, nats; 0 of a forced token."""
    finish_reason: FinishReason
    version: int
    """Of the weights that sampled it."""
    forced: list[tuple[int, int]] = field(default_factory=list)
    """Spans of tokens that were put there and not sampled: (first, behind the last)."""


class _Begun(NamedTuple):
    """A response up to its second request: the tokens so far, of which the last `num_forced` were put there."""

    completion: Completion
    token_ids: list[int]
    logprobs: list[float]
    num_forced: int


def budget_of(
    settings: GenerateConfig | EvaluateConfig,
    sampling: Sampling,
    prompt: PromptConfig,
    engine: EngineConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> Budget | None:
    """The budget that the settings of a stage ask for, or None if they ask for none.

    Raises: ConfigError naming the setting, if the budget leaves no room for an answer, if its text is no text to be
    continued, or if there is no thinking that could be cut.
    """
    if not settings.thinking_budget:
        return None
    stage = "generate" if isinstance(settings, GenerateConfig) else "evaluate"
    name = f"{stage}.thinking_budget={settings.thinking_budget}"
    forced = tuple(int(i) for i in tokenizer(settings.budget_text, add_special_tokens=False)["input_ids"])
    if not forced:
        raise ConfigError(
            f"{stage}.budget_text={settings.budget_text!r} holds no token: give the text before an answer"
        )
    if set(forced) & {*sampling.stop_token_ids, tokenizer.eos_token_id}:
        raise ConfigError(
            f"{stage}.budget_text={settings.budget_text!r} holds a token that ends a response: leave it out"
        )
    longest = settings.thinking_budget + len(forced)
    if longest >= sampling.max_tokens:
        raise ConfigError(
            f"{name} and the {len(forced)} tokens of {stage}.budget_text leave no room for an answer within"
            f" {stage}.max_tokens={sampling.max_tokens}: raise {stage}.max_tokens or lower the budget"
        )
    if not prompt.thinking or END_OF_THINKING in prompt.response_prefix:
        culprit = "prompt.response_prefix" if prompt.thinking else "prompt.thinking=false"
        raise ConfigError(f"{name}, but {culprit} ends the thinking before it begins: set one of the two")
    if sampling.presence_penalty or sampling.frequency_penalty:
        raise ConfigError(
            f"{name}: {stage}.presence_penalty and {stage}.frequency_penalty count a response's tokens from its first"
            " one, which is lost where a response is continued: set them to 0"
        )
    return Budget(
        thinking_tokens=settings.thinking_budget,
        forced_token_ids=forced,
        answer_tokens=min(settings.budget_answer_tokens, sampling.max_tokens - longest),
        max_model_len=engine.max_model_len,
        tokenizer=tokenizer,
    )


def respond(
    loop: Loop, requests: Sequence[Request], sampling: Sampling, budget: Budget | None = None
) -> list[Response | Failure]:
    """A response, or why there is none, for every request, in their order. The calling thread waits for them all.

    Raises: whatever the loop's futures raise when its engine fails.
    """
    finished: SimpleQueue[tuple[int, _Begun | None, Future[Completion | Failure]]] = SimpleQueue()

    def ask(place: int, begun: _Begun | None, request: Request, how: Sampling) -> None:
        # Only a queue is filled in the engine's own thread: a second request is made in this one.
        loop.submit(request, how).add_done_callback(lambda future: finished.put((place, begun, future)))

    replies: dict[int, Response | Failure] = {}
    first = sampling if budget is None else _limited(sampling, 0, budget.thinking_tokens)
    for place, request in enumerate(requests):
        reason = budget.refusal(request.prompt_token_ids) if budget else None
        if reason is None:
            ask(place, None, request, first)
        else:
            replies[place] = Failure(reason)
    while len(replies) < len(requests):
        place, begun, future = finished.get()
        reply = future.result()
        if isinstance(reply, Failure):
            replies[place] = reply
        elif begun is not None:
            replies[place] = _joined(begun, reply)
        elif budget is None or reply.finish_reason == "stop":
            replies[place] = Response(reply.token_ids, reply.logprobs, reply.finish_reason, reply.version)
        else:
            begun, how = _second(reply, sampling, budget)
            prompt, seed = requests[place]
            ask(place, begun, Request(prompt + begun.token_ids, records.seed_of(seed, "second")), how)
    return [replies[place] for place in range(len(requests))]


def _second(first: Completion, sampling: Sampling, budget: Budget) -> tuple[_Begun, Sampling]:
    """What stands before the second request of a response that used up its budget, and how it goes on from there."""
    if budget.has_ended(first.token_ids):
        num_left = sampling.max_tokens - len(first.token_ids)
        return _Begun(first, first.token_ids, first.logprobs, 0), _limited(sampling, len(first.token_ids), num_left)
    forced = budget.forced_token_ids
    token_ids = [*first.token_ids, *forced]
    begun = _Begun(first, token_ids, [*first.logprobs, *[0.0] * len(forced)], len(forced))
    return begun, _limited(sampling, len(token_ids), budget.answer_tokens)


def _limited(sampling: Sampling, num_tokens: int, max_tokens: int) -> Sampling:
    """The sampling of at most `max_tokens` tokens behind the first `num_tokens` of a response."""
    num_needed = max(0, sampling.min_tokens - num_tokens)
    return replace(sampling, max_tokens=max_tokens, min_tokens=min(num_needed, max_tokens))


def _joined(begun: _Begun, second: Completion) -> Response | Failure:
    if second.version != begun.completion.version:
        return Failure(f"weights {begun.completion.version} began the response, {second.version} would end it")
    end = len(begun.token_ids)
    return Response(
        begun.token_ids + second.token_ids,
        begun.logprobs + second.logprobs,
        second.finish_reason,
        second.version,
        [(end - begun.num_forced, end)] if begun.num_forced else [],
    )
