"""Wrong answers to hold the right one against: of the same kind, and of as many tokens behind the same suffix."""

import random
import re
from collections.abc import Collection, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from raml_ray.text import leak
from raml_ray.text.suffix import answer_suffix

LETTERS = "ABCDEFGHIJ"
"""Of a multiple choice."""
TRIES_PER_FOIL = 50


def foils(
    tokenizer: PreTrainedTokenizerBase,
    suffix: str,
    answer: str,
    *,
    num: int,
    others: Sequence[str],
    avoid: Collection[str],
    seed: int,
) -> list[str]:
    """At most `num` answers that are neither equal to the right one nor to one to `avoid`, nor to each other, each of as
    many tokens as the right one; the same for the same seed. Fewer where there are no more.

    They are the answer with other digits; then, or where it has none, other letters of a multiple choice and `others`, the
    right answers of other questions.
    """
    draw = random.Random(seed)
    num_tokens = answer_suffix(tokenizer, suffix, answer).num_answer_tokens
    taken = [_meaning(text) for text in (answer, *avoid)]
    found: list[str] = []
    for candidate in _candidates(answer, others, num * TRIES_PER_FOIL, draw):
        if len(found) == num:
            break
        meaning = _meaning(candidate)
        if meaning in taken:
            continue
        tokens = answer_suffix(tokenizer, suffix, candidate)
        if tokens.num_answer_tokens == num_tokens and tokenizer.unk_token_id not in tokens.token_ids:
            taken.append(meaning)
            found.append(candidate)
    return found


def _meaning(text: str) -> object:
    """What two answers share that are the same: their number, else their text."""
    number = leak.value(text)
    return text.strip() if number is None else number


def _candidates(answer: str, others: Sequence[str], num_tries: int, draw: random.Random) -> Iterator[str]:
    if re.search(r"\d", answer):
        for _ in range(num_tries):
            yield re.sub(r"\d+", lambda run: _digits(run.group(), draw), answer)
    if answer in LETTERS:
        yield from draw.sample(LETTERS, len(LETTERS))
    yield from draw.sample(list(others), len(others))


def _digits(run: str, draw: random.Random) -> str:
    """As many other digits; the first is no 0 where the run's is none."""
    first = draw.randrange(0 if run.startswith("0") or len(run) == 1 else 1, 10)
    return str(first) + "".join(str(draw.randrange(10)) for _ in run[1:])
