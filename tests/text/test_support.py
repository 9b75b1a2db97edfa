import collections
import json
import pathlib

import pytest

from raml_ray.text import support

VECTOR = json.loads((pathlib.Path(__file__).parents[1] / "data" / "vectors.json").read_text())["misc"]["sft_padding"]
LABELS = VECTOR["labels"]


@pytest.mark.parametrize("num_trajectories", [1, 2, 4, 8])
def test_the_set_has_one_size_and_only_the_distinct_trajectories_grow(num_trajectories):
    examples = support.choose(LABELS, num_trajectories, pad_to=8, seed=42)
    expected = VECTOR["result"][str(num_trajectories)]
    assert len(examples) == expected["size"]
    for question in range(4):
        chosen = [index for owner, index in examples if owner == question]
        assert len(chosen) == expected["per_question"][str(question)]
        assert len(set(chosen)) == expected["distinct"][str(question)]
        assert all(LABELS[question][index] for index in chosen)


def test_the_first_correct_ones_are_chosen():
    examples = support.choose([[0, 1, 0, 1, 1, 1]], 2, pad_to=6, seed=0)
    assert len(examples) == 4
    assert {index for _, index in examples} == {1, 3}


def test_trajectories_beyond_pad_to_do_not_count():
    assert support.choose([[0, 1, 1, 1]], 2, pad_to=2, seed=0) == [(0, 1)]


def test_the_order_is_shuffled_and_decided_by_the_seed():
    labels = [[1] * 4] * 10
    one = support.choose(labels, 4, pad_to=4, seed=1)
    assert one == support.choose(labels, 4, pad_to=4, seed=1)
    assert one != support.choose(labels, 4, pad_to=4, seed=2)
    assert one != sorted(one)
    assert collections.Counter(one) == collections.Counter((q, i) for q in range(10) for i in range(4))


@pytest.mark.parametrize("num_trajectories", [0, 5])
def test_choosing_none_or_more_than_are_counted_is_refused(num_trajectories):
    with pytest.raises(ValueError, match=r"sft\.num_trajectories"):
        support.choose(LABELS, num_trajectories, pad_to=4, seed=0)
