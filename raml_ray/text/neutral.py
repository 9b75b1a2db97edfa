"""Words of no role to hold a word against: as frequent, and nearest."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from raml_ray.settings import REGEX_RULE
from raml_ray.text import roles
from raml_ray.text.roles import Span, Word

WORD = re.compile(r"[^\W\d_]+")
NEUTRAL = "neutral"


def frequencies(texts: Iterable[str], rules: Sequence[str]) -> dict[str, int]:
    """How often each word of letters, and whatever else a rule marks, stands in the texts, in small letters."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(match.group().lower() for match in WORD.finditer(text))
        for rule in rules:
            marked = (match.group().strip().lower() for match in roles.pattern(rule).finditer(text))
            counts.update(word for word in marked if not WORD.fullmatch(word))
    return dict(counts)


def candidates(
    text: str, spans: Sequence[Span], categories: Mapping[str, Sequence[str]], rules: Sequence[str]
) -> list[Word]:
    """Words that a rule marks (without any: all words of letters) and no category does."""
    ruled = {**categories, NEUTRAL: tuple(rules) or (REGEX_RULE + WORD.pattern,)}
    return [word for word in roles.words(text, spans, ruled) if word.category == NEUTRAL]


def log_ratio(word: Word, other: Word, frequency: Mapping[str, int]) -> float:
    """log(how often the other stands there / how often the word does); what was never counted stands there once."""
    return math.log(frequency.get(other.text.lower(), 1) / frequency.get(word.text.lower(), 1))


def partner(word: Word, others: Sequence[Word], frequency: Mapping[str, int]) -> Word | None:
    """Of words with as many tokens the one nearest in log frequency, of equally near ones the nearest in place, then the
    earlier; None if there is none."""

    def apart(other: Word) -> tuple[float, int, int]:
        return round(abs(log_ratio(word, other, frequency)), 9), abs(other.start - word.start), other.start

    alike = [other for other in others if other.num_tokens == word.num_tokens]
    return min(alike, key=apart, default=None)
