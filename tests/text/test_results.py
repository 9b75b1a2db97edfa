"""Partial results in text that people wrote."""

from raml_ray.settings import NUMBER_AFTER_EQUALS
from raml_ray.text import results


def found(text: str) -> list[str]:
    return [text[start:end] for start, end in results.spans(text, NUMBER_AFTER_EQUALS)]


def test_numbers_behind_an_equals_sign_are_partial_results() -> None:
    text = "He has 2*3 = <<2*3=6>>6 apples and 1,200+34 = $1,234, so x = -5 and y=0.5. 7 days."
    assert found(text) == ["6", "1,234", "-5", "0.5"]
    assert found("a = b, 3 == 4") == ["4"]
    assert found("nothing 12 here") == []


def test_whole_numbers_are_read_and_others_are_none() -> None:
    assert [results.whole_number(text) for text in ("1,234", "-5", "24.0", "0.5", "x", "1/0")] == [
        1234,
        -5,
        24,
        None,
        None,
        None,
    ]


def test_a_character_is_of_the_token_that_makes_it() -> None:
    # " = " and "24" and a token that makes nothing before "0"
    spans = [(0, 3), (3, 5), (5, 5), (5, 6)]
    assert [results.token_at(spans, character) for character in range(6)] == [0, 0, 0, 1, 1, 3]
