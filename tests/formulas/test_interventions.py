"""Words and places taken apart, by hand."""

from raml_ray.formulas.interventions import Cells, effects


def test_a_design_by_hand() -> None:
    # at its place the word leads by 3 - 1, elsewhere by 2 - 5; the place by 3 - 2 and 1 - 5
    found = effects(Cells(own=3.0, other_here=1.0, moved=2.0, other_own=5.0))
    assert found == (-0.5, -1.5, 5.0)


def test_words_and_places_that_add_up_have_no_interaction() -> None:
    word, place = 0.75, -2.0
    found = effects(Cells(own=word + place, other_here=place, moved=word, other_own=0.0))
    assert found == (word, place, 0.0)


def test_exchanging_the_words_turns_word_and_interaction_around() -> None:
    one = effects(Cells(3.0, 1.0, 2.0, 5.0))
    other = effects(Cells(own=1.0, other_here=3.0, moved=5.0, other_own=2.0))
    assert other == (-one.word, one.place, -one.interaction)
