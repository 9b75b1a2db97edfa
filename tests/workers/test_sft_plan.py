"""Which examples a step, a rank and a group of shards take."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from raml_ray.records import seed_of
from raml_ray.settings import SftConfig
from raml_ray.text.batches import Example
from raml_ray.workers import sft_plan

SETTINGS = SftConfig(batch_size=4, num_epochs=2)


def test_every_epoch_takes_every_example_once_in_an_order_of_its_own() -> None:
    plan = sft_plan.plan([10], SETTINGS, seed=1)
    assert (plan.steps_per_epoch, plan.num_steps) == (3, 6)
    epochs = [[plan.indices(step) for step in range(start, start + 3)] for start in (0, 3)]
    for steps in epochs:
        assert [len(indices) for indices in steps] == [4, 4, 2]
        assert sorted(chain.from_iterable(steps)) == list(range(10))
    assert epochs[0] != epochs[1]
    assert sft_plan.plan([10], SETTINGS, seed=2).indices(0) != plan.indices(0)


def test_one_group_is_a_uniform_shuffle_however_the_examples_are_cut() -> None:
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed_of(1, "sft", 0))).tolist()
    for rows in ([10], [3, 3, 4], [1] * 10):
        plan = sft_plan.plan(rows, SETTINGS.model_copy(update={"shuffle_shards": 10}), seed=1)
        assert [plan.indices(step) for step in range(3)] == [order[:4], order[4:8], order[8:]]


def test_groups_of_shards_follow_each_other_and_are_shuffled_inside() -> None:
    settings = SftConfig(batch_size=5, num_epochs=3, shuffle_shards=2)
    plan = sft_plan.plan([10] * 6, settings, seed=0)
    pairs = []
    for epoch in range(3):
        order = list(chain.from_iterable(plan.indices(step) for step in range(12 * epoch, 12 * epoch + 12)))
        assert sorted(order) == list(range(60))
        groups = [order[start : start + 20] for start in (0, 20, 40)]
        shards = [{row // 10 for row in group} for group in groups]
        assert [len(group) for group in shards] == [2, 2, 2]
        assert all(group != sorted(group) for group in groups)
        assert any({row // 10 for row in group[:10]} == shard for group, shard in zip(groups, shards, strict=True))
        pairs.append(shards)
    assert pairs[0] != pairs[1] != pairs[2]


def test_the_number_of_steps_follows_epochs_and_stops_at_max_steps() -> None:
    assert sft_plan.plan([10], SETTINGS.model_copy(update={"num_epochs": 0.4}), 0).num_steps == 1
    assert sft_plan.plan([10], SETTINGS.model_copy(update={"num_epochs": 1.5}), 0).num_steps == 4  # 4.5 rounds to even
    assert sft_plan.plan([4, 6], SETTINGS.model_copy(update={"max_steps": 2}), 0).num_steps == 2
    with pytest.raises(ValueError, match="no examples"):
        sft_plan.plan([], SETTINGS, 0)


def test_shares_are_disjoint_complete_and_even_in_tokens() -> None:
    examples = [Example([1], list(range(length))) for length in (1, 9, 3, 7, 5, 2, 8)]
    first, second = sft_plan.share(examples, 0, 2), sft_plan.share(examples, 1, 2)
    assert sorted(map(id, first + second)) == sorted(map(id, examples))
    assert [len(e) for e in first] == [10, 8, 4, 2]
    assert [len(e) for e in second] == [9, 6, 3]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_parts_hold_each_ranks_share_of_each_step(world_size: int) -> None:
    settings = SftConfig(batch_size=4, num_epochs=2, shuffle_shards=2)
    plan = sft_plan.plan([5, 3, 6, 4, 3], settings, seed=4)  # 21 examples: the last step of an epoch has one
    lengths = np.random.default_rng(0).integers(1, 9, 21)
    for start_step in (0, 4, 9, plan.num_steps):
        found: Counter[int] = Counter()
        for rank in range(world_size):
            parts = list(sft_plan.parts(plan, lengths, start_step, rank, world_size))
            rows = sorted((s, p, r) for part in parts for s, p, r in zip(*part, strict=True))
            shares = {
                step: sft_plan.share(plan.indices(step), rank, world_size, length=lambda row: int(lengths[row]))
                for step in range(start_step, plan.num_steps)
            }
            assert rows == [(step, place, row) for step, share in shares.items() for place, row in enumerate(share)]
            assert all(part.steps == sorted(part.steps) for part in parts)
            found.update(step for step, _, _ in rows)
        assert dict(found) == {step: len(plan.indices(step)) for step in range(start_step, plan.num_steps)}


def test_a_part_reads_the_shards_of_one_group_in_one_epoch() -> None:
    settings = SftConfig(batch_size=4, num_epochs=2, shuffle_shards=2)
    plan = sft_plan.plan([10] * 6, settings, seed=4)
    parts = list(sft_plan.parts(plan, np.ones(60, np.int32), 0, 0, 1))
    assert len(parts) == 6
    for part in parts:
        assert len(part.rows) == len(set(part.rows)) == 20
        assert len({row // 10 for row in part.rows}) == 2
