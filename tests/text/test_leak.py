"""Where a trajectory first writes the answer."""

import pytest

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
    ],
)
def test_the_leak_is_behind_the_first_equal_number(text: str, answer: str, end: int | None) -> None:
    assert leak.character(text, answer) == end
