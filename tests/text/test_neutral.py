"""Partners of a word: no role, as many tokens, as frequent, near."""

import math

import pytest

from raml_ray.text import neutral
from raml_ray.text.roles import Word


def word(text: str, start: int, num_tokens: int = 1) -> Word:
    return Word("neutral", text, start, num_tokens)


def test_partners_are_as_frequent_then_near() -> None:
    frequency = {"wait": 4, "the": 40, "apple": 5, "pear": 5, "plum": 1}
    others = [word("the", 9), word("apple", 1), word("pear", 12), word("plum", 10)]
    # log 5/4 is the least; of the two, 12 is nearer to 10 than 1
    assert neutral.partner(word("Wait", 10), others, frequency) == others[2]
    assert neutral.partner(word("Wait", 10), others[:1], frequency) == others[0]
    assert neutral.partner(word("Wait", 10), [word("pear", 12, 2)], frequency) is None


def test_candidates_have_no_role() -> None:
    text = "wait apple 3 plum"
    spans = [(0, 4), (4, 10), (10, 12), (12, 17)]
    categories = {"reflection": ("wait",), "calculation": (r"re:\d+",)}
    assert [found.text for found in neutral.candidates(text, spans, categories, [])] == ["apple", "plum"]
    assert [found.text for found in neutral.candidates(text, spans, categories, ["plum", "wait"])] == ["plum"]


def test_words_are_counted_in_small_letters() -> None:
    assert neutral.frequencies(["Wait, wait 7", "a _"], ["_"]) == {"wait": 2, "a": 1, "_": 1}
    # a rule that marks a word of letters counts it once, and a phrase is counted as one
    assert neutral.frequencies(["hold on, wait"], ["wait", "hold on"]) == {"hold": 1, "on": 1, "wait": 1, "hold on": 1}


def test_how_much_more_frequent_a_partner_is_has_a_sign() -> None:
    assert neutral.log_ratio(word("Wait", 0), word("the", 1), {"wait": 4, "the": 40}) == pytest.approx(math.log(10))
    assert neutral.log_ratio(word("the", 1), word("never counted", 0), {"the": 40}) == pytest.approx(-math.log(40))
