"""A word and its place taken apart: two words at two places, and whether one does at its own place what it does elsewhere."""

from typing import NamedTuple


class Cells(NamedTuple):
    """What each of two words does at each of two places, the first place being the first word's own."""

    own: float
    """The first word at its own place."""
    other_here: float
    """The other word there."""
    moved: float
    """The first word at the other word's place."""
    other_own: float
    """The other word at its own place."""


class Effects(NamedTuple):
    """Of a 2 x 2 design, in the unit of its cells."""

    word: float
    """The first word less the other one, mean over both places."""
    place: float
    """The first place less the other one, mean over both words."""
    interaction: float
    """The first word's lead at its own place less its lead at the other's: 0 if word and place add up."""


def effects(cells: Cells) -> Effects:
    """Main effects and interaction."""
    own, other_here, moved, other_own = cells
    return Effects(
        word=((own - other_here) + (moved - other_own)) / 2,
        place=((own - moved) + (other_here - other_own)) / 2,
        interaction=(own - other_here) - (moved - other_own),
    )
