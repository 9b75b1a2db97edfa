"""How an answer is written: one spelling for what means the same, exact numbers, units, lists and brackets.

Pure string work with linear patterns: nothing here can run away, whatever a model wrote.
"""

import itertools
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b"
SYMBOLS = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": "\\times ",
        "\u00b7": "\\cdot ",
        "\u22c5": "\\cdot ",
        "\u00f7": "/",
        "\u221e": "\\infty ",
        "\u03c0": "\\pi ",
        "\u00b0": "^\\circ ",
        "\u2264": "\\le ",
        "\u2265": "\\ge ",
        "\u2260": "\\ne ",
        "\u2248": "\\approx ",
        "\u222a": "\\cup ",
        "\u2229": "\\cap ",
    }
)
REPLACEMENTS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|limits)(?![a-zA-Z])"), ""),
    (re.compile(r"(?<!\\)\\[!,;:]"), ""),
    (re.compile(r"\{,\}(?=\d{3})"), ","),
    (re.compile(r"(?<!\\)\\(?:\s|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~"), " "),
    (re.compile(r"(?<!\\)\\([%$&#])"), r"\1"),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\{[^{}]*\})\s*(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*(\d)"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:mathrm|textrm|textbf|textit|mathbf|mathit|mbox|textnormal|operatorname)\s*\{"), r"\\text{"),
    (re.compile(r",?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<=[\d)}\]])\s(?:and|or)\s)\s*"), ","),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![a-zA-Z])"), r"^\\circ "),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(le|ge|ne)q(?![a-zA-Z])"), r"\\\1"),
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])"), ""),
]
WRAPPINGS = [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("\\boxed{", "}"), ("{", "}")]

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+|\d+\.?\d*|\.\d+)"
LITERALS = [
    re.compile(rf"(?P<mantissa>{NUMBER})(?:[eE](?P<exponent>[+-]?\d{{1,3}}))?"),
    re.compile(rf"(?:(?P<mantissa>{NUMBER})(?:\\times|\\cdot|\*))?10\^\{{?(?P<exponent>[+-]?\d{{1,3}})\}}?"),
    re.compile(rf"(?P<whole>\d*)\\frac\{{(?P<above>-?{NUMBER})\}}\{{(?P<below>-?{NUMBER})\}}"),
    re.compile(r"(?:(?P<whole>\d+) )?(?P<above>\d+)/(?P<below>\d+)"),
    re.compile(r"(?P<mantissa>\d*\.\d*)\\overline\{(?P<period>\d{1,50})\}"),
]
MAX_LITERAL_CHARS = 2000

UNIT_WORDS = frozenset(
    re.findall(
        r"\w+",
        "cm mm km kg ml ft inch foot feet yard mile meter metre centimeter kilometer liter litre gram kilogram pound "
        "ounce second minute hour day week month year dollar cent euro degree radian percent unit people person",
    )
)
UNIT_SPELLINGS = {"$": "dollar", "%": "percent", "^\\circ": "degree", "inches": "inch", "feet": "foot", "ft": "foot"}
TRAILING_UNITS = [
    re.compile(r"(?P<body>.+?)(?P<unit>%)"),
    re.compile(r"(?P<body>.+?)(?P<unit>\^\\circ)\s?[CF]?"),
    re.compile(r"(?P<body>[0-9][0-9A-F]*)_\{?(?P<unit>\d+)\}?"),
    re.compile(r"(?P<body>.+?)\\text\{(?P<unit>[A-Za-z/. -]+)\}(?:\^\{?(?P<power>[23])\}?)?"),
]
SPOKEN = frozenset(
    re.findall(
        r"\w+",
        "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy "
        "eighty ninety hundred thousand million billion trillion dozen score half third quarter fifth tenth hundredth "
        "thousandth millionth double triple twice thrice pi tau phi e i x y z n k infinity minus plus times negative "
        "positive squared cubed root power exponent factorial divided multiplied over mod modulo inverse reciprocal "
        "and or not no nor if when unless except but about approximately roughly almost nearly more less than least most",
    )
)
"""Words in `\\text` that are numbers, operators or variables, or qualify what is said: no unit has one of them."""
IN_TEXT = re.compile(r"\\text\{([^{}]*)\}")
NOT_EXACT = re.compile(r"\\(?:approx|simeq|doteq|equiv|[lc]?dots)(?![a-zA-Z])")
GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
APART = re.compile(r"\d \d(?!\d*/\d)")
"""Digits with a blank between them, which are no mixed number like `1 1/2`."""
WORD_UNIT = re.compile(rf"(?P<body>-?{NUMBER})\s?(?P<unit>[a-zA-Z]+)(?:\^\{{?(?P<power>[23])\}}?)?")

TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
OPENING, CLOSING = frozenset(["(", "[", "{", "\\{"]), frozenset([")", "]", "}", "\\}"])
BOMBS = [
    re.compile(r"\^\{?[+-]?\(?\d{5,}"),  # an exponent of five digits
    re.compile(r"\d{4,}!|[!)\]}]!|\^\{?[^{}]*!"),  # a factorial beyond 1000, of something computed, or as exponent
    re.compile(r"\\[dt]?binom\{?\d{5,}|\d{5,}\\choose"),
    re.compile(r"\\(?:int|iint|iiint|oint|sum|prod|lim|det)(?![a-zA-Z])"),  # work that was left to the judge
    re.compile(r"\\end\{[a-z]*matrix\}\^"),
    re.compile(r"\d{1001,}"),
]
NUMERIC_TOWER = re.compile(r"\^\{?[+-]?\(?(?:[\d.]+(?:\\cdot|\\times|\*))?(\d+)\^\{?\(?(\d+)")
MAX_DEPTH = 20


class Structure(NamedTuple):
    """A list with its brackets: `Structure("(", "]", ["1", "2"])`; a bare list and a union have words for brackets."""

    opening: str
    closing: str
    elements: list[str]


def clean(text: str) -> str:
    """The text in one spelling: ASCII digits and LaTeX symbols, no layout, no wrapping, no needless blanks."""
    text = re.sub(f"[{SUPERSCRIPTS}]+", _superscript, text.translate(SYMBOLS))
    text = re.sub("\u221a\\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1}", text)
    text = unicodedata.normalize("NFKC", text)
    text = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text).strip()
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return unwrap(text.strip().removesuffix(".") if not text.endswith("..") else text)


def _superscript(match: re.Match[str]) -> str:
    return "^{" + match.group().translate(str.maketrans(SUPERSCRIPTS, "0123456789+-")) + "}"


def unwrap(text: str) -> str:
    """The text without what merely surrounds all of it: math delimiters, bold stars, a box, braces."""
    for opening, closing in WRAPPINGS:
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inner and _is_one_group(text, opening):
            return unwrap(inner.strip())
    return text


def _is_one_group(text: str, opening: str) -> bool:
    if not opening.endswith("{"):
        return opening not in text[len(opening) : -len(opening)]
    depth = 0
    for index, token in enumerate(tokens := TOKEN.findall(text)):
        depth += (token == "{") - (token == "}")
        if depth == 0 and token == "}":
            return index == len(tokens) - 1
    return False


def literal(text: str) -> Fraction | None:
    """The exact number that the cleaned text writes, if it is nothing but a number: `1,234`, `-0.5`, `\\frac{1}{2}`,
    `1\\frac{1}{2}`, `3/4`, `1.2\\times10^{6}`, `0.\\overline{3}`. A decimal means what it says: 0.333 is 333/1000.
    """
    if len(text) > MAX_LITERAL_CHARS:
        return None
    sign = -1 if text.startswith("-") else 1
    body = text[1:].lstrip() if text[:1] in ("-", "+") else text
    for pattern in LITERALS:
        match = pattern.fullmatch(body)
        if match:
            value = _value(match.groupdict())
            return None if value is None else sign * value
    return None


def _value(parts: dict[str, str | None]) -> Fraction | None:
    above, below, whole, period = (parts.get(name) for name in ("above", "below", "whole", "period"))
    if above and below:
        if _number(below) == 0 or (whole and above.startswith("-")):
            return None
        return _number(whole or "0") + _number(above) / _number(below)
    mantissa = parts.get("mantissa") or ("0" if period else "1")
    if period:
        scale = 10 ** len(mantissa.partition(".")[2])
        return _number(mantissa) + Fraction(int(period), scale * (10 ** len(period) - 1))
    return _number(mantissa) * Fraction(10) ** int(parts.get("exponent") or 0)


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", "").rstrip(".") or "0")


