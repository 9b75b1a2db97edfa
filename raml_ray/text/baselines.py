"""Texts that keep a trajectory's words and lose its reasoning, to measure what its order and its subject are worth."""

import random
import re

MARKUP = re.compile(r"\s*(?:</?\w+>\s*)*")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def shuffled(text: str, seed: int) -> str | None:
    """The text with its lines in another order, or its sentences where it has not three lines; the same for the same seed.

    Lines that are markup alone (`<think>`) stay where they are. None if there are no two different parts to change places.
    """
    lines = text.split("\n")
    movable = [place for place, line in enumerate(lines) if not MARKUP.fullmatch(line)]
    if len(movable) >= 3:
        order = _other_order([lines[place] for place in movable], seed)
        if order is None:
            return None
        for place, line in zip(movable, order, strict=True):
            lines[place] = line
        return "\n".join(lines)
    start = len(text) - len(text.lstrip())
    order = _other_order(SENTENCE_END.split(text.strip()), seed)
    return None if order is None else text[:start] + " ".join(order) + text[len(text.rstrip()) :]


def _other_order(parts: list[str], seed: int) -> list[str] | None:
    if len(set(parts)) < 2:
        return None
    draw, order = random.Random(seed), list(parts)
    while order == parts:
        draw.shuffle(order)
    return order


def spliced(text: str, answer: str, share: float) -> str:
    """The text with the bare answer as a line of its own, behind the line in which that share of it, [0, 1], is reached."""
    end = text.find("\n", round(share * len(text)))
    place = len(text) if end < 0 else end
    return f"{text[:place]}\n{answer}{text[place:]}"
