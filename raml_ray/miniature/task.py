"""The embedded task: reduce a row of numbers to one, a pair of neighbours at a time.

A state is a row of slots, each empty (`_`) or holding a number. A reduction takes two neighbouring numbers, empties
the left one's slot and puts the pair's sum into the right one's. Two domains have the same chains over different
facts: `sum` adds plainly, `sum_mod_10` keeps the last digit. The base policy has seen both; training questions are
plain sums alone (miniature.transfer_fraction changes that), so that the `transfer` set asks whether what SFT and RL teach
reaches a domain they never show.
"""

import itertools
import math
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from raml_ray import records
from raml_ray.settings import MiniatureConfig

SETS = ("train", "in_domain", "deeper", "transfer")
HEADINGS = {"sum": "Sum:", "sum_mod_10": "Sum mod 10:"}
"""Domain -> first word of its questions."""
LARGEST_SLIP = 3
"""A slip is off by one to this much."""

State = tuple[int | None, ...]


class Line(NamedTuple):
    """One line of thinking: a reflection word (or none) and a state."""

    word: Literal["", "Wait", "Alternatively"]
    state: State

    def __str__(self) -> str:
        return self.word + row(self.state)


@dataclass(frozen=True, slots=True)
class Style:
    """How someone thinks: reductions per line, slips, and what is done about them."""

    reductions_per_line: int
    slip_probability: float
    """Per line."""
    noticed_fraction: float
    """Of the slips, how many the next line corrects after `Wait`."""
    verification_probability: float
    """Chance of a second pass from the question after `Alternatively`, two reductions per line."""


def row(state: State) -> str:
    """The state as text, a space before every slot: ` _ 3 8`."""
    return "".join(" _" if number is None else f" {number}" for number in state)


def wrapped(number: int, domain: str) -> int:
    """The number as the domain has it: its last digit for `sum_mod_10`."""
    return number % 10 if domain == "sum_mod_10" else number


def value(state: State, domain: str) -> int:
    """The number that the state reduces to, in whatever order."""
    return wrapped(sum(number for number in state if number is not None), domain)


def placed(operands: tuple[int, ...], num_slots: int) -> State:
    """The operands in the rightmost slots."""
    return (None,) * (num_slots - len(operands)) + operands


def problem(state: State, domain: str) -> str:
    """The question that asks for the state's value: `Sum: _ 3 8`."""
    return HEADINGS[domain] + row(state)


def parse(text: str) -> tuple[State, str]:
    """State and domain of a question. Raises: ValueError if the text is none of this task's."""
    for domain, heading in HEADINGS.items():
        if re.fullmatch(rf"{heading}( _| \d+)+", text):
            state = tuple(None if slot == "_" else int(slot) for slot in text.removeprefix(heading).split())
            if any(number is not None for number in state):
                return state, domain
    raise ValueError(f"{text!r} is no question of the miniature; they look like {problem((None, 3, 8), 'sum')!r}")


def held_out(operands: tuple[int, ...]) -> bool:
    """Whether the operands are kept for evaluation: one in four, in every domain, whatever seed and settings."""
    return zlib.crc32(bytes(operands)) % 4 == 0


def questions(name: str, settings: MiniatureConfig, *, seed: int) -> list[records.Question]:
    """The questions of a set, all different; no training question of any seed has the operands of an evaluation question.

    Raises: ValueError if there is no such set, or if it cannot hold as many questions as are asked for.
    """
    if name not in SETS:
        raise ValueError(f"no question set 'miniature:{name}'; the miniature's sets are: {', '.join(SETS)}")
    other = {"train": settings.transfer_fraction, "transfer": 1.0}.get(name, 0.0)
    count_setting = "num_train" if name == "train" else "num_eval"
    num_questions = settings.num_train if name == "train" else settings.num_eval
    num_operands = settings.deeper_operands if name == "deeper" else settings.num_operands
    if num_operands > settings.num_slots:
        raise ValueError(
            f"miniature.num_operands={num_operands} exceeds miniature.num_slots={settings.num_slots}:"
            " every operand needs a slot"
        )
    drawn = list(itertools.islice(_operands(num_operands, evaluation=name != "train", seed=seed), num_questions))
    if len(drawn) < num_questions:
        raise ValueError(
            f"miniature.{count_setting}={num_questions}, but the set {name!r} has only {len(drawn)} distinct questions"
            f" of {num_operands} operands: lower miniature.{count_setting} or raise the number of operands"
        )
    return [
        _question(placed(operands, settings.num_slots), _domain(place, other), name, num_operands)
        for place, operands in enumerate(drawn)
    ]


