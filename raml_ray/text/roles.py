"""What the words of a trajectory are for, by rules that a reader can check: reflection, transition, calculation, .."""

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from raml_ray.settings import REGEX_RULE

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

Span = tuple[int, int]


class Word(NamedTuple):
    """A stretch of tokens with a role: `Word("reflection", "Wait", 6, 1)`."""

    category: str
    text: str
    """As the trajectory has it."""
    start: int
    """Its first token."""
    num_tokens: int


def token_spans(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The tokens' text, and the characters of it, [start, end), that each token makes.

    A character of several tokens is the last one's, as nobody can read it before: the others' spans are empty.
    """
    ids = list(token_ids)
    text = str(tokenizer.decode(ids))
    sizes, pending, alone = [], [], []
    for token in ids:
        pending.append(token)
        piece = str(tokenizer.decode(pending))
        if piece.endswith(INCOMPLETE):
            piece = ""
        else:
            pending = []
        sizes.append(len(piece))
        alone.append(piece)
    ends = list(itertools.accumulate(sizes))
    if "".join(alone) != text:  # tokens that read differently alone: what each prefix reads as decides
        prefixes = (str(tokenizer.decode(ids[:stop])).rstrip(INCOMPLETE) for stop in range(1, len(ids) + 1))
        ends = list(itertools.accumulate((len(prefix) for prefix in prefixes), max))
        ends[-1:] = [len(text)] * bool(ends)
    return text, list(zip([0, *ends[:-1]][: len(ends)], ends, strict=True))


def pattern(rule: str) -> re.Pattern[str]:
    """A rule as a regular expression: what follows `re:`, or the words where no word goes on, in any case of letters."""
    if rule.startswith(REGEX_RULE):
        return re.compile(rule.removeprefix(REGEX_RULE), re.MULTILINE)
    before = r"(?<!\w)" if re.match(r"\w", rule) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", rule) else ""
    return re.compile(before + re.escape(rule) + after, re.IGNORECASE)


def words(text: str, spans: Sequence[Span], categories: Mapping[str, Sequence[str]]) -> list[Word]:
    """The words of the text that have a role, in their order, no token in two: of overlapping ones the category that is
    named first wins, then the rule, then the earlier word.

    A word's tokens are those that make one of its characters, so " Wait", "Wait" and "Wait," are all found, in the
    tokens that they are cut into.
    """
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    taken = [False] * len(spans)
    found = []
    for category, rules in categories.items():
        for rule in rules:
            for match in pattern(rule).finditer(text):
                first, last = bisect_right(ends, match.start()), bisect_left(starts, match.end())
                if first < last and not any(taken[first:last]):
                    taken[first:last] = [True] * (last - first)
                    found.append(Word(category, match.group().strip() or repr(match.group()), first, last - first))
    return sorted(found, key=lambda word: word.start)


def occurrences(token_ids: Sequence[int], word_ids: Sequence[int]) -> list[int]:
    """Where the word's tokens stand in the trajectory's, as the paper's notebook finds them: by their ids alone."""
    size = len(word_ids)
    return [
        start for start in range(len(token_ids) - size + 1) if list(token_ids[start : start + size]) == list(word_ids)
    ]


def paper_span(token_ids: Sequence[int], opening: Sequence[int], closing: Sequence[int], num_suffix: int) -> range:
    """Which entries of a response's curve the paper's notebook looks at, entry k being L-hat behind k tokens.

    From behind the tokens that open thinking, or before the response where they are none of it; up to before those that close it; and of
    these, as the notebook has it, without the last `num_suffix`, as many as suffix and answer have tokens.
    """
    first = next((place + len(opening) for place in occurrences(token_ids, opening)), 0)
    closed = next((place for place in occurrences(token_ids, closing) if place >= first), len(token_ids))
    return range(first, max(closed + 1 - num_suffix, first))
