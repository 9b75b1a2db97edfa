"""How far texts are from each other, by hand where the sets are small, within the promised error where they are not."""

import random

import numpy as np
import pytest

from raml_ray.text import diversity
from raml_ray.text.diversity import distance, farthest, sketch


def test_the_distance_counts_bigrams_from_the_beginning_on() -> None:
    # ^a ab bc and ^a ab bd: two of four are shared.
    assert distance(sketch("a b c"), sketch("a b d")) == 0.5
    assert distance(sketch("a  b\nc"), sketch("a b c")) == 0.0
    assert distance(sketch("a"), sketch("b")) == 1.0
    assert distance(sketch(""), sketch(" ")) == 0.0
    assert distance(sketch("x+1"), sketch("x + 1")) == 0.0  # signs are words of their own


def test_a_sketch_is_bounded_and_estimates_the_distance_of_long_texts() -> None:
    words = [str(number) for number in range(18_000)]
    half = [*words[:9_000], *(f"w{word}" for word in words[:9_000])]
    one, other = sketch(" ".join(words)), sketch(" ".join(half))
    assert len(one) == len(other) == diversity.SKETCH_SIZE
    assert one.nbytes == 1024
    # 9,000 shared of 27,000.
    assert distance(one, other) == pytest.approx(2 / 3, abs=3 * 0.044)


def test_a_sketch_is_the_same_in_every_process() -> None:
    assert sketch("a b")[0] == np.uint64(0x6FEB66CA806D6F45)


def test_the_farthest_are_chosen_greedily_and_fewer_are_the_beginning_of_more() -> None:
    # Numbers on a line as sets {1 … n}: the distance of n < m is 1 - n / m.
    sketches = [np.arange(1, size + 1).astype(np.uint64) for size in (10, 12, 40, 20, 40)]
    # From 10: 12 is 1/6 away, 40 is 3/4, 20 is 1/2. Then 20: 1/2 from both; last 12: 1/6; the second 40 is the first's twin.
    assert farthest(sketches, 5) == [0, 2, 3, 1, 4]
    assert [farthest(sketches, count) for count in (0, 1, 2, 3)] == [[], [0], [0, 2], [0, 2, 3]]
    assert farthest(sketches, 9) == [0, 2, 3, 1, 4]
    assert farthest([], 3) == []


def test_one_is_chosen_without_comparing_any(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(diversity, "distance", lambda one, other: compared.append((one, other)) or 0.0)
    texts = [sketch("a"), sketch("b"), sketch("c")]
    assert farthest(texts, 1) == [0]
    assert compared == []
    farthest(texts, 3)
    assert len(compared) == 2 + 1  # of the first to both others, of the second to the third


def test_texts_that_are_all_the_same_are_taken_in_their_order() -> None:
    assert farthest([sketch("a b c")] * 4, 3) == [0, 1, 2]


def test_more_different_texts_are_farther() -> None:
    generator = random.Random(0)
    words = [str(generator.randrange(50)) for _ in range(400)]
    found = [distance(sketch(" ".join(words)), sketch(" ".join(["new"] * cut + words[cut:]))) for cut in (0, 100, 300)]
    assert found[0] == 0
    assert found[0] < found[1] < found[2]


def test_tokens_that_follow_each_other_differ_as_words_do() -> None:
    # Bigrams, the beginning's included: (., 5) (5, 6) (6, 7) and (., 5) (5, 6) (6, 9): two of four are shared.
    one, other = diversity.token_sketch([5, 6, 7]), diversity.token_sketch([5, 6, 9])
    assert diversity.distance(one, other) == 0.5
    assert diversity.distance(one, diversity.token_sketch([5, 6, 7])) == 0.0
    assert len(diversity.token_sketch([])) == 0
    # Token 0 is a token like any other.
    assert diversity.distance(diversity.token_sketch([0, 0]), diversity.token_sketch([0])) == 0.5
