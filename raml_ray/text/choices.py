r"""The letter that a trajectory chooses among the options of a question, and whether it is the gold letter. Linear, pure.

What states a choice, after the last `</think>`:

1. A line `Answer: C`, which the paper's four-option prompt asks for; `answer is C` at the end of a sentence.
2. A box: `\boxed{C}`, `\boxed{\text{(C)}}`.
3. A line that is nothing but the letter, in capitals: `(C)`, `**C**`, `C.`

The last one counts. The letter may stand in brackets, bold, `$` or `\text{}`, and its option's text may follow behind `)`,
`.` or `:`, as in `Answer: C) 12 m/s`. A last statement that names no single letter, `Answer: B or C`, chooses nothing. A
letter that merely stands in a sentence counts as little: `I prefer B because A is wrong`.
"""

import re
import time

from raml_ray.records import Judgement, Verdict
from raml_ray.text import answers, final_answer

LETTER = re.compile(r"\(?([A-Ja-j])(?:\)|[.:](?!\d))?(?P<option>\s+.*|\s*)", re.DOTALL)
MARKS = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf|mathsf)\s*(?=\{)|[*_$`{}]|\\[()\[\]]")
LINE = re.compile(r"(?im)^[ \t#>*_-]*(?:the |my )?(?:final |correct )?answer[ \t*_]{0,9}:[ \t*_]{0,9}(?P<stated>\S.*)$")
SENTENCE = re.compile(
    r"\b[Aa]nswer is:?\s{1,3}(?P<stated>[^\s.]{1,40})(?=\.?[*_]{0,3}(?:[ \t]*$|[ \t]{1,9}[A-Z]))", re.MULTILINE
)
ANOTHER = re.compile(r"\s*(?:or|and|,|/|&)(?![A-Za-z])")
ALONE = re.compile(r"(?m)^[ \t]*(?P<stated>(?:\*\*|\()*[A-J](?:\*\*|\)|\.)*)[ \t]*$")
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(?P<stated>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")


def letter(stated: str) -> str | None:
    r"""The one letter, A to J, that a text states: `(b)`, `\text{B}`, `B. 12 m/s`; None for anything else."""
    bare = MARKS.sub("", stated).strip()
    match = LETTER.fullmatch(bare)
    if not match:
        return None
    # `A lot` is no choice: an option's text needs the letter set off from it. Nor is `(A) or (B)`.
    is_set_off = not match["option"].strip() or bare[match.start("option") - 1] in ").:"
    return match[1].upper() if is_set_off and not ANOTHER.match(match["option"]) else None


def read_choice(text: str) -> tuple[str | None, str]:
    """The letter that the trajectory chooses, and the statement that it was read from; (None, "") if it states none."""
    concluded = final_answer.conclusion(text)
    if concluded is None:
        return None, ""
    statements = [
        (match.start("stated"), match["stated"].strip())
        for pattern in (LINE, SENTENCE, ALONE, BOX)
        for match in pattern.finditer(concluded)
        if match["stated"].strip()
    ]
    if not statements:
        return None, ""
    last = max(statements, key=lambda statement: statement[0])[1]
    return letter(last), last


def judge_text(gold: str, text: str) -> Judgement:
    """The verdict on a trajectory: `error` (`bad_gold`) if the gold answer is no letter, `unreadable` if none is chosen."""
    start = time.thread_time()
    wanted = letter(gold)
    chosen, stated = read_choice(text)
    if wanted is None:
        verdict, reason = Verdict.ERROR, "bad_gold"
    elif chosen is None:
        verdict, reason = Verdict.UNREADABLE, "no_choice" if stated else "no_answer"
    else:
        verdict, reason = (Verdict.CORRECT, "equal") if chosen == wanted else (Verdict.WRONG, "different")
    return Judgement(verdict, reason, stated[: answers.EXTRACTED_CHARS], time.thread_time() - start)
