r"""Whether a response is laid out as the policy was asked to lay it out.

By plain search and without regular expressions that could take long: models write what they like.
"""

from typing import Literal

OPEN, CLOSE = "<think>", "</think>"


def is_well_formed(response: str, layout: Literal["paper", "think"], *, prompt: str = "") -> bool:
    r"""Whether a response is in a layout; a `<think>` at the very end of the prompt is taken for the response's.

    `paper`: a think block, a conclusion block that holds a box, then one line "The answer is \boxed{...}" (a full stop may
    end it); `think`: a think block, then something that holds a box. Each tag stands once, and between the blocks there is
    nothing.

    Source: RaML, arXiv:2505.19815, C.2 (the layout of the system prompt; the released code has no checker).
    """
    text = (OPEN if prompt.rstrip().endswith(OPEN) else "") + response
    rest = _after_block(text.strip(), OPEN, CLOSE)
    if rest is None:
        return False
    if layout == "think":
        return "\\boxed{" in rest
    last_line = _after_block(rest, "<conclusion>", "</conclusion>")
    return (
        last_line is not None
        and "\\boxed{" in rest[: len(rest) - len(last_line)]
        and last_line.startswith("The answer is \\boxed{")
        and last_line.removesuffix(".").endswith("}")
        and "\n" not in last_line
    )


def _after_block(text: str, opening: str, closing: str) -> str | None:
    """What follows a block that the text begins with, stripped; None unless both tags stand once, in their order."""
    if not text.startswith(opening) or text.count(opening) != 1 or text.count(closing) != 1:
        return None
    return text.split(closing)[1].strip()
