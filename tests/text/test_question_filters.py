"""Filters of questions: a table of cases for each, first of those that have to stay."""

import time

import pytest

from raml_ray.records import Question
from raml_ray.text import question_filters
from raml_ray.text.question_filters import incomplete, markup, needs_image


@pytest.mark.parametrize(
    "problem",
    [
        "What is $3+4$?",
        "What is 3+4=",
        "The number of primes below 10 is",
        "She pays $5 for a book and $.50 for a pen. How much is that?",
        "It costs 15$. How much are three?",
        "A job pays $10/hour. What are 3 hours worth?",
        r"She has \$5 and buys $x$ pens. Find $x$.",
        "She has $5 and $x$ pens.",
        r"Let $A=\{1,2\}$. How many subsets has $A$?",
        r"Solve $\left\{\begin{array}{l}x=1\\[2pt] y=2\end{array}\right.$",
        "Where is the point above the x-axis?",
        "The first two parts were long, the last part of the journey short. How long was it?",
        "Expand $1+2+\\dots$ and the rest ...",
        "Q: What is 2+2? Answer:",
    ],
)
def test_a_whole_question_stays(problem: str) -> None:
    assert incomplete(problem) == ""


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        ("", "empty"),
        (" $ . ", "empty"),
        ("Solve the following:", "cut_off"),
        ("If $x>2$ and", "cut_off"),
        ("A train leaves at noon,", "cut_off"),
        ("Find the", "cut_off"),
        ("What is $x+$", "cut_off"),
        ("Let $f(x) = \\", "cut_off"),
        ("Let $x be a number. Find it.", "unbalanced_dollar"),
        (r"What is \sqrt{2", "unbalanced_brace"),
        (r"Compute \begin{matrix} 1 & 2", "unbalanced_environment"),
        (r"Let \[x = 1. Find x.", "unbalanced_display"),
        (r"Let \(x = 1. Find x.", "unbalanced_inline"),
        ("Find the area of the triangle, as shown above.", "refers_back"),
        ("Using the result of the previous problem, find $x$.", "refers_back"),
        ("Do the exercise above once more.", "refers_back"),
    ],
)
def test_a_part_of_a_question_is_turned_down_with_its_cause(problem: str, cause: str) -> None:
    assert incomplete(problem) == cause


@pytest.mark.parametrize(
    "problem",
    [
        "Find the image of $3$ under $f$.",
        "Where does the graph of $y=x^2$ cross the axis?",
        "A figure is made of two squares.",
        "He sells all 5 action figures. Each figure is worth 15 dollars.",
        "How many photos did he take in the photo shoot?",
        "14 of the drawings were coloured.",
        "What is $[a]$ if $(b)$ and !?",
    ],
)
def test_a_question_without_a_picture_stays(problem: str) -> None:
    assert needs_image(problem) == ""


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        ("What is this? ![](a.png)", "markdown"),
        ("What is this? <img src='a.png'>", "html"),
        (r"What is this? \includegraphics[width=3cm]{a}", "latex"),
        ("Find $x$. [asy] draw((0,0)--(1,1)); [/asy]", "latex"),
        (r"Find $x$. \begin{tikzpicture}\end{tikzpicture}", "latex"),
        ("What is the area of the figure?", "spoken_of"),
        ("In the diagram, find $x$.", "spoken_of"),
        ("Find $x$ in the following figure.", "spoken_of"),
        ("As Figure 3 shows, $x=1$. Find $y$.", "spoken_of"),
        ("See the picture below. What is it?", "spoken_of"),
        ("The triangle shown at right has which area?", "spoken_of"),
    ],
)
def test_a_question_with_a_picture_is_turned_down_with_its_cause(problem: str, cause: str) -> None:
    assert needs_image(problem) == cause


@pytest.mark.parametrize(
    "problem",
    ["If $a<b and c>d$, find a.", "Is 1 < 2 > 0?", "Let $x<y$, $p<q>r$.", "AT&T has 3 offices; how many & where?"],
)
def test_an_inequality_is_no_markup(problem: str) -> None:
    assert markup(problem) == ""


@pytest.mark.parametrize(
    ("problem", "cause"),
    [
        ("See https://example.org/a for it.", "url"),
        ("See www.example.org for it.", "url"),
        ("What is<br/>this?", "html"),
        ("What <b>is</b> this?", "html"),
        ("What is <a href='x'>this?", "html"),
        ('<div class="q">What?', "html"),
        ("Is 1&lt;2?", "entity"),
        ("Is it 5&#176;?", "entity"),
    ],
)
def test_markup_is_turned_down_with_its_cause(problem: str, cause: str) -> None:
    assert markup(problem) == cause


def test_only_the_filters_that_are_asked_for_hold_and_the_first_of_them_speaks() -> None:
    question = Question("q", "See the figure at www.a.b and", "-1", "set")
    assert question_filters.turned_down(question, ()) == ""
    assert question_filters.turned_down(question, ("verifiable",)) == ""
    assert question_filters.turned_down(question, ("no_image", "complete")) == "no_image:spoken_of"
    assert question_filters.turned_down(question, ("complete", "no_image")) == "complete:cut_off"
    assert question_filters.turned_down(question, ("digits",)) == "digits:not_digits"
    assert question_filters.turned_down(Question("q", "What?", "17", "set"), ("digits", "no_image")) == ""


@pytest.mark.parametrize("part", ["1", "<div ", "<div a", " a=b", "![", "{", "$1", "\\begin "])
def test_a_long_text_takes_time_in_proportion(part: str) -> None:
    question = Question("q", "<div $" + part * (50_000 // len(part)) + "x", "1", "set")
    began = time.process_time()
    question_filters.turned_down(question, ("no_image", "no_markup", "complete"))
    assert time.process_time() - began < 1
