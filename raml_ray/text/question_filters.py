"""Questions to leave out, by name (`data.filters`; paper 3.1): pure rules that would rather keep a question than lose a good one.

The paper strips URLs and HTML and then drops what is incomplete; here a question with markup is left out as it stands,
so that a question that is asked is the source's own text.
"""

import re
from collections.abc import Callable, Sequence

from raml_ray.records import Question

VERIFIABLE = "verifiable"
"""The one filter that needs the judge: whoever reads the questions asks it."""
COMPLETE = "complete"

_OPEN_ENDINGS = (",", ";", ":", "(", "[", "{", "\\", "&", "+", "*", "<")
_ANSWER_CUES = re.compile(r"(answer|solution)\s*:$", re.IGNORECASE)
_OPEN_WORDS = re.compile(r"\b(and|or|the|an|if|then|where|whose|which|such that|when|because|but)$", re.IGNORECASE)
_CURRENCY = re.compile(r"\$\s?+(\d[\d,]*+(\.\d++)?|\.\d++)(?![\w\\^{}$+*=<>-])|(?<=\d)\$(?![\w\\])")
_LATEX = re.compile(r"\\[a-zA-Z]|[\^_]|\$[a-zA-Z]")
_EARLIER = re.compile(
    r"\bshown above\b|\b(problem|question|exercise)s? above\b|\babove (problem|question|exercise)s?\b"
    r"|\b(previous|preceding) (problem|question|exercise|part)s?\b|\blast (problem|question|exercise)\b"
    r"|\bcontinued from\b",
    re.IGNORECASE,
)
_BRACKETS = (
    ("brace", r"(?<!\\)\{", r"(?<!\\)\}"),
    ("environment", r"\\begin\s*\{", r"\\end\s*\{"),
    ("display", r"(?<!\\)\\\[", r"(?<!\\)\\\]"),
    ("inline", r"(?<!\\)\\\(", r"(?<!\\)\\\)"),
)

_DRAWING = r"(the|this)( (following|adjoining|accompanying|attached|above|given))? (figure|diagram)"
_PICTURE = (
    ("markdown", r"!\[[^\[\]]*+\]\("),
    ("html", r"<\s*(img|svg|image|picture)\b"),
    ("latex", r"\\includegraphics|\\begin\s*\{(tikzpicture|asy|figure|picture)\}|\[asy\]"),
    ("spoken_of", rf"\b{_DRAWING}\b|\bfig(ure|\.)? ?\d"),
    ("spoken_of", r"\b(in|see|from) (the |this )?(image|picture|photo|graph|drawing) (above|below|shown)\b"),
    ("spoken_of", r"\bpictured (above|below|at)\b|\bshown (at|on|to) (the )?(right|left)\b"),
)

_TAGS = (
    "br|hr|div|span|table|tbody|thead|tr|td|th|ul|ol|li|sub|sup|em|strong|h[1-6]|font|center|img|pre|code|blockquote"
)
_ATTRIBUTES = r"(\s+[\w-]+\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s<>\"']+))"
_MARKUP = (
    ("url", r"https?://\S|\bwww\.\w"),
    ("html", rf"</?({_TAGS}){_ATTRIBUTES}*\s*/?>"),
    # A tag of one letter is one only where it is closed or has attributes: `a <b> c` may be an inequality.
    ("html", rf"</[abipqsu]>|<[abipqsu]{_ATTRIBUTES}+\s*>"),
    ("entity", r"&(nbsp|lt|gt|amp|quot|apos|#\d+|#x[0-9a-f]+);"),
)


def turned_down(question: Question, filters: Sequence[str]) -> str:
    """`name:cause` of the first of these filters that turns the question down; empty if none does (VERIFIABLE never)."""
    for name in filters:
        if name != VERIFIABLE and (cause := _RULES[name](question)):
            return f"{name}:{cause}"
    return ""


def incomplete(problem: str) -> str:
    """Why the text is no whole question; empty if it may be one.

    It is none if it has no letter and no digit, stops where a sentence cannot (after a comma, a colon, an opening
    bracket, a conjunction or an article), opens mathematics or a brace that it does not close, or speaks of a
    problem or a picture before it. An odd `$` beside a number, or in a text without LaTeX, is money; a text that stops
    after `is` or `=` leaves a blank.
    """
    text = problem.strip()
    if not any(char.isalnum() for char in text):
        return "empty"
    end = text.rstrip("$ \n")
    if (end.endswith(_OPEN_ENDINGS) and not _ANSWER_CUES.search(end)) or _OPEN_WORDS.search(text):
        return "cut_off"
    dollars = text.replace("\\$", "")
    if _LATEX.search(dollars) and dollars.count("$") % 2 and _CURRENCY.sub("", dollars).count("$") % 2:
        return "unbalanced_dollar"
    for name, opening, closing in _BRACKETS:
        if len(re.findall(opening, text)) != len(re.findall(closing, text)):
            return f"unbalanced_{name}"
    return "refers_back" if _EARLIER.search(text) else ""


def needs_image(problem: str) -> str:
    """How the text shows or speaks of a picture; empty if it does not.

    `the figure` and `the diagram` count, `a figure`, `the image of f` and `the graph of f` do not. A picture that is
    drawn in Asymptote or TikZ is one too, although its source is there.
    """
    return _first(_PICTURE, problem)


def markup(problem: str) -> str:
    """Whether the text holds an address (`url`), an HTML tag (`html`) or a character reference (`entity`); empty if none."""
    return _first(_MARKUP, problem)


def _first(rules: Sequence[tuple[str, str]], text: str) -> str:
    return next((name for name, pattern in rules if re.search(pattern, text, re.IGNORECASE)), "")


_RULES: dict[str, Callable[[Question], str]] = {
    COMPLETE: lambda question: incomplete(question.problem),
    "no_image": lambda question: needs_image(question.problem),
    "no_markup": lambda question: markup(question.problem),
    # str.isdigit, as the released code has it.
    "digits": lambda question: "" if question.answer.isdigit() else "not_digits",
}
