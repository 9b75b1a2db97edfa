r"""Where a trajectory writes its final answer.

The text after the last `</think>` counts (a `<think>` that never closes leaves no answer), of it the last MOST_CHARS
characters; in them the last balanced `\boxed{}` that holds something, or the first group of the last match of a
pattern. Numbers that merely stand in the text never count.
"""

import re

MOST_CHARS = 200_000
"""Of a trajectory's conclusion the last so many characters are read."""
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def extract_final(text: str, *, pattern: str = "") -> str | None:
    r"""The final answer as the trajectory writes it, or None if there is none.

    Without a pattern the last balanced, non-empty `\boxed{}` after thinking; with one, its last match's first group,
    which may take as long as the pattern likes.

    Raises: ValueError if the pattern is no regular expression or has no group.
    """
    span = final_span(text, pattern=pattern)
    return text[slice(*span)] if span else None


def final_span(text: str, *, pattern: str = "") -> tuple[int, int] | None:
    """Where `extract_final`'s answer stands: its first character in the text and the one behind its last."""
    concluded = conclusion(text)
    if concluded is None:
        return None
    if pattern:
        matches = list(check_pattern(pattern).finditer(concluded))
        span = _trimmed(concluded, *matches[-1].span(1)) if matches and matches[-1].group(1) else None
    else:
        span = box_span(concluded)
    behind = len(text) - len(concluded)
    return (behind + span[0], behind + span[1]) if span else None


def conclusion(text: str) -> str | None:
    """What follows the last `</think>`, its last MOST_CHARS characters; None if a `<think>` never closes."""
    _, closing, concluded = text.rpartition("</think>")
    return None if not closing and "<think>" in text else concluded[-MOST_CHARS:]


def check_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled verify.answer_pattern. Raises: ValueError if it is no regular expression or has no group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"verify.answer_pattern={pattern!r} is no regular expression: {error}") from None
    if compiled.groups < 1:
        raise ValueError(f"verify.answer_pattern={pattern!r} has no group: put the answer's part in parentheses")
    return compiled


def last_box(text: str) -> str | None:
    """Content of the last balanced box that holds something."""
    span = box_span(text)
    return text[slice(*span)] if span else None


def box_span(text: str) -> tuple[int, int] | None:
    """Where the last balanced box that holds something has its content, without blanks around it; in one pass."""
    opened: list[tuple[int, bool]] = []  # where the content of each open brace begins, and whether it is a box's
    found: tuple[int, int] | None = None
    for token in BOX.finditer(text):
        if token.group().endswith("{") and token.group() != "\\{":
            opened.append((token.end(), token.group() != "{"))
        elif token.group() == "}" and opened:
            start, is_box = opened.pop()
            if is_box:
                found = _trimmed(text, start, token.start()) or found
    return found


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The span without blanks around it; None if it holds nothing else."""
    content = text[start:end]
    start += len(content) - len(content.lstrip())
    return (start, start + len(content.strip())) if content.strip() else None
