"""Which sentences of a thought are kept, to make it as short as a budget of tokens says."""

from collections.abc import Sequence


def truncated(lengths: Sequence[int], budget: int) -> list[int]:
    """The first sentences, as many whole ones as the budget of tokens holds."""
    kept, left = [], budget
    for place, length in enumerate(lengths):
        if length > left:
            break
        kept.append(place)
        left -= length
    return kept


def without(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[int]:
    """The sentences that are left, in their place, when they are deleted in that order until the budget holds the rest."""
    left, total = set(range(len(lengths))), sum(lengths)
    for place in order:
        if total <= budget:
            break
        left.discard(place)
        total -= lengths[place]
    return sorted(left)


def by_worth(worth: Sequence[float]) -> list[int]:
    """The order in which sentences are deleted by what each is worth: the least first, of equal ones the later."""
    return sorted(range(len(worth)), key=lambda place: (worth[place], -place))
