"""Which examples each step and each rank of a fine-tuning take, and in what order they are read."""

import bisect
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from raml_ray.records import seed_of
from raml_ray.settings import SftConfig

T = TypeVar("T")


class Plan(NamedTuple):
    """Which examples each step takes: a pure function of the settings, so that a resumed run goes on where it was.

    Each epoch permutes the shards, takes them in groups of `shuffle_shards`, and shuffles the examples of each group.
    """

    shard_rows: tuple[int, ...]
    """Examples of each shard; an example's number counts through the shards."""
    shuffle_shards: int
    batch_size: int
    num_steps: int
    seed: int

    @property
    def num_examples(self) -> int:
        return sum(self.shard_rows)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_examples / self.batch_size)

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int) -> list[int]:
        """The examples of a step. Each epoch is a shuffle of its own; its last step takes what is left."""
        start = step % self.steps_per_epoch * self.batch_size
        order, _ = _order(self, self.epoch_of(step))
        return [int(index) for index in order[start : start + self.batch_size]]


@functools.lru_cache(maxsize=2)
def _order(plan: Plan, epoch: int) -> tuple[np.ndarray, list[int]]:
    """An epoch's examples in their order, and where each group of shards begins in it."""
    firsts = [0, *accumulate(plan.shard_rows)]
    shards = _permutation(
        len(plan.shard_rows), torch.Generator().manual_seed(seed_of(plan.seed, "sft", epoch, "shards"))
    )
    generator = torch.Generator().manual_seed(seed_of(plan.seed, "sft", epoch))
    groups = []
    for start in range(0, len(shards), plan.shuffle_shards):
        # In ascending order, so that a single group is a uniform shuffle of all examples, however they are cut.
        group = sorted(shards[start : start + plan.shuffle_shards])
        rows = np.concatenate([np.arange(firsts[shard], firsts[shard + 1]) for shard in group])
        groups.append(rows[_permutation(len(rows), generator)])
    return np.concatenate(groups), [0, *accumulate(map(len, groups))][:-1]


def _permutation(count: int, generator: torch.Generator) -> np.ndarray:
    return torch.randperm(count, generator=generator).numpy()


def plan(shard_rows: Sequence[int], settings: SftConfig, seed: int) -> Plan:
    """The run's steps: sft.num_epochs times through the examples, at most sft.max_steps.

    Raises: ValueError if there are no examples.
    """
    if not sum(shard_rows):
        raise ValueError(
            "SFT has no examples: no correct trajectory was found (see the verify step's summary, and sft.max_length)"
        )
    num_steps = max(1, round(settings.num_epochs * math.ceil(sum(shard_rows) / settings.batch_size)))
    num_steps = min(num_steps, settings.max_steps or num_steps)
    return Plan(tuple(shard_rows), settings.shuffle_shards, settings.batch_size, num_steps, seed)


def share(items: Sequence[T], rank: int, world_size: int, length: Callable[[Any], int] = len) -> list[T]:
    """A rank's items: dealt out by length, so that ranks get about equally many tokens. Few items leave some ranks none."""
    return sorted(items, key=length, reverse=True)[rank::world_size]


class Part(NamedTuple):
    """What a rank reads of one group of shards in one epoch, three columns of equal length, by step and place."""

    steps: list[int]
    places: list[int]
    """In the rank's share of the step."""
    rows: list[int]
    """Numbers of the examples."""


def parts(plan: Plan, lengths: np.ndarray, start_step: int, rank: int, world_size: int) -> Iterator[Part]:
    """A rank's examples of the steps from `start_step` on, in the order in which they are needed.

    `lengths` (num_examples,) are the examples' tokens. A step that ends one group and begins the next is in two parts.
    """
    columns: Part | None = None
    last = (-1, -1)
    for step in range(start_step, plan.num_steps):
        epoch, start = plan.epoch_of(step), step % plan.steps_per_epoch * plan.batch_size
        order, begins = _order(plan, epoch)
        places = range(start, min(start + plan.batch_size, plan.num_examples))
        mine = share(places, rank, world_size, length=lambda place, order=order: int(lengths[order[place]]))  # type: ignore[misc]
        by_group: dict[int, list[tuple[int, int]]] = {}
        for place, position in enumerate(mine):
            by_group.setdefault(bisect.bisect_right(begins, position) - 1, []).append((place, int(order[position])))
        for group, taken in sorted(by_group.items()):
            if (epoch, group) != last:
                if columns:
                    yield columns
                columns, last = Part([], [], []), (epoch, group)
            assert columns is not None
            columns.steps.extend([step] * len(taken))
            columns.places.extend(place for place, _ in taken)
            columns.rows.extend(row for _, row in taken)
    if columns:
        yield columns
