"""Where a trajectory first writes the answer: from there on, a falling L-hat may be copying."""

import re
from fractions import Fraction
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from raml_ray.text import notation

# A minus behind an operand subtracts; only elsewhere is it a sign.
SIGN = r"(?:(?<![\w)\]}])-)?"
PLAIN = re.compile(r"-?\d+(?:,\d{3}(?!\d))*(?:\.\d+)?(?:/\d+)?")
NUMBER = re.compile(
    rf"{SIGN}(?:\d*\\[dtc]?frac\s?(?:\d\s?\d|\{{-?[\d.,]+\}}\s?\{{-?[\d.,]+\}})"
    r"|\d+(?:(?:,|\{,\}|\\,)\d{3}(?!\d))*(?:\.\d+)?(?:/\d+|(?:\\times|\\cdot)\s?10\^(?:\d|\{-?\d+\}))?)"
)
"""Numbers as text and LaTeX write them: `1,100`, `1{,}100`, `3/4`, `\\frac{3}{4}`, `1\\frac12`, `2\\times10^3`."""


def value(text: str) -> Fraction | None:
    """The number that the text is, units left aside; None if it is something else."""
    if PLAIN.fullmatch(text):
        try:
            return Fraction(text.replace(",", ""))
        except ZeroDivisionError:
            return None
    return notation.literal(notation.split_unit(notation.clean(text))[0])


def character(text: str, answer: str) -> int | None:
    """The character after the first place where the answer, or a number equal to it, stands in the text; None if nowhere.

    A number counts as a whole, and so does a word: the answer 1 does not leak in 17, nor A in "Answer".
    """
    number = value(answer)
    if number is None:
        found = _as_words(notation.unwrap(answer.strip())).search(text)
        return found.end() if found else None
    return next((match.end() for match in NUMBER.finditer(text) if value(match.group()) == number), None)


def _as_words(answer: str) -> re.Pattern[str]:
    """The answer, with any blanks where it may have some, where no word goes on beyond its ends."""
    pieces = re.findall(r"\w+|[^\w\s]", answer)
    between = [r"\s+" if re.match(r"\w", a[-1]) and re.match(r"\w", b) else r"\s*" for a, b in pairwise(pieces)]
    joined = "".join(re.escape(piece) + gap for piece, gap in zip(pieces, [*between, ""], strict=True))
    before = r"(?<!\w)" if re.match(r"\w", answer) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", answer) else ""
    return re.compile(before + joined + after)


def position(tokenizer: PreTrainedTokenizerBase, response_ids: list[int], answer: str) -> int | None:
    """The number of response tokens after which the answer has been written (paper 5.3, B1); None if it never is."""
    end = character(str(tokenizer.decode(response_ids)), answer)
    return None if end is None else _tokens_reaching(tokenizer, response_ids, end)


def before(tokenizer: PreTrainedTokenizerBase, response_ids: list[int], answer: str, last: int) -> int:
    """The number of response tokens of the longest prefix, of `last` at most, behind which the answer is still to be
    written; -1 if there is none."""
    written = position(tokenizer, response_ids, answer)
    return last if written is None or written > last else written - 1


def position_of_text(tokenizer: PreTrainedTokenizerBase, response_ids: list[int], text: str) -> int | None:
    """The number of response tokens after which the text has been written for the first time; None if it never is."""
    found = str(tokenizer.decode(response_ids)).find(text)
    return None if found < 0 else _tokens_reaching(tokenizer, response_ids, found + len(text))


def _tokens_reaching(tokenizer: PreTrainedTokenizerBase, response_ids: list[int], end: int) -> int:
    """The length of the shortest prefix whose text reaches that character."""
    low, high = 0, len(response_ids)
    while low < high:
        middle = (low + high) // 2
        if len(str(tokenizer.decode(response_ids[:middle]))) >= end:
            high = middle
        else:
            low = middle + 1
    return low
