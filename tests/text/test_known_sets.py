"""The paper's sets by name."""

import pytest

from raml_ray.settings import DataConfig
from raml_ray.text import known_sets


def test_a_name_stands_for_the_place_the_split_and_the_columns() -> None:
    data = known_sets.resolved(DataConfig(path="paper:orz-math-val"))
    assert (data.path, data.split) == ("hf:jnanliu/orz-math-filtered-val", "test")
    assert data.columns == {"problem": "problem", "answer": "answer"}
    assert (data.texts, data.labels) == ({}, {})


def test_published_trajectories_bring_their_policy_and_its_labels() -> None:
    data = known_sets.resolved(DataConfig(path="paper:orz-math-distill-14b-rollouts"))
    assert data.texts == {"DeepSeek-R1-Distill-Qwen-14B": "generations"}
    assert data.labels == {"DeepSeek-R1-Distill-Qwen-14B": "labels"}


def test_what_the_user_set_stays() -> None:
    mine = DataConfig(
        path="paper:orz-math-qwen-72b-rollouts",
        split="validation",
        columns={"problem": "q"},
        texts={"teacher": "generations"},
        revision="abc",
        limit=3,
    )
    data = known_sets.resolved(mine)
    assert (data.split, data.columns, data.revision, data.limit) == ("validation", {"problem": "q"}, "abc", 3)
    # Labels go with the texts that they are of: not to be filled in for another policy's name.
    assert (data.texts, data.labels) == ({"teacher": "generations"}, {})


def test_other_sets_are_as_they_were_and_an_unknown_name_brings_the_nearest() -> None:
    data = DataConfig(path="hf:owner/name")
    assert known_sets.resolved(data) is data
    with pytest.raises(ValueError, match=r"paper:orz-mat'.*did you mean 'orz-math'\?; there are paper:orz-math, paper"):
        known_sets.resolved(DataConfig(path="paper:orz-mat"))
