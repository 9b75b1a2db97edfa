"""Where a text states partial results, and the whole numbers that they are."""

import re
from bisect import bisect_right
from collections.abc import Sequence

from raml_ray.text import leak
from raml_ray.text.roles import Span


def spans(text: str, pattern: str) -> list[Span]:
    """The characters of the first group of every match, in the text's order, empty ones left out."""
    return [match.span(1) for match in re.finditer(pattern, text) if match.group(1)]


def whole_number(text: str) -> int | None:
    """`1,200` and `24.0` as numbers; None of what is none, or is no whole one."""
    value = leak.value(text.strip())
    return int(value) if value is not None and value.denominator == 1 else None


def token_at(spans_T: Sequence[Span], character: int) -> int:
    """The token that the character is read with, of the tokens' spans as `roles.token_spans` has them."""
    return bisect_right([end for _, end in spans_T], character)
