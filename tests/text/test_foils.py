"""Wrong answers of the same kind and length."""

from raml_ray.miniature import tokenizer as miniature
from raml_ray.text import foils
from raml_ray.text.suffix import answer_suffix

TOKENIZER = miniature.build()


def found(answer: str, num: int = 10, others: tuple[str, ...] = (), avoid: tuple[str, ...] = ()) -> list[str]:
    return foils.foils(TOKENIZER, "boxed", answer, num=num, others=others, avoid=avoid, seed=3)


def test_a_number_is_held_against_other_numbers_of_as_many_digits() -> None:
    numbers = found("16", avoid=("23",))
    assert len(set(numbers)) == 10 and not {"16", "23"} & set(numbers)
    assert all(number.isdigit() and len(number) == 2 and number[0] != "0" for number in numbers)
    assert numbers == found("16", avoid=("23",))  # and the same ones again


def test_a_digit_has_nine_others_and_then_other_questions_answers() -> None:
    assert sorted(found("7")) == list("012345689")
    assert sorted(found("7", others=("x", "12", "7"))) == [*"012345689", "x"]  # 12 has two tokens


def test_equal_numbers_are_no_foils() -> None:
    # 1.50 and 3/2 are the answer, 2.5 is not
    assert found("1.5", num=1, others=("1.50",)) != ["1.50"]
    assert found("half", others=("1/2", "full", "half ")) == ["full"]


def test_every_foil_has_as_many_tokens_as_the_answer() -> None:
    answer = "\\frac{10}{7}"
    sizes = {answer_suffix(TOKENIZER, "paper", text).num_answer_tokens for text in (answer, *found(answer))}
    assert len(sizes) == 1


def test_a_letter_is_held_against_the_other_letters() -> None:
    assert sorted(found("C")) == list("ABDEFGHIJ")
    assert found("\\pi") == []
