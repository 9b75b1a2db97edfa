"""Which verified trajectories become the SFT set: the support set of each question, padded to equal weight."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from raml_ray.records import seed_of
from raml_ray.settings import SftConfig

Key = tuple[int, int]
"""(question index, trajectory index)."""
Spread = Callable[[list[tuple[list[Key], int]]], list[list[int]]]
"""Of each of these groups of trajectories so many, by place, as `diversity.farthest` has them of their texts."""

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
    """Of a question's trajectories that may be chosen those of the third `sft.length`; none if sft.match_length wants
    three."""
    fewest = len(correct) // len(LENGTHS)
    indices = list(correct)
    if settings.length != "any":
        indices = getattr(thirds(correct, lengths), settings.length)
    if not settings.match_length:
        return Pool(indices, len(correct), settings.num_trajectories)
    return Pool(indices if fewest else [], len(correct), min(settings.num_trajectories, fewest))


def correct(labels: Sequence[Sequence[bool]], pad_to: int) -> list[list[int]]:
    """Of each question those that may be chosen among its first `pad_to` trajectories."""
    return [[index for index, label in enumerate(row[:pad_to]) if label] for row in labels]


def choose(
    question_ids: Sequence[str],
    labels: Sequence[Sequence[bool]],
    lengths: Sequence[Sequence[int]],
    settings: SftConfig,
    seed: int,
    spread: Spread,
) -> list[Key]:
    """(question index, trajectory index) of every SFT example, shuffled.

    `labels` says, per question and in sample order, which trajectories may be chosen: those that are correct and not too
    long; `lengths`, of the same shape, how long they are (of the others it is not read). Of those among a question's
    first `pad_to` trajectories, the ones of the third `length` are kept, `num_trajectories` of them taken as `selection`
    says, then resampled from until the question has as many examples as may be chosen of it: the set's size and each
    question's weight depend neither on `num_trajectories` nor on what is selected, only the distinct trajectories do.
    Questions without any left vanish. With `match_length` those with fewer than three vanish too, and of n at most
    floor(n / 3) distinct ones are taken, whatever `length`: such sets have the same questions, the same number of
    distinct trajectories of each, and the same number of examples.

    Raises: ValueError if num_trajectories is outside [1, pad_to].

    Source: RaML's data_process_sft.py; arXiv:2505.19815, Fig. 8 (selection=first, length=any).
    """
    if not 1 <= settings.num_trajectories <= settings.pad_to:
        raise ValueError(
            f"sft.num_trajectories={settings.num_trajectories} must be in [1, sft.pad_to={settings.pad_to}]: "
            "only the trajectories that are counted can be chosen"
        )
    pools = [pool(row, lengths[q], settings) for q, row in enumerate(correct(labels, settings.pad_to))]
    generator = random.Random(seed)
    examples: list[Key] = []
    for question, (each, ordered) in enumerate(
        zip(pools, _ordered(pools, question_ids, lengths, settings, seed, spread), strict=True)
    ):
        if ordered:
            chosen = [(question, index) for index in ordered[: each.most]]
            examples += chosen
            examples += [generator.choice(chosen) for _ in range(each.num_examples - len(chosen))]
    generator.shuffle(examples)
    return examples


def _ordered(
    pools: Sequence[Pool],
    question_ids: Sequence[str],
    lengths: Sequence[Sequence[int]],
    settings: SftConfig,
    seed: int,
    spread: Spread,
) -> list[list[int]]:
    """Each question's trajectories in the order in which they are taken, as many as are taken or more."""
    if settings.selection == "diverse":
        places = spread([([(q, index) for index in each.indices], each.most) for q, each in enumerate(pools)])
        return [[each.indices[place] for place in found] for each, found in zip(pools, places, strict=True)]
    ordered = [list(each.indices) for each in pools]
    for question_id, row, indices in zip(question_ids, lengths, ordered, strict=True):
        match settings.selection:
            case "shortest":
                indices.sort(key=lambda index, row=row: row[index])  # type: ignore[misc]
            case "longest":
                indices.sort(key=lambda index, row=row: -row[index])  # type: ignore[misc]
            case "random":  # a generator of its own: neither other questions nor num_trajectories change the order
                random.Random(seed_of(seed, "selection", question_id)).shuffle(indices)
    return ordered
