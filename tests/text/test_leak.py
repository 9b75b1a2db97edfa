"""Where a trajectory first writes the answer."""

import pytest

from raml_ray.miniature import tokenizer as miniature
from raml_ray.text import leak


@pytest.mark.parametrize(
    ("text", "answer", "end"),
    [
        ("3 + 8 is 11", "11", 11),
        ("11 apples", "11", 2),
        ("117 is not it", "11", None),  # a number counts as a whole
        ("1,100 + 1", "1100", 5),  # equal numbers, however they are written
        ("half is 0.5", "1/2", 11),
        ("so x^2 = y", "x^2", 6),  # what is no number is looked for as text
        ("nothing", "x^2", None),
        ("10-3=7, so 5-3 is 2", "3", 4),  # a minus between two operands is no sign
        ("10-3=7, so it is -3", "-3", 19),
        ("(2)-3 and x-3", "-3", None),
        ("10-3=7, so 5-3 is 2", "7", 6),  # the comma behind it is not the number's
        ("one of 1,2,3", "123", None),
        ("Answer: B or A.", "A", 14),  # a word counts as a whole
        ("Answer", "A", None),
        ("x\\frac{1}{2}y", "\\frac{1}{2}", 12),
        # equal numbers in LaTeX
        ("so \\dfrac{2}{4} it is", "0.5", 15),
        ("so 0.5 it is", "\\frac{1}{2}", 6),
        ("so \\frac34.", "3/4", 10),
        ("so 1\\frac{1}{2}.", "1.5", 15),
        ("1{,}100 and 1\\,200", "1100", 7),
        ("1{,}100 and 1\\,200", "1200", 18),
        ("2\\times10^3 m", "2000", 11),
        ("$18 a day", "$18", 3),
        ("18 a day", "$18", 2),  # a unit is left aside
        ("1/0 and 7", "7", 9),
        ("so x^2+ 1 is", "x^2 + 1", 9),  # blanks mean nothing between signs
        ("red fox", "redfox", None),
        ("a red\nfox", "red fox", 9),
    ],
)
def test_the_leak_is_behind_the_first_equal_number(text: str, answer: str, end: int | None) -> None:
    assert leak.character(text, answer) == end


def test_positions_count_the_tokens_that_are_needed() -> None:
    tokenizer = miniature.build()
    ids = tokenizer("<think>\n 7 9\n 16\n</think>", add_special_tokens=False)["input_ids"]
    last = leak.position_of_text(tokenizer, ids, "</think>")
    assert last == len(ids)
    assert leak.position_of_text(tokenizer, ids, "<think>") == 1
    assert leak.position_of_text(tokenizer, ids, "</answer>") is None
    found = leak.position(tokenizer, ids, "16")
    assert found is not None
    assert "16" in tokenizer.decode(ids[:found]) and "16" not in tokenizer.decode(ids[: found - 1])