def _domain(place: int, other: float) -> str:
    """The domain of the question at that place, where a share `other` of any first so many is of the other domain."""
    return "sum_mod_10" if math.floor((place + 1) * other) > math.floor(place * other) else "sum"


def _operands(num_operands: int, *, evaluation: bool, seed: int) -> Iterator[tuple[int, ...]]:
    """All operands of that many digits on one side of the split, each once, in an order that the seed decides."""
    rng = random.Random(records.seed_of(seed, "miniature", num_operands, evaluation))
    drawn: set[int] = set()
    while len(drawn) < 10**num_operands:
        number = rng.randrange(10**num_operands)
        if number not in drawn:
            drawn.add(number)
            operands = tuple(int(digit) for digit in f"{number:0{num_operands}d}")
            if held_out(operands) == evaluation:
                yield operands


def _question(state: State, domain: str, name: str, level: int) -> records.Question:
    text, answer = problem(state, domain), str(value(state, domain))
    return records.Question(records.question_id(text, answer), text, answer, f"miniature:{name}", domain, level)


class Reduction(NamedTuple):
    """A state after a reduction, and the slot that took the value."""

    state: State
    slot: int


def reduced(state: State, domain: str, rng: random.Random) -> Reduction:
    """The state after one reduction, of neighbours that the generator picks."""
    live = [slot for slot, number in enumerate(state) if number is not None]
    place = rng.randrange(len(live) - 1)
    left, right = live[place], live[place + 1]
    slots = list(state)
    slots[right] = wrapped((state[left] or 0) + (state[right] or 0), domain)
    slots[left] = None
    return Reduction(tuple(slots), right)


def _slipped(state: State, slot: int, domain: str, rng: random.Random) -> State:
    """The state with the slot's number off by up to LARGEST_SLIP."""
    right = state[slot] or 0
    wrong = [number for number in range(right - LARGEST_SLIP, right + LARGEST_SLIP + 1) if number >= 0]
    wrong.remove(right)
    return (*state[:slot], wrapped(rng.choice(wrong), domain), *state[slot + 1 :])


def _pass(state: State, domain: str, style: Style, rng: random.Random) -> Iterator[Line]:
    """Lines from the state (not repeated) down to one number; a slip is in the last reduction of its line."""
    num_live = sum(number is not None for number in state)
    while num_live > 1:
        slot = 0
        for _ in range(min(style.reductions_per_line, num_live - 1)):
            state, slot = reduced(state, domain, rng)
            num_live -= 1
        if rng.random() < style.slip_probability:
            wrong = _slipped(state, slot, domain, rng)
            yield Line("", wrong)
            if rng.random() < style.noticed_fraction:
                yield Line("Wait", state)
            else:
                state = wrong
        else:
            yield Line("", state)


def thinking(state: State, domain: str, style: Style, rng: random.Random) -> list[Line]:
    """The lines of one train of thought; the first repeats the question, the last holds the result."""
    first = list(_pass(state, domain, style, rng))
    lines = [Line("", state), *first]
    if first and rng.random() < style.verification_probability:
        second = list(_pass(state, domain, Style(2, 0.0, 0.0, 0.0), rng))
        if second != first:
            lines += [Line("Alternatively", second[0].state), *second[1:]]
    return lines


def final_answer(answer: int) -> str:
    """How every response ends."""
    return f"\n\n**Final Answer**\n\\boxed{{{answer}}}"


def response(lines: list[Line], domain: str) -> str:
    """A whole response: the lines between think tags, then the last line's value as the final answer."""
    thought = "\n".join(str(line) for line in lines)
    return f"<think>\n{thought}\n</think>{final_answer(value(lines[-1].state, domain))}"


def oracle(
    problem: str, settings: MiniatureConfig, *, num: int, seed: int, length: Literal["long", "short"] = "long"
) -> list[str]:
    """Distinct correct responses to a question, in the order of their drawing: fewer draws are the first of more.

    `long` reduces one pair per line, `short` two. Fewer than `num` come back if 100 * num draws in a row bring nothing
    new: a question of few operands has few orders of reduction.

    Raises: ValueError if the text is no question of the miniature.
    """
    state, domain = parse(problem)
    style = Style(
        reductions_per_line=1 if length == "long" else 2,
        slip_probability=settings.reflection_probability,
        noticed_fraction=1.0,
        verification_probability=settings.verification_probability,
    )
    rng = random.Random(records.seed_of(seed, "oracle", problem, length))
    found: dict[str, None] = {}
    num_repeats = 0
    while len(found) < num and num_repeats < 100 * num:
        text = response(thinking(state, domain, style, rng), domain)
        num_repeats = num_repeats + 1 if text in found else 0
        found[text] = None
    return list(found)
