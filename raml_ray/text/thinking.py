"""Where a response thinks, in tokens: what can be cut, and what is put behind the cut so that an answer follows."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from raml_ray.text import roles

OPEN, CLOSE = "<think>", "</think>"
OPENING = re.compile(rf"\s*{OPEN}\n?")
SENTENCE_END = re.compile(r"\n+|(?<=[.!?])(?=[ \t])")
"""A line is a sentence too: a derivation has few full stops."""

Span = tuple[int, int]


class Thought(NamedTuple):
    """A response's tokens, and those of them, [start, end), that think: `Thought([5, 8, 9, 7], 1, 3, 4, [(1, 2), (2, 3)])`."""

    token_ids: list[int]
    start: int
    """Behind the tag that opens the thought, if the response has one."""
    end: int
    """Before what ends the thought; all tokens where nothing does."""
    closed: int
    """Tokens up to where that has been written."""
    sentences: list[Span]
    """Sentences and lines, one behind the other from start to end."""

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


def thought(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], cut_text: str) -> Thought:
    """The thought of a response: up to `</think>`, else up to where the text that is put behind cuts stands by itself,
    else all of it."""
    ids = list(token_ids)
    text, spans = roles.token_spans(tokenizer, ids)
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    opening = OPENING.match(text)
    start = bisect_left(starts, opening.end()) if opening else 0
    end = closed = len(ids)
    inside = starts[start] if start < len(ids) else len(text)
    ending = next(filter(None, (mark.search(text, inside) for mark in _marks(cut_text))), None)
    if ending:
        # A token that holds characters of both ends the thought already.
        end = max(start, bisect_right(ends, ending.start()))
        closed = min(len(ids), bisect_left(ends, ending.end()) + 1)
    breaks = {bisect_left(starts, match.end()) for match in SENTENCE_END.finditer(text)}
    edges = sorted({start, end, *(place for place in breaks if start < place < end)})
    return Thought(ids, start, end, closed, list(pairwise(edges)))


def _marks(cut_text: str) -> Iterator[re.Pattern[str]]:
    """What ends a thought: its tag, or else what is put behind cuts, on a line of its own where that begins with one."""
    yield re.compile(re.escape(CLOSE))
    if text := cut_text.strip():
        yield re.compile(("^" if cut_text.startswith("\n") else "") + re.escape(text), re.MULTILINE)


def begun(tokenizer: PreTrainedTokenizerBase, one: Thought, kept_ids: Sequence[int], cut_text: str) -> list[int]:
    """A response that thinks these tokens and no more: its opening, they, and the text that asks for the answer.

    The text's line breaks are not doubled behind a line's end. Without any thinking left opening and text are tokenised
    together, as an empty thought is one in the policy's own tokens.
    """
    opening = one.token_ids[: one.start]
    if not kept_ids:
        return encode(tokenizer, str(tokenizer.decode(opening)) + cut_text)
    ends_line = str(tokenizer.decode(list(kept_ids[-1:]))).endswith("\n")
    return [*opening, *kept_ids, *encode(tokenizer, cut_text.lstrip("\n") if ends_line else cut_text)]


def unthought(prompt_text: str, delimiter: str) -> str:
    """What a response is made to begin with in order not to think; a thought that the prompt opens is not opened twice."""
    return delimiter.removeprefix(f"{OPEN}\n") if prompt_text.rstrip().endswith(OPEN) else delimiter


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's tokens, no special one before or behind them."""
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
