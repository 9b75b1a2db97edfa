"""Whether two expressions are mathematically equal, by math-verify and sympy, with no time limit of its own.

Run it where it can be killed (`workers.judge`). Parsed objects are never turned into text: printing one may never end.
"""

import re

import math_verify
import sympy
from math_verify import LatexExtractionConfig
from math_verify.parser import NormalizationConfig

LATEX = LatexExtractionConfig(
    try_extract_without_anchor=True,
    boxed_match_priority=-1,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
    ),
)
DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
DIGITS = 30
RELATIVE_TOLERANCE = 1e-12
# What sympy raises when two things cannot be compared. Not MemoryError: that is the judge's failure, not the answer's.
INCOMPARABLE = (
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    LookupError,
    RecursionError,
    NotImplementedError,
)


class Unparsable(ValueError):
    """The text is no mathematics that can be read."""


def parsed(latex: str) -> sympy.Basic | sympy.MatrixBase:
    """The expression. Decimals become the fractions that they write, so that nothing is rounded.

    Raises: Unparsable.
    """
    exact = DECIMAL.sub(lambda match: rf"(\frac{{{int(match[1] + match[2])}}}{{1{'0' * len(match[2])}}})", latex)
    found = math_verify.parse(f"${exact}$", [LATEX], fallback_mode="no_fallback", parsing_timeout=None)
    if len(found) != 1 or not isinstance(found[0], sympy.Basic | sympy.MatrixBase):
        raise Unparsable(latex[:200])
    return found[0]


def equal(gold: sympy.Basic | sympy.MatrixBase, answer: sympy.Basic | sympy.MatrixBase) -> bool:
    """Whether the answer is the gold expression in another form."""
    try:
        judged = math_verify.verify(
            gold, answer, timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=True
        )
        return bool(judged) and not _are_other_numbers(gold, answer)
    except INCOMPARABLE:
        return False


def _are_other_numbers(gold: sympy.Basic | sympy.MatrixBase, answer: sympy.Basic | sympy.MatrixBase) -> bool:
    # math-verify calls differences below 1e-15 zero, however small the numbers themselves are.
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)) or gold.free_symbols | answer.free_symbols:
        return False
    one, other = gold.evalf(DIGITS), answer.evalf(DIGITS)
    if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
        return False
    return bool(abs(one - other) > RELATIVE_TOLERANCE * max(abs(one), abs(other)))


def same_equation(gold: tuple[str, str], answer: tuple[str, str]) -> bool:
    """Whether two equations (left, right) say the same: their differences are proportional by a nonzero constant.

    Their solution sets are not compared: two equations without a solution are not the same answer.

    Raises: Unparsable.
    """
    one = parsed(f"({gold[0]})-({gold[1]})")
    other = parsed(f"({answer[0]})-({answer[1]})")
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return False
    try:
        one, other = one.doit(), other.doit()
        if one.is_zero or other.is_zero:
            return bool(one.is_zero and other.is_zero)
        ratio = sympy.simplify(other / one)
        return bool(ratio.is_number and not ratio.is_zero and ratio.is_finite)
    except INCOMPARABLE:
        return False
