r"""Whether a final answer (`final_answer` reads it) is the gold answer. Pure: whoever calls puts a process around it.

Judging, in this order (G is the gold answer, A the extracted one):

1. One spelling: Unicode, layout, `$`, `\left`, blanks. `\dfrac12` is `\frac{1}{2}`.
2. Equal spelling is correct, whatever it means. `9^{9^9}` is `9^{9^9}`.
3. What could run away, or is work left undone (`\int`, `\sum`, `\prod`, `\lim`, `\det`), is compared as a string only
   (`too_complex`). A gold answer like that judges nothing (`bad_gold`). `10000000!` is wrong.
4. A single capital letter is a choice. `\textbf{(A)}` is `A`.
5. Brackets must agree, and ordered elements match in order: `(1,2)` is neither `[1,2]` nor `\{1,2\}`. Sets, unions and
   bare lists match in any order, and a bare list is a set: `2,1` is `\{1,2\}`. `\pm2` is the list `2,-2`.
6. An A with `=` is wrong unless G is an equation: `3=5`, `1=2=5` and `x+y+17=5` are not `5`. One exception: of an
   assignment `name = value` the value counts, `x=5` is `5`. Two assignments must name the same; two other equations
   must be proportional: `2x+2y=2` is `x+y=1`, `x=x+1` is not `x^2=-1`.
7. Ratios and times are strings. `1:2` is not `2:4`.
8. Words are words, ignoring case. `\text{North east}` is `north east`.
9. A unit that only one side writes is dropped, two must agree, nothing is converted: `5` is `5\text{ cm}`, which is not
   `5\text{ km}`. Percent is a unit: 50% is 50, not 0.5. So are degrees and money. A number base is none: both write it
   or neither, `101_3` is not `101`.
10. What reading as mathematics would drop is compared as a string only: number words, operators and variables in
   `\text`, relations that are no equality and dots, digits set apart that are no groups of thousands. Neither
   `5\text{ million}` nor `x\approx5` nor `5\ldots` is `5`, and `5 0` is neither `0` nor `50`.
11. Numbers are exact. `0.5` is `\frac12`, `0.333333` is not `\frac13`.
12. The rest is math-verify's, without its rounding. `2\sqrt2` is `\sqrt8`.
"""

import re
import time
from typing import NamedTuple

from raml_ray.records import Judgement, Verdict
from raml_ray.text import equality, notation
from raml_ray.text.final_answer import extract_final, last_box
from raml_ray.text.notation import Structure

EXTRACTED_CHARS = 500
MAX_ELEMENTS = 200
"""Longer tuples, and longer sets of anything but plain numbers, are compared as strings only."""
CHOICE = re.compile(r"\(?\s*([A-J])\s*[).:]?")
EQUALS = re.compile(r"(?<![<>!\\:])=(?!=)")
NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?|')?(?:\([A-Za-z0-9,]+\))?")
MEMBER = re.compile(r"\\?[A-Za-z]+\\in(?![a-zA-Z])\s*")
RATIO = re.compile(r"\d+(?::\d+)+")
ORDER = re.compile(r"[<>]|\\(?:le|ge|lt|gt)(?![a-zA-Z])")


class Comparison(NamedTuple):
    """Whether an answer is the gold answer, and by which rule: `Comparison(False, "unit")`."""

    is_equal: bool
    reason: str


class BadGold(ValueError):
    """The gold answer cannot be read, so no answer can be judged by it."""


def judge_answer(gold: str, text: str, *, pattern: str = "", max_chars: int = 2000) -> Judgement:
    """The verdict on a trajectory's text. May compute for as long as sympy likes.

    Raises: ValueError as `extract_final` does.
    """
    extracted = extract_final(text, pattern=pattern)
    if extracted is None:
        return Judgement(Verdict.UNREADABLE, "no_answer", "", 0.0)
    return judge_extracted(gold, extracted, max_chars=max_chars)


