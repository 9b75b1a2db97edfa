"""From a question to prompt tokens: templates, thinking on and off, forced beginnings, the paper's prompts."""

import pytest
from transformers import PreTrainedTokenizerFast

from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import PromptConfig
from raml_ray.text import paper_prompts
from raml_ray.text.final_answer import extract_final
from raml_ray.text.prompts import prompt_text, prompt_token_ids, response_text

TURNS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
)
SWITCHED = (
    f"{TURNS}{{%- if enable_thinking is defined and enable_thinking is false %}}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
"""In the manner of Qwen3: thinking is the response's own, an empty thought is the template's."""
OPENED = f"{TURNS}{{{{- '<think>\\n' }}}}{{%- endif %}}"
"""In the manner of QwQ: the prompt ends in an open thought, whatever is asked for."""


def tokenizer(template: str | None = SWITCHED) -> PreTrainedTokenizerFast:
    built = miniature.build()
    built.chat_template = template
    return built


def test_with_thinking_the_prompt_ends_where_the_response_begins() -> None:
    text = prompt_text(tokenizer(), "1 + 1?", PromptConfig(system="Be short."))
    assert text == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_thinking_the_prompt_ends_with_an_empty_thought() -> None:
    with_thinking = prompt_text(tokenizer(), "1 + 1?", PromptConfig())
    assert prompt_text(tokenizer(), "1 + 1?", PromptConfig(thinking=False)) == (
        with_thinking + "<think>\n\n</think>\n\n"
    )


def test_the_template_of_a_policy_and_the_forced_empty_thought_make_the_same_prompt() -> None:
    forced = PromptConfig(response_prefix=paper_prompts.EMPTY_THOUGHT_PREFIX)
    built = miniature.build()
    assert prompt_token_ids(built, "Sum: _ 3 8", forced) == prompt_token_ids(
        built, "Sum: _ 3 8", PromptConfig(thinking=False)
    )


def test_a_template_that_does_not_know_thinking_is_refused_for_no_thinking_alone() -> None:
    assert prompt_text(tokenizer(OPENED), "1 + 1?", PromptConfig()).endswith("<|im_start|>assistant\n<think>\n")
    with pytest.raises(ValueError, match=r"prompt\.thinking=false.*with and without.*prompt\.response_prefix"):
        prompt_text(tokenizer(OPENED), "1 + 1?", PromptConfig(thinking=False))


def test_a_plain_prompt_has_nobody_to_say_no_thinking_to() -> None:
    with pytest.raises(ValueError, match=r"prompt\.thinking=false.*template=plain"):
        prompt_text(tokenizer(), "1 + 1?", PromptConfig(template="plain", thinking=False))


def test_a_tokenizer_without_a_template_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"no chat template: set prompt\.template=plain"):
        prompt_text(tokenizer(None), "1 + 1?", PromptConfig())


def test_a_response_begins_with_the_forced_text_and_its_tokens_do_not() -> None:
    built, prefix = tokenizer(OPENED), paper_prompts.NO_THINKING_PREFIX
    prompt = PromptConfig(response_prefix=prefix)
    asked = built.decode(prompt_token_ids(built, "1 + 1?", prompt))
    assert asked.endswith(f"<|im_start|>assistant\n<think>\n{prefix}")
    sampled = built(" \\boxed{2}<|im_end|>", add_special_tokens=False)["input_ids"]
    text = response_text(built, sampled, prompt, [sampled[-1]])
    assert text == f"{prefix} \\boxed{{2}}"
    assert extract_final(text) == "2"


def test_any_token_that_ends_a_response_is_left_out_of_its_text_once_and_only_at_its_end() -> None:
    built, prompt = tokenizer(OPENED), PromptConfig()
    end, start = built("<|im_end|><|im_start|>", add_special_tokens=False)["input_ids"]
    two = built("2", add_special_tokens=False)["input_ids"]
    assert response_text(built, [*two, end], prompt, (end, start)) == "2"
    assert response_text(built, [start, *two, start], prompt, (end, start)) == "<|im_start|>2"
    assert response_text(built, [*two, end], prompt, (start,)) == "2<|im_end|>"


def test_the_questions_braces_are_left_alone() -> None:
    prompt = PromptConfig(instruction=paper_prompts.SOLVE_INSTRUCTION)
    text = prompt_text(tokenizer(), r"What is \frac{1}{2} of {problem}?", prompt)
    assert text.endswith("\n\nWhat is \\frac{1}{2} of {problem}?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("name", [name for name in vars(paper_prompts) if name.endswith("INSTRUCTION")])
def test_every_instruction_of_the_paper_holds_what_it_is_about_once_and_set_apart(name: str) -> None:
    about = "{reasoning}" if name == "SUMMARY_INSTRUCTION" else "{problem}"
    before, after = getattr(paper_prompts, name).split(about)
    assert (before.endswith("\n\n") and not after) or (not before and after.startswith("\n\n"))


@pytest.mark.parametrize(
    ("system", "parts"),
    [
        (paper_prompts.THINK_ANSWER_SYSTEM, ["<think>\n", "</think>\n<answer>\n", "</answer>"]),
        (
            paper_prompts.GRPO_SYSTEM,
            ["<think>\n", "</think>\n<conclusion>\n", "\\boxed{", "</conclusion>\nThe answer is \\boxed{"],
        ),
        (paper_prompts.EVALUATION_SYSTEM, ["<conclusion>\n", "\\boxed{", "</conclusion>\nThe answer is \\boxed{"]),
    ],
)
def test_a_system_prompt_shows_its_layout_in_order(system: str, parts: list[str]) -> None:
    layout = system[system.rindex(":\n") :]
    places = [layout.index(part) for part in parts]
    assert places == sorted(places)


def test_evaluation_asks_as_grpo_does_but_for_the_think_tags() -> None:
    assert "<think>" in paper_prompts.GRPO_SYSTEM
    assert "think" not in paper_prompts.EVALUATION_SYSTEM
    end = paper_prompts.GRPO_SYSTEM.rindex("<conclusion>")
    assert paper_prompts.EVALUATION_SYSTEM.endswith(paper_prompts.GRPO_SYSTEM[end:])


def test_the_texts_that_policies_know_stand_as_they_are() -> None:
    assert paper_prompts.NO_THINKING_PREFIX == "Therefore, after all this, I believe the answer is"
    assert paper_prompts.FORCED_ANSWER == "\n\n**Final Answer**\n\\boxed{"
