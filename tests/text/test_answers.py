import pytest

from raml_ray.records import Verdict
from raml_ray.text import answers, final_answer, notation


def verdict(gold, answer):
    return answers.judge_answer(gold, rf"so it is \boxed{{{answer}}}.").verdict


@pytest.mark.parametrize(
    ("text", "final"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{4}, no: \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{1}}", r"\boxed{1}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"Put your answer in \boxed{}. It is 42", None),
        (r"\boxed{\frac{1}{2}", None),
        ("The answer is 42", None),
        (r"<think>maybe \boxed{4}</think> \boxed{5}", "5"),
        (r"<think>maybe \boxed{4}</think> I do not know", None),
        (r"<think>maybe \boxed{4}", None),
        (r"thought \boxed{4}</think>\boxed{5}", "5"),
        ("", None),
    ],
)
def test_the_last_balanced_box_after_thinking_is_the_answer(text, final):
    assert final_answer.extract_final(text) == final


def test_a_pattern_reads_its_last_match():
    pattern = r"(?m)^A:\s*(.+)$"
    assert final_answer.extract_final("A: 3\nno\nA: 1,234", pattern=pattern) == "1,234"
    assert final_answer.extract_final(r"\boxed{3}", pattern=pattern) is None


@pytest.mark.parametrize(
    ("text", "pattern", "span"),
    [
        (r"a \boxed{ 5 } b", "", (10, 11)),
        (r"<think>\boxed{1}</think>\boxed{\frac{1}{2}}", "", (31, 42)),
        ("#### 7 \n", r"####(.*)", (5, 6)),
        ("####  \n", r"####(.*)", None),
        (r"\boxed{", "", None),
    ],
)
def test_where_the_answer_stands_is_told_in_characters_of_the_whole_text(text, pattern, span):
    assert final_answer.final_span(text, pattern=pattern) == span
    assert final_answer.extract_final(text, pattern=pattern) == (text[span[0] : span[1]] if span else None)


@pytest.mark.parametrize("pattern", ["A: (", "A: .+"])
def test_a_pattern_that_cannot_work_is_refused(pattern):
    with pytest.raises(ValueError, match=r"verify\.answer_pattern"):
        final_answer.extract_final("A: 3", pattern=pattern)