def judge_extracted(gold: str, extracted: str, *, max_chars: int = 2000) -> Judgement:
    """The verdict on a final answer that has been read already."""
    start = time.thread_time()
    try:
        comparison = compare(gold, extracted, max_chars=max_chars)
        verdict, reason = Verdict.CORRECT if comparison.is_equal else Verdict.WRONG, comparison.reason
    except BadGold:
        verdict, reason = Verdict.ERROR, "bad_gold"
    except equality.Unparsable:
        verdict, reason = Verdict.UNREADABLE, "not_mathematics"
    return Judgement(verdict, reason, extracted[:EXTRACTED_CHARS], time.thread_time() - start)


def compare(gold: str, answer: str, *, max_chars: int = 2000) -> Comparison:
    """Whether the answer is the gold answer, by the rules of this module's table.

    Raises: BadGold; Unparsable if the answer is no mathematics and the gold answer is.
    """
    if len(answer) > max_chars:
        is_same = answer.strip() == gold.strip()
        return Comparison(is_same, "exact" if is_same else "too_complex")
    gold_text, answer_text = notation.clean(last_box(gold) or gold), notation.clean(answer)
    if not gold_text:
        raise BadGold("empty")
    if gold_text == answer_text:
        return Comparison(True, "exact")
    if notation.too_complex(gold_text, max_chars):
        raise BadGold("too complex")
    if notation.too_complex(answer_text, max_chars):
        return Comparison(False, "too_complex")
    return _compare(gold_text, answer_text)


def _compare(gold: str, answer: str) -> Comparison:
    """As `compare`, for cleaned texts: one element of a list as well as a whole answer."""
    if gold == answer:
        return Comparison(True, "exact")
    if re.fullmatch("[A-J]", gold):
        choice = CHOICE.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", answer).strip())
        if choice:
            return Comparison(choice[1] == gold, "choice")
    gold, answer = MEMBER.sub("", gold, count=1), MEMBER.sub("", answer, count=1)
    by_structure = _compare_structures(gold, answer)
    if by_structure is not None:
        return by_structure
    if EQUALS.search(gold) or EQUALS.search(answer):
        return _compare_equations(gold, answer)
    if RATIO.fullmatch(gold) or RATIO.fullmatch(answer):
        return Comparison(False, "different")
    return _compare_values(gold, answer)


def _compare_equations(gold: str, answer: str) -> Comparison:
    gold_sides, answer_sides = EQUALS.split(gold), EQUALS.split(answer)
    gold_name, answer_name = _assigned(gold_sides), _assigned(answer_sides)
    if len(gold_sides) == 1:
        return _compare(gold, answer_sides[1]) if answer_name else Comparison(False, "equation")
    if len(answer_sides) == 1:
        return _compare(gold_sides[1], answer) if gold_name else Comparison(False, "no_equation")
    if len(gold_sides) != 2 or len(answer_sides) != 2:
        return Comparison(False, "equation")
    if gold_name and gold_name == answer_name:
        return _compare(gold_sides[1], answer_sides[1])
    if notation.is_text_only(gold) or notation.is_text_only(answer):
        return Comparison(False, "text_only")
    try:
        equality.parsed(f"({gold_sides[0]})-({gold_sides[1]})")
    except equality.Unparsable:
        raise BadGold("equation") from None
    is_same = equality.same_equation((gold_sides[0], gold_sides[1]), (answer_sides[0], answer_sides[1]))
    return Comparison(is_same, "equal" if is_same else "different")


def _assigned(sides: list[str]) -> str:
    """The name of an assignment `name = value`, whose value does not hold the name; empty if it is none."""
    if len(sides) != 2 or not NAME.fullmatch(sides[0]):
        return ""
    return "" if re.search(rf"(?<![A-Za-z\\]){re.escape(sides[0])}(?![A-Za-z])", sides[1]) else sides[0]


