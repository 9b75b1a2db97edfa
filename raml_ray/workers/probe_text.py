"""What a policy is asked along one text."""

from collections.abc import Sequence
from typing import NamedTuple

from raml_ray.text.suffix import AnswerSuffix


class Probe(NamedTuple):
    """One text, the prefixes of it that are asked, and the answers that each is asked for."""

    token_ids: Sequence[int]
    lengths: Sequence[int]
    """Tokens of each prefix, ascending, K of them."""
    suffixes: Sequence[AnswerSuffix]
