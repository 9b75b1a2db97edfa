"""Where a trajectory first writes the answer: from there on, a falling L-hat may be copying."""

import re
from fractions import Fraction

from transformers import PreTrainedTokenizerBase

# A minus behind an operand subtracts; only elsewhere is it a sign.
NUMBER = re.compile(r"(?:(?<![\w)\]}])-)?\d+(?:,\d{3}(?!\d))*(?:\.\d+)?(?:/\d+)?")


def _value(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", "").strip())
    except (ValueError, ZeroDivisionError):
        return None


def character(text: str, answer: str) -> int | None:
    """The character after the first place where the answer, or a number equal to it, stands in the text; None if nowhere.

    A number counts as a whole, and so does a word: the answer 1 does not leak in 17, nor A in "Answer".
    """
    value = _value(answer)
    if value is None:
        found = _as_words(answer).search(text)
        return found.end() if found else None
    return next((match.end() for match in NUMBER.finditer(text) if _value(match.group()) == value), None)


def _as_words(answer: str) -> re.Pattern[str]:
    """The answer where no word goes on beyond its ends."""
    before = r"(?<!\w)" if re.match(r"\w", answer) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", answer) else ""
    return re.compile(before + re.escape(answer) + after)


def position(tokenizer: PreTrainedTokenizerBase, response_ids: list[int], answer: str) -> int | None:
    """The number of response tokens after which the answer has been written (paper 5.3, B1); None if it never is."""
    end = character(str(tokenizer.decode(response_ids)), answer)
    return None if end is None else _tokens_reaching(tokenizer, response_ids, end)


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
