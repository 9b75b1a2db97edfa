"""What engines are asked and what they answer: token ids in, token ids and their log-probabilities out."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, NamedTuple


class Request(NamedTuple):
    """One trajectory to sample: `Request([5, 9, 2], seed=77)`."""

    prompt_token_ids: list[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Raises: ValueError for settings that no distribution has.
    """

    temperature: float
    top_p: float
    top_k: int
    """-1 is off."""
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    """The only tokens that end a response; the one that does is the response's last."""
    min_p: float = 0.0
    """Tokens less likely than so many times the likeliest one are never drawn; 0 is off."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that prompt or response hold already; 1 is off."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the response holds already; 0 is off."""
    frequency_penalty: float = 0.0
    """As presence_penalty, once for every occurrence."""
    min_tokens: int = 0
    """No response ends before it has so many tokens, unless there is no room for them."""
    stop: tuple[str, ...] = ()
    """Texts that end a response; the token that completes one is the response's last."""
    bad_words: tuple[str, ...] = ()
    """Texts whose last token is never drawn where it would complete them, with and without a space before them."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)."""

    @property
    def needs_text(self) -> bool:
        """Whether an engine needs a tokenizer to draw so."""
        return bool(self.stop or self.bad_words)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}: must be finite and not negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.top_k < -1:
            raise ValueError(f"top_k={self.top_k}: must be -1 (off), 0 (off) or a count")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: must be at least 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p}: must be at least 0 (off) and at most 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: must be finite and above 0 (1 is off)")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(f"{name}={getattr(self, name)}: must be from -2 to 2 (0 is off)")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens}: must be at least 0 and at most max_tokens={self.max_tokens}"
            )
        if not all(self.stop):
            raise ValueError(f"stop={self.stop}: an empty text would end every response at once")
        if not all(word.strip() for word in self.bad_words):
            raise ValueError(f"bad_words={self.bad_words}: an empty text cannot be left out")
        if not all(token >= 0 and math.isfinite(bias) for token, bias in self.logit_bias):
            raise ValueError(f"logit_bias={self.logit_bias}: must be token ids, each with a finite number")

    def to_json(self) -> str:
        """What is switched off is left out, so that the ids of trajectories do not depend on it."""
        always = ("temperature", "top_p", "top_k", "max_tokens", "stop_token_ids")
        off = {field.name: field.default for field in fields(self) if field.name not in always}
        values = {name: value for name, value in asdict(self).items() if name in always or value != off[name]}
        return json.dumps(values, sort_keys=True)


class Span(NamedTuple):
    """Which weights sampled some of a response's tokens: `Span(version=3, start=0, end=17)`."""

    version: int
    start: int
    end: int
    """One past the last of them."""


FinishReason = Literal["stop", "length", "cut"]
"""`cut`: the engine was told to let go of it before it had come to an end."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled response."""

    token_ids: list[int]
    """The token that stopped it included."""
    logprobs: list[float]
    """Of each token under the distribution that it was drawn from (temperature, top-p, top-k, min-p, penalties,
    bias and bad words applied), nats."""
    finish_reason: FinishReason
    weight_versions: list[Span]
    """One behind the other, over all tokens; several where new weights came while it was under way."""

    @property
    def version(self) -> int:
        """Of the weights that sampled its last token."""
        return self.weight_versions[-1].version


class Failure(NamedTuple):
    """Why a request has no completion: `Failure("prompt of 600 tokens: engine.max_model_len=512 ...")`."""

    reason: str


def refusal(prompt_token_ids: Sequence[int], vocab_size: int, max_model_len: int) -> str | None:
    """Why such a prompt cannot be answered, or None if it can."""
    if not prompt_token_ids:
        return "empty prompt: at least one token is needed"
    if len(prompt_token_ids) >= max_model_len:
        return (
            f"prompt of {len(prompt_token_ids)} tokens: engine.max_model_len={max_model_len} leaves no room for a"
            " response; raise it or shorten the prompt"
        )
    if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= vocab_size:
        return f"prompt holds token ids outside the policy's vocabulary of {vocab_size}: wrong tokenizer"
    return None


class SteppedEngine(ABC):
    """An engine that is given requests at any time and worked step by step. It belongs to one thread at a time."""

    @abstractmethod
    def add(self, number: int, request: Request, sampling: Sampling) -> Failure | None:
        """Takes a request in under the caller's number, or says why it cannot be answered."""

    @abstractmethod
    def step(self) -> list[tuple[int, Completion]]:
        """One step of all that is under way; numbers and responses of what finished in it, in no order."""

    @abstractmethod
    def cut(self) -> None:
        """Ends all that is under way: the next step gives it with what it has, and the reason `cut`."""

    @property
    @abstractmethod
    def num_unfinished(self) -> int:
        """Requests that were taken in and whose response no step has given yet."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Tokens of all finished responses since the start."""

    def check_idle(self) -> None:
        """Raises: RuntimeError if requests are under way, which the caller is about to disturb."""
        if self.num_unfinished:
            raise RuntimeError(f"the engine has {self.num_unfinished} unfinished requests: step it until they are done")

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion | Failure]:
        """A response, or why there is none, for every request, in their order; one bad request spoils no other.

        Raises: RuntimeError if other requests are under way.
        """
        self.check_idle()
        replies: dict[int, Completion | Failure] = {}
        for number, request in enumerate(requests):
            refused = self.add(number, request, sampling)
            if refused is not None:
                replies[number] = refused
        while self.num_unfinished:
            replies.update(self.step())
        return [replies[number] for number in range(len(requests))]