def _compare_structures(gold: str, answer: str) -> Comparison | None:
    """The verdict of the brackets and elements, or None if neither side has any."""
    gold_list, answer_list = _elements(gold), _elements(answer)
    if notation.literal(gold) is not None and notation.literal(answer) is not None:
        return None  # 1,234 is a number and not a list
    if gold_list is None and answer_list is None:
        return None
    if gold_list is None or answer_list is None:
        if gold_list and notation.literal(answer) is not None and gold_list.opening == "list":
            return Comparison(False, "structure")
        single = [side for side in (gold_list, answer_list) if side is not None and len(side.elements) == 1]
        if single and single[0].opening in ("(", "\\{"):
            inner = single[0].elements[0]
            return _compare(inner, answer) if gold_list is not None else _compare(gold, inner)
        # An inequality may be written as an interval: that is math-verify's to judge.
        return None if ORDER.search(gold) or ORDER.search(answer) else Comparison(False, "structure")
    kinds = [("list", "list") if side.opening == "\\{" else side[:2] for side in (gold_list, answer_list)]
    if kinds[0] != kinds[1]:
        return Comparison(False, "structure")
    if kinds[0][0] in ("list", "union"):
        return _compare_unordered(gold_list.elements, answer_list.elements)
    if len(gold_list.elements) != len(answer_list.elements):
        return Comparison(False, "structure")
    if len(gold_list.elements) > MAX_ELEMENTS:
        return Comparison(False, "too_complex")
    pairs = zip(gold_list.elements, answer_list.elements, strict=True)
    is_equal = all(_compare(one, other).is_equal for one, other in pairs)
    return Comparison(is_equal, "equal" if is_equal else "different")


def _elements(text: str) -> Structure | None:
    before, sign, after = text.partition("\\pm")
    if sign and "\\pm" not in after and "," not in text and not EQUALS.search(text):
        return Structure("list", "list", [f"{before}+{after}".lstrip("+"), f"{before}-{after}"])
    return notation.structure(text)


def _compare_unordered(gold: list[str], answer: list[str]) -> Comparison:
    gold_values, answer_values = ({notation.literal(element) for element in side} for side in (gold, answer))
    if None not in gold_values | answer_values:
        return Comparison(gold_values == answer_values, "equal" if gold_values == answer_values else "different")
    missing = list(dict.fromkeys(answer))
    wanted = list(dict.fromkeys(gold))
    if len(missing) != len(wanted):
        return Comparison(False, "structure")
    if len(wanted) > MAX_ELEMENTS:
        return Comparison(False, "too_complex")
    for element in wanted:
        match = next((other for other in missing if _compare(element, other).is_equal), None)
        if match is None:
            return Comparison(False, "different")
        missing.remove(match)
    return Comparison(True, "equal")


def _compare_values(gold: str, answer: str) -> Comparison:
    gold_words = notation.words(gold)
    if gold_words is not None:
        is_equal = gold_words == notation.words(answer)
        return Comparison(is_equal, "words" if is_equal else "different")
    if notation.is_text_only(gold) or notation.is_text_only(answer):
        return Comparison(False, "text_only")
    (gold_body, gold_unit), (answer_body, answer_unit) = notation.split_unit(gold), notation.split_unit(answer)
    # A number base, the one unit in digits, is not dropped.
    if gold_unit != answer_unit and ((gold_unit and answer_unit) or (gold_unit + answer_unit).isdigit()):
        return Comparison(False, "unit")
    gold_value, answer_value = notation.literal(gold_body), notation.literal(answer_body)
    if gold_value is not None and answer_value is not None:
        return Comparison(gold_value == answer_value, "equal" if gold_value == answer_value else "different")
    if gold_body == answer_body:
        return Comparison(True, "equal")
    return compare_mathematics(gold_body, answer_body)


def compare_mathematics(gold: str, answer: str) -> Comparison:
    """The slow path alone: math-verify's judgement of two expressions without units, lists or `=`.

    Raises: BadGold; Unparsable.
    """
    try:
        gold_expression = equality.parsed(gold)
    except equality.Unparsable:
        raise BadGold(gold[:200]) from None
    is_equal = equality.equal(gold_expression, equality.parsed(answer))
    return Comparison(is_equal, "equal" if is_equal else "different")
