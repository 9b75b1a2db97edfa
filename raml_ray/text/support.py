"""Which verified trajectories become the SFT set: the support set of each question, padded to equal weight."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from raml_ray.records import seed_of
from raml_ray.settings import SftConfig
from raml_ray.text import diversity

Key = tuple[int, int]
"""(question index, trajectory index)."""
Sketch = Callable[[list[Key]], Mapping[Key, np.ndarray]]
"""The sketches (`diversity.sketch`) of the texts of these trajectories."""

LENGTHS = ("short", "medium", "long")


class Thirds(NamedTuple):
    """A question's trajectories by length, each third in sample order."""

    short: list[int]
    medium: list[int]
    long: list[int]


def thirds(indices: Sequence[int], lengths: Sequence[int]) -> Thirds:
    """The trajectories in thirds: of n, ordered by length (among equals by sample), number r (from 0) is in third
    floor(3 (r + 1/2) / n).

    So the thirds differ by one at most, the middle one or the two outer ones being larger; one alone is medium, of two
    one is short and one long.
    """
    found = Thirds([], [], [])
    for rank, index in enumerate(sorted(indices, key=lambda index: lengths[index])):
        found[3 * (2 * rank + 1) // (2 * len(indices))].append(index)
    return Thirds(*map(sorted, found))


class Pool(NamedTuple):
    """What may be chosen of one question."""

    indices: list[int]
    """In sample order."""
    num_examples: int
    most: int
    """Distinct trajectories at most."""


def pool(correct: Sequence[int], lengths: Sequence[int], settings: SftConfig) -> Pool:
    """Of a question's correct trajectories those of the third `sft.length`; none if sft.match_length wants three."""
    fewest = len(correct) // len(LENGTHS)
    indices = list(correct)
    if settings.length != "any":
        indices = getattr(thirds(correct, lengths), settings.length)
    if not settings.match_length:
        return Pool(indices, len(correct), settings.num_trajectories)
    return Pool(indices if fewest else [], len(correct), min(settings.num_trajectories, fewest))


def correct(labels: Sequence[Sequence[bool]], pad_to: int) -> list[list[int]]:
    """Of each question the correct ones among its first `pad_to` trajectories."""
    return [[index for index, label in enumerate(row[:pad_to]) if label] for row in labels]


def choose(
    labels: Sequence[Sequence[bool]],
    settings: SftConfig,
    seed: int,
    lengths: Sequence[Sequence[int]] = (),
    sketch: Sketch | None = None,
) -> list[Key]:
    """(question index, trajectory index) of every SFT example, shuffled.

    `labels` says, per question and in sample order, which trajectories are correct; `lengths`, where a setting asks
    for them, how long they are. Of the correct ones among a question's first `pad_to` trajectories, those of the third
    `length` are kept, `num_trajectories` of them taken as `selection` says, then resampled from until the question has
    as many examples as it had correct ones among those: the set's size and each question's weight depend neither on
    `num_trajectories` nor on what is selected, only the distinct trajectories do. Questions without any left vanish.
    With `match_length` those with fewer than three correct ones vanish too, and of n correct ones at most floor(n / 3)
    distinct ones are taken, whatever `length`: such sets have the same questions, the same number of distinct
    trajectories of each, and the same number of examples.

    Raises: ValueError if num_trajectories is outside [1, pad_to].

    Source: RaML's data_process_sft.py; arXiv:2505.19815, Fig. 8 (selection=first, length=any).
    """
    if not 1 <= settings.num_trajectories <= settings.pad_to:
        raise ValueError(
            f"sft.num_trajectories={settings.num_trajectories} must be in [1, sft.pad_to={settings.pad_to}]: "
            "only the trajectories that are counted can be chosen"
        )
    rows = lengths or [()] * len(labels)
    pools = [pool(row, rows[q], settings) for q, row in enumerate(correct(labels, settings.pad_to))]
    sketches: Mapping[Key, np.ndarray] = {}
    if sketch and settings.selection == "diverse":
        sketches = sketch([(question, index) for question, each in enumerate(pools) for index in each.indices])
    generator = random.Random(seed)
    examples: list[Key] = []
    for question, each in enumerate(pools):
        if not each.indices:
            continue
        match settings.selection:
            case "first":
                ordered = each.indices
            case "shortest":
                ordered = sorted(each.indices, key=lambda index: rows[question][index])
            case "longest":
                ordered = sorted(each.indices, key=lambda index: -rows[question][index])
            case "random":  # a generator of its own: neither other questions nor num_trajectories change the order
                ordered = list(each.indices)
                random.Random(seed_of(seed, "selection", question)).shuffle(ordered)
            case "diverse":
                texts = [sketches[question, index] for index in each.indices]
                ordered = [each.indices[place] for place in diversity.farthest(texts, each.most)]
        chosen = [(question, index) for index in ordered[: each.most]]
        examples += chosen
        examples += [generator.choice(chosen) for _ in range(each.num_examples - len(chosen))]
    generator.shuffle(examples)
    return examples
