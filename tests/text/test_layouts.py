import pytest

from raml_ray.text import layouts

PAPER = (
    "<think>\nthree and eight\n</think>\n<conclusion>\n3 + 8 is \\boxed{11}\n</conclusion>\nThe answer is \\boxed{11}"
)


@pytest.mark.parametrize("response", [PAPER, PAPER + ".\n", "\n" + PAPER, PAPER.replace("three and eight", "")])
def test_the_papers_layout(response):
    assert layouts.is_well_formed(response, "paper")


@pytest.mark.parametrize(
    "response",
    [
        "",
        "The answer is \\boxed{11}",
        PAPER.removeprefix("<think>"),
        PAPER.replace("</think>", ""),
        PAPER.replace("<think>", "<think><think>"),
        PAPER.replace("</think>", "</think> so"),
        PAPER.replace("<conclusion>", ""),
        PAPER.replace("is \\boxed{11}\n</c", "is 11\n</c"),
        PAPER.replace("\nThe answer is \\boxed{11}", ""),
        PAPER + "\nThat is all.",
        PAPER + " or so",
        PAPER.replace("</conclusion>", "</think>"),
    ],
)
def test_what_is_not_in_the_papers_layout(response):
    assert not layouts.is_well_formed(response, "paper")


def test_a_thought_and_a_box():
    assert layouts.is_well_formed("<think>\n 3 8\n</think>\n\n**Final Answer**\n\\boxed{11}", "think")
    assert not layouts.is_well_formed("<think>\n 3 8\n</think>\n\n11", "think")
    assert not layouts.is_well_formed("<think>\n\\boxed{11}", "think")


def test_a_block_that_the_prompt_opens_counts_as_the_responses():
    rest = PAPER.removeprefix("<think>")
    assert layouts.is_well_formed(rest, "paper", prompt="<|im_start|>assistant\n<think>\n")
    assert not layouts.is_well_formed(PAPER, "paper", prompt="<|im_start|>assistant\n<think>\n")
