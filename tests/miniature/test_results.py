"""Partial results of the embedded task are what its reductions write."""

from raml_ray.miniature import results, task
from raml_ray.settings import MiniatureConfig


def found(text: str) -> list[str]:
    return [text[start:end] for start, end in results.spans(text)]


def test_every_reduction_writes_one() -> None:
    assert found("<think>\n _ 7 9 4\n _ _ 16 4\n _ _ _ 20\n</think>\n\n**Final Answer**\n\\boxed{20}") == ["16", "20"]
    # two in one line
    assert found("<think>\n 1 2 3 4\n _ 3 _ 7\n</think>") == ["3", "7"]


def test_what_is_corrected_is_one_too() -> None:
    assert found("<think>\n _ 7 9 4\n _ _ 15 4\nWait _ _ 16 4\n _ _ _ 20") == ["15", "16", "20"]


def test_a_second_pass_begins_at_the_question() -> None:
    assert found("<think>\n _ 7 9 4\n _ _ 16 4\n _ _ _ 20\nAlternatively _ 7 _ 13\n _ _ _ 20") == [
        "16",
        "20",
        "13",
        "20",
    ]


def test_lines_of_another_task_are_none() -> None:
    assert found("<think>\n _ 7 9\n 7 9\n _ _ 16") == ["16"]
    assert found("Sum: 1 2") == []


def test_a_long_oracle_has_one_per_step() -> None:
    settings = MiniatureConfig(reflection_probability=0.0, verification_probability=0.0)
    for text in task.oracle("Sum: _ 7 7 0 3 9", settings, num=5, seed=0):
        # five operands take four reductions; a zero's sum is written over the zero, and 7 + 0 over itself is no change
        assert 3 <= len(found(text)) <= 4
        assert found(text)[-1] == "26"
