"""Which sentences of a thought are kept, to make it as short as a budget of tokens says."""

from collections.abc import Sequence
from itertools import accumulate


def truncated(lengths: Sequence[int], budget: int) -> list[int]:
    """The first sentences, as many whole ones as the budget of tokens holds."""
    return [place for place, length in enumerate(accumulate(lengths)) if length <= budget]


def without(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[int]:
    """The sentences that are left, in their place, when they are deleted in that order until the budget of tokens holds the
    rest.

    As with `truncated`, the first that does not fit ends it: a way that went on to shorter ones would have more tokens of
    the same budget.
    """
    kept = order[::-1]
    return sorted(kept[place] for place in truncated([lengths[place] for place in kept], budget))


def by_worth(worth: Sequence[float]) -> list[int]:
    """The order in which sentences are deleted by what each is worth: the least first, of equal ones the later."""
    return sorted(range(len(worth)), key=lambda place: (worth[place], -place))
