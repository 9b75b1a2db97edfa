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
    """The sentences that are left, in their place, when they are deleted in that order as far as the budget of tokens asks:
    from the last one of the order on, each is kept that the budget still holds."""
    kept, left = [], budget
    for place in reversed(order):
        if lengths[place] <= left:
            kept.append(place)
            left -= lengths[place]
    return sorted(kept)


def by_worth(worth: Sequence[float]) -> list[int]:
    """The order in which sentences are deleted by what each is worth: the least first, of equal ones the later."""
    return sorted(range(len(worth)), key=lambda place: (worth[place], -place))