def split_unit(text: str) -> tuple[str, str]:
    """The cleaned text without its unit, and the unit in one spelling (empty if there is none).

    Units are percent and degree signs, money, number bases, a trailing `\\text{...}`, and known words after a number.
    """
    for currency in ("$", "-$", "\u20ac", "\u00a3"):
        if text.startswith(currency) and len(text) > len(currency):
            return text.replace(currency[-1], "", 1), _spelling(currency[-1])
    for pattern in TRAILING_UNITS:
        match = pattern.fullmatch(text)
        if match and not re.search(r"(?:^|\s)(?:or|and|not)(?:\s|$)", match["unit"]):
            return match["body"].strip(), _spelling(match["unit"]) + (match.groupdict().get("power") or "")
    match = WORD_UNIT.fullmatch(text)
    if match and UNIT_WORDS & {match["unit"].lower(), match["unit"].lower().removesuffix("s")}:
        return match["body"], _spelling(match["unit"]) + (match["power"] or "")
    return text, ""


def _spelling(unit: str) -> str:
    unit = unit.strip(" .").lower()
    return UNIT_SPELLINGS.get(unit, unit.removesuffix("s") if len(unit) > 3 else unit)


def is_text_only(text: str) -> bool:
    """Whether the cleaned text must not be read as mathematics, which would drop what changes its meaning.

    That are number words, operators and variables in `\\text` (`5\\text{ million}`), relations that are no equality
    and dots (`x\\approx5`, `5\\ldots`), and digits set apart that are no groups of thousands (`1 0`).
    """
    found = {word for part in IN_TEXT.findall(text) for word in re.findall("[A-Za-z]+", part)}
    spoken = {word if len(word) == 1 else word.lower() for word in found}  # E is a choice, e a number
    spoken |= {word.removesuffix("s") for word in spoken}
    return bool(spoken & SPOKEN or NOT_EXACT.search(text) or APART.search(GROUPED.sub("", text)))


def words(text: str) -> str | None:
    """The cleaned text as lower-case words if it is words (three letters or more, or inside `\\text`), else None."""
    inner = IN_TEXT.sub(r" \1 ", text)
    inner = " ".join(inner.split())
    if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", inner):
        return None
    return inner.casefold() if "\\text{" in text or len(inner) >= 3 or inner.casefold() == "no" else None


def structure(text: str) -> Structure | None:
    """The elements of a tuple, interval, set, union or bare list, or None: an expression of its own."""
    tokens = TOKEN.findall(text)
    depth, first_close, commas, unions = 0, -1, [], []
    for index, token in enumerate(tokens):
        if token in OPENING:
            depth += 1
        elif token in CLOSING:
            depth -= 1
            first_close = index if depth == 0 and first_close < 0 else first_close
        elif token == "," and depth <= 1:
            commas.append((depth, index))
        elif token == "\\cup" and depth == 0:
            unions.append(index)
    if depth != 0:
        return None
    if unions:
        return Structure("union", "union", _pieces(tokens, unions))
    outer = [index for level, index in commas if level == 0]
    if outer:
        return Structure("list", "list", _pieces(tokens, outer))
    if tokens and tokens[0] in ("(", "[", "\\{") and first_close == len(tokens) - 1:
        inner = tokens[1:-1]
        return Structure(tokens[0], tokens[-1], _pieces(inner, [index - 1 for _, index in commas]))
    return None


def _pieces(tokens: list[str], cuts: list[int]) -> list[str]:
    bounds = [-1, *cuts, len(tokens)]
    return ["".join(tokens[a + 1 : b]).strip() for a, b in itertools.pairwise(bounds)]


def too_complex(text: str, max_chars: int) -> bool:
    """Whether computing the cleaned text could run away: then it is compared as a string only."""
    if len(text) > max_chars or any(bomb.search(text) for bomb in BOMBS):
        return True
    depth = deepest = 0
    for token in TOKEN.findall(text):
        depth += (token in OPENING) - (token in CLOSING)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH or re.search(r"\^[^\s+*=,]*\^[^\s+*=,]*\^", text):
        return True
    return any(
        int(exponent) > 4 or int(base) > 10 or int(base) ** int(exponent) > 10_000
        for base, exponent in NUMERIC_TOWER.findall(text)
    )
