"""The partial results of a train of thought: the numbers that a line puts where the line before had another, or none."""

import re

LINE = re.compile(r"^(Wait|Alternatively)?((?: (?:_|\d+))+)$", re.MULTILINE)
SLOT = re.compile(r" (_|\d+)")

Slots = list[tuple[str, tuple[int, int]]]
"""What each slot holds, and the characters that write it."""


def spans(text: str) -> list[tuple[int, int]]:
    """The characters of every partial result: the sum that a reduction writes, and what `Wait` puts in a wrong one's place.

    A second pass, after `Alternatively`, begins at the first line again. Lines of another length than the first are
    none of the task's and leave everything as it was.
    """
    found: list[tuple[int, int]] = []
    lines: list[Slots] = []
    for match in LINE.finditer(text):
        slots = [(slot.group(1), slot.span(1)) for slot in SLOT.finditer(text, match.start(2), match.end(2))]
        if lines and len(slots) != len(lines[0]):
            continue
        if lines:
            before = lines[0] if match.group(1) == "Alternatively" else lines[-1]
            changed = zip(before, slots, strict=True)
            found += [span for (was, _), (now, span) in changed if now not in ("_", was)]
        lines.append(slots)
    return found
