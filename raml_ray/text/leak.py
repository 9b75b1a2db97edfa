"""Where a trajectory first writes the answer: from there on, a falling L-hat may be copying."""

import re
from fractions import Fraction

from transformers import PreTrainedTokenizerBase

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def _value(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", "").strip())
    except (ValueError, ZeroDivisionError):
        return None


def character(text: str, answer: str) -> int | None:
    """The character after the first place where the answer, or a number equal to it, stands in the text; None if nowhere.

    A number counts as a whole: the answer 1 does not leak in 17.
    """
    value = _value(answer)
    if value is None:
        found = text.find(answer)
        return None if found < 0 else found + len(answer)
    return next((match.end() for match in NUMBER.finditer(text) if _value(match.group()) == value), None)


def position(tokenizer: PreTrainedTokenizerBase, response_ids: list[int], answer: str) -> int | None:
    """The number of response tokens after which the answer has been written (paper 5.3, B1); None if it never is."""
    end = character(str(tokenizer.decode(response_ids)), answer)
    if end is None:
        return None
    low, high = 0, len(response_ids)
    while low < high:  # the shortest prefix whose text reaches that character
        middle = (low + high) // 2
        if len(str(tokenizer.decode(response_ids[:middle]))) >= end:
            high = middle
        else:
            low = middle + 1
    return low
