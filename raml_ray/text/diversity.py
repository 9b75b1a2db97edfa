"""How much texts differ, at a bounded cost, and which few of them differ most."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

SKETCH_SIZE = 128
_WORD = re.compile(r"\w+|[^\w\s]")


def sketch(text: str) -> np.ndarray:
    """The SKETCH_SIZE smallest hashes (uint64, ascending) of the text's distinct bigrams: 1 KiB, however long it is.

    A bigram is two words, numbers or signs that follow each other; the first one follows the text's beginning.

    Source: Broder 1997, bottom-k sketches.
    """
    words = _WORD.findall(text)
    hashes = {word: _hash(word) for word in set(words)}
    return _bottom(np.array([hashes[word] for word in words], np.uint64))


def token_sketch(token_ids: Sequence[int]) -> np.ndarray:
    """The same of a response's tokens, each a word."""
    return _bottom(np.array(token_ids, np.uint64) + np.uint64(1))


def _bottom(hashes: np.ndarray) -> np.ndarray:
    """The smallest hashes of what follows each other; the first follows 0, the beginning."""
    first = np.concatenate([np.zeros(1, np.uint64), hashes])[:-1]
    return np.unique(_mixed(first * np.uint64(0x9E3779B97F4A7C15) + hashes))[:SKETCH_SIZE]


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _mixed(values: np.ndarray) -> np.ndarray:
    """Bits of every value spread over the whole word (splitmix64)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(values ^ (values >> np.uint64(31)))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard distance of two texts' bigrams, in [0, 1], from their sketches.

    Exact where both together have at most SKETCH_SIZE bigrams, else estimated (standard error at most 0.044).
    """
    union = np.union1d(one, other)[:SKETCH_SIZE]
    if not len(union):
        return 0.0
    shared = np.intersect1d(one, other, assume_unique=True)
    return 1 - int((shared <= union[-1]).sum()) / len(union)


def farthest(sketches: Sequence[np.ndarray], count: int) -> list[int]:
    """`count` of the texts (or all), in the order of their choice: the first, then ever the one whose nearest chosen
    one is farthest away; among equals the earliest. Fewer are the beginning of more.

    Source: Gonzalez 1985, greedy k-center.
    """
    count = min(count, len(sketches))
    chosen = list(range(min(count, 1)))
    nearest = np.full(len(sketches), np.inf)
    while len(chosen) < count:
        nearest[chosen[-1]] = -np.inf
        for index in np.flatnonzero(nearest > -np.inf):
            nearest[index] = min(nearest[index], distance(sketches[chosen[-1]], sketches[index]))
        chosen.append(int(np.argmax(nearest)))
    return chosen
