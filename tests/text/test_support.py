import collections
import random

import pytest

from raml_ray.settings import SftConfig
from raml_ray.text import diversity, support


def choose(labels, num_trajectories, pad_to, seed, lengths=None, spread=None, question_ids=None, **settings):
    config = SftConfig(num_trajectories=num_trajectories, pad_to=pad_to, **settings)
    names = question_ids or [f"q{number}" for number in range(len(labels))]
    return support.choose(names, labels, lengths or [[0] * len(row) for row in labels], config, seed, spread)


def test_the_first_correct_ones_are_chosen():
    examples = choose([[0, 1, 0, 1, 1, 1]], 2, pad_to=6, seed=0)
    assert len(examples) == 4
    assert {index for _, index in examples} == {1, 3}


def test_trajectories_beyond_pad_to_do_not_count():
    assert choose([[0, 1, 1, 1]], 2, pad_to=2, seed=0) == [(0, 1)]


def test_the_order_is_shuffled_and_decided_by_the_seed():
    labels = [[1] * 4] * 10
    one = choose(labels, 4, pad_to=4, seed=1)
    assert one == choose(labels, 4, pad_to=4, seed=1)
    assert one != choose(labels, 4, pad_to=4, seed=2)
    assert one != sorted(one)
    assert collections.Counter(one) == collections.Counter((q, i) for q in range(10) for i in range(4))


@pytest.mark.parametrize("num_trajectories", [5, 9])
def test_choosing_more_than_are_counted_is_refused(num_trajectories):
    with pytest.raises(ValueError, match=r"sft\.num_trajectories"):
        choose([[0, 1, 1, 1]], num_trajectories, pad_to=4, seed=0)


def test_the_order_is_the_same_in_every_version():
    assert choose([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]], 2, pad_to=4, seed=42) == [
        (2, 1),
        (2, 1),
        (0, 0),
        (2, 0),
        (0, 0),
        (2, 0),
        (0, 2),
        (1, 1),
    ]


LENGTHS = [5, 3, 9, 3, 7, 1]


def distinct(examples, question=0):
    return {index for owner, index in examples if owner == question}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [("first", {0, 1}), ("shortest", {5, 1}), ("longest", {2, 4})],
)
def test_selections_take_what_their_name_says_and_ties_go_by_sample(selection, expected):
    # Sample 3 is as short as sample 1, which comes first.
    examples = choose([[1] * 6], 2, pad_to=6, seed=0, lengths=[LENGTHS], selection=selection)
    assert distinct(examples) == expected
    assert len(examples) == 6


def test_random_selections_are_seeded_nested_and_independent_of_other_questions():
    labels = [[1] * 16, [1] * 16]
    sets = {n: choose(labels, n, pad_to=16, seed=5, selection="random") for n in (2, 4, 8)}
    for question in range(2):
        assert distinct(sets[2], question) < distinct(sets[4], question) < distinct(sets[8], question)
    assert distinct(sets[4], 0) != distinct(sets[4], 1)
    alone = choose([[1] * 16], 4, pad_to=16, seed=5, selection="random", question_ids=["q1"])
    assert distinct(alone, 0) == distinct(sets[4], 1)
    assert distinct(choose(labels, 4, pad_to=16, seed=6, selection="random")) != distinct(sets[4])


def test_diverse_selection_starts_with_the_first_and_goes_as_far_as_it_can():
    texts = ["a b c d", "a b c e", "a b c d", "x y z w", "x y c d"]
    asked = []

    def spread(groups):
        asked.extend(groups)
        return [
            diversity.farthest([diversity.sketch(texts[index]) for _, index in keys], count) for keys, count in groups
        ]

    labels = [[0, 1, 1, 1, 1], [0] * 5]
    examples = choose(labels, 3, pad_to=5, seed=0, spread=spread, selection="diverse")
    # From text 1: text 2 shares three bigrams of five (distance 0.4), 3 and 4 none (1). 3 comes first; of 4's six
    # bigrams with it two are shared (0.67), which is farther than 2 is from 1.
    assert asked == [([(0, 1), (0, 2), (0, 3), (0, 4)], 3), ([], 3)]
    assert distinct(examples) == {1, 3, 4}
    assert len(examples) == 4


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, (0, 0, 0)), (1, (0, 1, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (1, 2, 1)), (5, (2, 1, 2)), (6, (2, 2, 2))],
)
def test_thirds_differ_by_one_at_most_and_are_symmetric(count, expected):
    assert tuple(map(len, support.thirds(range(count), range(count)))) == expected


def test_thirds_order_by_length_and_keep_the_order_of_samples():
    assert support.thirds([0, 1, 2, 3, 4, 5], LENGTHS) == ([1, 5], [0, 3], [2, 4])


def test_a_length_keeps_its_third_of_what_pad_to_counts_and_pads_to_all_of_it():
    # The seventh is beyond pad_to and the wrong one is not counted: of the lengths 5, 3, 9, 7, 1 a third each.
    lengths = [[5, 3, 9, 2, 7, 1, 0]]
    labels = [[1, 1, 1, 0, 1, 1, 1]]
    for length, expected in (("short", {1, 5}), ("medium", {0}), ("long", {2, 4}), ("any", {0, 1, 2, 4, 5})):
        examples = choose(labels, 6, pad_to=6, seed=0, lengths=lengths, length=length)
        assert distinct(examples) == expected
        assert len(examples) == 5


def test_matched_sets_have_the_same_questions_and_counts_whatever_the_length():
    generator = random.Random(1)
    labels = [[generator.random() < 0.6 for _ in range(12)] for _ in range(40)]
    lengths = [[generator.randrange(30) for _ in range(12)] for _ in range(40)]
    sets = {
        (length, selection): choose(
            labels, 2, pad_to=8, seed=3, lengths=lengths, length=length, selection=selection, match_length=True
        )
        for length in ("any", "short", "medium", "long")
        for selection in ("first", "shortest", "random")
    }
    shapes = {
        key: {q: (sum(o == q for o, _ in found), len(distinct(found, q))) for q in range(40)}
        for key, found in sets.items()
    }
    counts = [sum(row[:8]) for row in labels]
    expected = {q: (c, min(2, c // 3)) if c >= 3 else (0, 0) for q, c in enumerate(counts)}
    assert min(counts) < 3 < max(counts)
    assert all(shape == expected for shape in shapes.values())


def test_every_example_is_one_that_was_correct_and_counted_under_every_rule():
    labels = [[1, 0, 1, 1, 1, 0, 1, 1]]
    for length in ("any", "short", "medium", "long"):
        for selection in ("first", "random", "shortest", "longest"):
            examples = choose(
                labels, 2, pad_to=7, seed=0, lengths=[[4, 1, 4, 4, 2, 9, 6, 0]], length=length, selection=selection
            )
            assert len(examples) == 5
            assert distinct(examples) <= {0, 2, 3, 4, 6}
            assert len(distinct(examples)) <= 2
