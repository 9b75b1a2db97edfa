"""Whether a trajectory is correct as the paper's evaluation has it: OpenCompass' use of math-verify, call by call.

The gold answer is read as `$gold$`, as LaTeX or as a plain number. Of the trajectory only LaTeX counts, boxes first, two
boxes that stand close to each other as one set. Equality is math-verify's, with its rounding to six decimals; the
trajectory's answer is its first argument, as there. It is no strict judge: `docs/judging.md` lists what it lets pass.
Here as there nothing of the thinking is cut off. What differs: math-verify's own time limits are off (run it where it
can be killed), and only the last MOST_CHARS characters are read. Parsed objects are never turned into text.

Source: open-compass/opencompass, MATHVerifyEvaluator; paper, appendix C.3.
"""

import itertools
import time

import math_verify
from math_verify import ExprExtractionConfig, LatexExtractionConfig
from math_verify.parser import NormalizationConfig

from raml_ray.records import Judgement, Verdict
from raml_ray.text.answers import EXTRACTED_CHARS
from raml_ray.text.final_answer import MOST_CHARS

GOLD = [LatexExtractionConfig(), ExprExtractionConfig()]
ANSWER = [
    LatexExtractionConfig(
        try_extract_without_anchor=False,
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all", equations=True
        ),
    )
]


def judge_text(gold: str, text: str) -> Judgement:
    """The verdict on a trajectory. `error` (`bad_gold`) where OpenCompass leaves the sample out. May never return."""
    start = time.thread_time()
    verdict, reason, extracted = _judge(gold, text[-MOST_CHARS:])
    return Judgement(verdict, reason, extracted[:EXTRACTED_CHARS], time.thread_time() - start)


def _judge(gold: str, text: str) -> tuple[Verdict, str, str]:
    golds = math_verify.parse(f"${gold}$", GOLD, extraction_mode="first_match", parsing_timeout=None)
    if not golds:
        return Verdict.ERROR, "bad_gold", ""
    found = math_verify.parse(text, ANSWER, extraction_mode="first_match", parsing_timeout=None)
    if not found:
        return Verdict.UNREADABLE, "no_answer", ""
    # Behind the expression, or alone if it could not be parsed, stands the string that it was read from.
    extracted = next((one for one in found if isinstance(one, str)), "")
    is_equal = any(_equal(one, other) for one, other in itertools.product(found, golds))
    return (Verdict.CORRECT, "equal", extracted) if is_equal else (Verdict.WRONG, "different", extracted)


def _equal(answer: object, gold: object) -> bool:
    try:
        return bool(math_verify.verify(answer, gold, timeout_seconds=None, raise_on_error=True))
    except MemoryError:  # the judge's failure, not the answer's
        raise
    except Exception:  # whatever sympy raises: math-verify says False then
        return False