EQUAL = [
    ("5", "5"),
    ("5", " 5. "),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac{3}{2}", r"1\frac{1}{2}"),
    ("1000000", "1,000,000"),
    ("1000000", r"1\,000\,000"),
    ("10000", r"10{,}000"),
    ("1200000", r"1.2\times 10^6"),
    (r"\frac13", r"0.\overline{3}"),
    ("-3", "\u22123"),
    ("5", "\uff15"),
    ("5", "\u0665"),
    ("x^2", "x\u00b2"),
    (r"\sqrt{2}", "\u221a2"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    ("x^2-1", "(x-1)(x+1)"),
    (r"\{1,2\}", "2,1"),
    (r"\{1,2\}", r"\{2, 1, 1\}"),
    (r"\pm 2", "2,-2"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)"),
    ("(2,3)", r"x\in(2,3)"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    ("x+y=1", "2x+2y=2"),
    ("y=2x+1", "y = 1 + 2x"),
    ("5", "x=5"),
    ("x=5", "5"),
    ("50", r"50\%"),
    (r"5\text{ cm}", "5"),
    ("5", r"5 \text{ cm}"),
    ("5", "5 dollars"),
    ("5.00", r"\$5"),
    ("30", r"30^\circ"),
    ("101_3", "101_{3}"),
    ("5", r"5\text{ square meters}"),
    ("1000", r"1 000\text{ people}"),
    (r"\text{(E)}", r"\text{E}"),
    (r"\text{more than one}", r"\text{More than one}"),
    ("1 1/2", r"\frac{3}{2}\text{ cm}"),
    ("A", r"\textbf{(A)}"),
    (r"\text{North east}", "north east"),
    ("No", r"\text{no}"),
    ("3:30", "3:30"),
    (r"9^{9^{9^9}}", r"9^{9^{9^9}}"),
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_another_way_to_write_it_is_correct(gold, answer):
    assert verdict(gold, answer) is Verdict.CORRECT


REFUSED = [
    ("5", "3=5"),
    ("42", "1=2=42"),
    ("42", "x+y+17=42"),
    ("x^2=-1", "x=x+1"),
    ("x=1", "y=1"),
    ("x+y=1", "1"),
    (r"\{1,2\}", "(1,2)"),
    ("(2,1)", r"\{1,2\}"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    (r"\{1,2\}", r"\{1\}"),
    ("1234", "1,235"),
    ("0.1234567", "0.1234569"),
    ("0.0000003", "0.0000001"),
    ("10^{-20}", r"2\cdot10^{-20}"),
    (r"\sqrt{2}\cdot10^{-20}", r"2\sqrt{2}\cdot10^{-20}"),
    ("0", "0.0000001"),
    (r"\frac13", "0.333333"),
    ("1", "1(((("),
    (r"5\text{ cm}", r"5\text{ km}"),
    (r"1\text{ m}", r"100\text{ cm}"),
    ("0.5", r"50\%"),
    (r"\frac{\pi}{6}", r"30^\circ"),
    ("2", "2m"),
    ("1:2", "2:4"),
    ("A", "(B)"),
    (r"\text{the cat}", r"\text{the dog}"),
    ("1", r"\frac{1}{0}"),
    ("1", r"\int_0^1 1 dx"),
    ("1", r"\text{I don't know}"),
    ("101", "101_3"),
    ("101_3", "101"),
    ("101", r"101_{\text{three}}"),
    ("101_3", "101_2"),
    ("0", "1 0"),
    ("0", "5 0"),
    ("50", "5 0"),
    ("0", "x+1 0"),
    ("x=0", "x=5 0"),
    ("x+y=0", "x+y=1 0"),
    ("5", r"x\approx 5"),
    ("5", "x\u22485"),
    ("5", r"x\equiv 5"),
    ("5", r"5\ldots"),
    (r"5\text{ million}", "5"),
    ("5000000", r"5\text{ million}"),
    ("5", r"5\text{ million dollars}"),
    ("x=5", r"x=5\text{ thousand}"),
    ("5", "5 million"),
]
SPOKEN = "million thousand hundred billion dozen dozens half squared cubed minus plus times pi e i x negative factorial"
REFUSED += [("5", rf"5\text{{ {word}}}") for word in SPOKEN.split()]
REFUSED += [("5", rf"5\text{{ {words}}}") for words in ("or so", "at least", "percent of x", "or more", "if")]
REFUSED += [("5", rf"\text{{{word} }}5") for word in ("minus", "negative", "about", "not", "root")]


@pytest.mark.parametrize(("gold", "answer"), REFUSED)
def test_what_is_not_the_gold_answer_earns_nothing(gold, answer):
    assert verdict(gold, answer) in (Verdict.WRONG, Verdict.UNREADABLE)


@pytest.mark.parametrize("text", ["The answer is not 42", "I saw 42 but cannot answer", "41. Or 42. Or 43."])
def test_numbers_that_merely_stand_in_the_text_earn_nothing(text):
    judgement = answers.judge_answer("42", text)
    assert (judgement.verdict, judgement.reason) == (Verdict.UNREADABLE, "no_answer")


@pytest.mark.parametrize("gold", ["", r"\boxed{}", r"\frac{1}{", "10000000!", "9" * 3000])
def test_a_gold_answer_that_cannot_be_read_is_our_error(gold):
    assert answers.judge_extracted(gold, "3").reason == "bad_gold"
    assert answers.judge_extracted(gold, "3").verdict is Verdict.ERROR


BOMBS = [
    "9^{9^{9^{9}}}",
    "9^{9^{9}}",
    r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}",
    "2^{100000000000}",
    "1.0000001^{10^{12}}",
    "10000000!",
    "((10!)!)!",
    r"\binom{10000000}{5000000}",
    r"\sum_{n=1}^{1000000000} \frac{1}{n^2+1}",
    r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{1000000}",
    r"\det\begin{pmatrix}a&b\\c&d\end{pmatrix}",
    r"\sin(10^{10^{10}})",
    "(" * 1000 + "1" + ")" * 1000,
    r"\frac{1}{1+" * 30 + "1" + "}" * 30,
    "1" * 5000,
    r"2^{10!}",
    r"2^{5\cdot10^{7}}",
    r"\tbinom{10000000}{5000000}",
    r"{10000000\choose5000000}",
]


@pytest.mark.parametrize("answer", BOMBS)
def test_what_could_run_away_is_compared_as_a_string_only(answer):
    judgement = answers.judge_extracted("1", answer)
    assert (judgement.verdict, judgement.reason) == (Verdict.WRONG, "too_complex")
    assert answers.judge_extracted(answer, answer).reason == "exact"


@pytest.mark.parametrize(("opening", "closing"), ["()", (r"\{", r"\}")])
def test_lists_of_more_than_two_hundred_expressions_are_compared_as_strings_only(opening, closing):
    gold = opening + ",".join(f"{n}x" for n in range(201)) + closing
    answer = opening + ",".join(f"x*{n}" for n in range(201)) + closing
    judgement = answers.judge_extracted(gold, answer)
    assert (judgement.verdict, judgement.reason) == (Verdict.WRONG, "too_complex")
    assert answers.judge_extracted(gold, gold).verdict is Verdict.CORRECT


def test_a_set_of_five_hundred_numbers_in_another_order_is_the_same_set():
    numbers = list(map(str, range(500)))
    gold, answer = (rf"\{{{','.join(order)}\}}" for order in (numbers, numbers[::-1]))
    assert answers.judge_extracted(gold, answer).verdict is Verdict.CORRECT


def test_a_long_answer_costs_no_normalisation():
    judgement = answers.judge_extracted("1", "1" + " " * 200_000 + "1")
    assert (judgement.verdict, judgement.reason) == (Verdict.WRONG, "too_complex")
    assert judgement.cpu_seconds < 0.5
    assert len(judgement.extracted) == answers.EXTRACTED_CHARS


def test_three_thousand_boxes_that_never_close_are_read_in_one_pass():
    assert final_answer.extract_final(r"\[ \boxed{" * 3000) is None


@pytest.mark.parametrize(
    "answer", [r"x^{2}", r"e^{x^2}", r"2^{2^3}", r"2^{100}", r"10!", r"\sqrt{2+\sqrt{2+\sqrt{2}}}"]
)
def test_ordinary_powers_are_not_bombs(answer):
    assert not notation.too_complex(notation.clean(answer), 2000)


LITERALS = ["7", "-7", "0.5", "-.5", r"\frac{1}{2}", r"-\frac{14}{4}", "3/4", "100", "1e-3", r"1.5\times10^{3}", "2.50"]


@pytest.mark.parametrize("gold", LITERALS)
def test_the_fast_path_agrees_with_math_verify(gold):
    for answer in [*LITERALS, "-3.5", "0.75", "1500", r"\frac{1}{1000}"]:
        one, other = notation.clean(gold), notation.clean(answer)
        fast = notation.literal(one) == notation.literal(other)
        plain = [text.replace("1e-3", "0.001") for text in (one, other)]  # LaTeX has no e-notation
        assert answers.compare_mathematics(*plain).is_equal == fast


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("1,234", "1234"),
        (r"1\frac{1}{2}", "3/2"),
        ("1 1/2", "3/2"),
        ("12,34", None),
        (r"\frac{1}{0}", None),
        ("x", None),
    ],
)
def test_literals_are_exact_numbers_or_none(text, fraction):
    value = notation.literal(notation.clean(text))
    assert (None if value is None else str(value)) == fraction


def test_code_in_an_answer_is_not_run(tmp_path):
    target = tmp_path / "made"
    for answer in (rf"\boxed{{__import__('os').mkdir('{target}')}}", rf"\boxed{{\text{{open('{target}','w')}}}}"):
        assert answers.judge_answer("1", answer).verdict is not Verdict.CORRECT
    assert not target.exists()
