"""Which letter a trajectory chooses, in all the ways that models write it."""

import time

import pytest

from raml_ray.records import Verdict
from raml_ray.text import choices

CHOSEN = [
    ("Answer: C", "C"),
    ("Some steps.\n\nAnswer: C", "C"),
    ("ANSWER: C", "C"),
    ("answer: c", "C"),
    ("Answer: (C)", "C"),
    ("Answer: C.", "C"),
    ("Answer: C) 12 m/s", "C"),
    ("Answer: C. The energy falls", "C"),
    ("Answer: $C$", "C"),
    (r"Answer: \boxed{C}", "C"),
    (r"Answer: $\boxed{C}$", "C"),
    (r"Answer: \text{C}", "C"),
    ("**Answer: C**", "C"),
    ("**Answer:** C", "C"),
    ("**Answer**: C", "C"),
    ("Final answer: C", "C"),
    ("The correct answer: (C)", "C"),
    ("### Answer: C", "C"),
    ("Answer:\n\n(C)", "C"),
    (r"so \boxed{C}", "C"),
    (r"so \boxed{\text{C}}.", "C"),
    (r"so \boxed{\textbf{(C)}}", "C"),
    (r"so \boxed{C. \frac{1}{2}}", "C"),
    ("**Final Answer**\n\\boxed{C}", "C"),
    ("The options were weighed.\n(C)", "C"),
    ("The options were weighed.\n**C**", "C"),
    ("The options were weighed.\nC.", "C"),
    ("The answer is (C).", "C"),
    ("The answer is **C**.", "C"),
    ("Thus the correct answer is C", "C"),
    (r"The answer is $\boxed{C}$.", "C"),
    ("Answer: A\nNo, wait.\nAnswer: B", "B"),
    (r"\boxed{A} is tempting, but" + "\nAnswer: B", "B"),
    (r"Answer: A. On reflection \boxed{B}", "B"),
    ("<think>Answer: A</think>\nAnswer: B", "B"),
    ("Answer: J", "J"),
]


@pytest.mark.parametrize(("text", "chosen"), CHOSEN)
def test_the_last_statement_of_a_choice_counts(text, chosen):
    assert choices.read_choice(text)[0] == chosen


NOT_CHOSEN = [
    "",
    "I prefer B because A is wrong.",
    "C is the speed of light.",
    "Answer: K",
    "Answer: A lot of energy is lost",
    "Answer: B or C",
    "Answer: A, B",
    "Answer: (A) or (B)",
    "Answer: AB",
    "Answer: A. or B.",
    "If the answer is C, the rest follows.",
    "Answer: 4.2",
    "Answer: E.5",
    "The answer is not C.",
    "The answer is a matter of taste.",
    "Answer: C\nAnswer: none of these",
    r"\boxed{12}",
    r"\boxed{}",
    r"\boxed{A}, \boxed{A, B}",
    "<think>Answer: A",
    "<think>Answer: A</think> I cannot say.",
    "a",
]


@pytest.mark.parametrize("text", NOT_CHOSEN)
def test_a_letter_that_merely_stands_there_is_no_choice(text):
    assert choices.read_choice(text)[0] is None


@pytest.mark.parametrize(
    ("gold", "text", "verdict", "reason"),
    [
        ("C", "Answer: C", Verdict.CORRECT, "equal"),
        ("(c)", "Answer: C", Verdict.CORRECT, "equal"),
        ("b.", "Answer: C", Verdict.WRONG, "different"),
        ("C", "It is C I think", Verdict.UNREADABLE, "no_answer"),
        ("C", "Answer: B or C", Verdict.UNREADABLE, "no_choice"),
        ("12", "Answer: C", Verdict.ERROR, "bad_gold"),
        ("", "Answer: C", Verdict.ERROR, "bad_gold"),
    ],
)
def test_a_choice_is_the_gold_letter_another_or_none(gold, text, verdict, reason):
    judgement = choices.judge_text(gold, text)
    assert (judgement.verdict, judgement.reason) == (verdict, reason)


@pytest.mark.parametrize("part", [r"\boxed{", "answer is ", "Answer: ", "**", "(A", "{", "Answer:" + " " * 50, "\n"])
def test_long_texts_are_read_in_one_pass(part):
    start = time.thread_time()
    choices.read_choice(part * (200_000 // len(part)))
    assert time.thread_time() - start < 1.0
