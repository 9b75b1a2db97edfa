"""Answers whose verdicts are known: what every judge must get right on this machine before it judges anything."""

from typing import Literal

from raml_ray.records import Verdict

Kind = Literal["strict", "paper", "choice"]

STRICT = [
    ("11", r"\boxed{11}", Verdict.CORRECT),
    ("11", r"\boxed{12}", Verdict.WRONG),
    ("11", "the answer is 11", Verdict.UNREADABLE),
    ("2", r"\boxed{1}. Wait, no: \boxed{2}", Verdict.CORRECT),
    ("4", r"<think>\boxed{4}</think> \boxed{5}", Verdict.WRONG),
    (r"\frac{1}{2}", r"\boxed{0.5}", Verdict.CORRECT),
    ("5", r"\boxed{3=5}", Verdict.WRONG),
    (r"\{1,2\}", r"\boxed{(1,2)}", Verdict.WRONG),
    ("0.1234567", r"\boxed{0.1234569}", Verdict.WRONG),
    (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", Verdict.CORRECT),
    ("x^2-1", r"\boxed{(x-1)(x+1)}", Verdict.CORRECT),
    ("1", r"\boxed{9^{9^{9^{9}}}}", Verdict.WRONG),
    ("5", r"\boxed{5\text{ cm}}", Verdict.CORRECT),
    ("5", r"\boxed{5\text{ million}}", Verdict.WRONG),
    ("101", r"\boxed{101_3}", Verdict.WRONG),
    ("0", r"\boxed{5 0}", Verdict.WRONG),
    ("5", r"\boxed{x\approx 5}", Verdict.WRONG),
    ("", r"\boxed{1}", Verdict.ERROR),
]
PAPER = [
    ("11", r"\boxed{11}", Verdict.CORRECT),
    ("11", r"\boxed{12}", Verdict.WRONG),
    ("11", "the answer is 11", Verdict.UNREADABLE),
    ("11", "the answer is $11$", Verdict.CORRECT),
    (r"\frac{1}{2}", r"\boxed{0.5}", Verdict.CORRECT),
    (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", Verdict.CORRECT),
    ("x^2-1", r"\boxed{(x-1)(x+1)}", Verdict.CORRECT),
    # What the paper's evaluation gets wrong, this judge has to get wrong, too.
    ("42", r"\boxed{1=2=42}", Verdict.CORRECT),
    (r"\{1,2\}", r"\boxed{(1,2)}", Verdict.CORRECT),
    ("0.1234567", r"\boxed{0.1234569}", Verdict.CORRECT),
    ("2", r"\boxed{1}. Wait, no: \boxed{2}", Verdict.WRONG),
    ("", r"\boxed{1}", Verdict.ERROR),
]
CHOICE = [
    ("C", "Answer: C", Verdict.CORRECT),
    ("(c)", r"so \boxed{\text{C}}", Verdict.CORRECT),
    ("C", "Answer: C\nNo.\nAnswer: D", Verdict.WRONG),
    ("C", "<think>Answer: C</think>\n**Answer: A**", Verdict.WRONG),
    ("C", "It could be C.", Verdict.UNREADABLE),
    ("C", "Answer: B or C", Verdict.UNREADABLE),
    ("12", "Answer: C", Verdict.ERROR),
]
GOLDEN: dict[Kind, list[tuple[str, str, Verdict]]] = {"strict": STRICT, "paper": PAPER, "choice": CHOICE}
"""(gold answer, trajectory text, verdict) by judge."""

WARM_UP = [
    ("1234", "1,234"),
    (r"\frac{3}{8}", "0.375"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("x^2+5x+6", "(x+2)(x+3)"),
    ("(2,3)", r"\left(2, \frac{6}{2}\right)"),
    (r"\{1,2,3\}", r"\{3,1,2\}"),
    (r"(-\infty,2)\cup(5,\infty)", r"(5,\infty)\cup(-\infty,2)"),
    ("y=2x+3", "y=3+2x"),
    (r"\frac{\pi}{4}", r"\pi/4"),
    (r"2\sin(x)\cos(x)", r"\sin(2x)"),
    (r"\log_2(8)", "3"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
    (r"50\%", "0.5"),
    ("3+4i", "4i+3"),
    (r"x\geq 2", r"[2,\infty)"),
]
"""(gold answer, answer) in the forms that answers have: parser and algebra build their tables when they first see one."""
