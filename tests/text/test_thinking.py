"""Where a response thinks, what stands behind a cut, and which sentences a budget keeps."""

import pytest

from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import AnswersConfig, ModesConfig
from raml_ray.text import paper_prompts, shortening, thinking
from raml_ray.workers.responses import END_OF_THINKING

CUT = AnswersConfig().cut_text
TOKENIZER = miniature.build()


def ids(text: str) -> list[int]:
    return thinking.encode(TOKENIZER, text)


def text(token_ids: list[int]) -> str:
    return str(TOKENIZER.decode(token_ids))


def spans(one: thinking.Thought) -> list[str]:
    return [text(one.token_ids[start:end]) for start, end in one.sentences]


def test_a_thought_stands_between_its_tags() -> None:
    one = thinking.thought(TOKENIZER, ids("<think>\n _ 7 9\nWait _ 16\n</think>\n\n**Final Answer**\n\\boxed{16}"), CUT)
    # <think> \n | _ 7 9 \n Wait _ 16 \n | </think>
    assert (one.start, one.end, one.closed, one.num_tokens) == (2, 10, 11, 8)
    assert spans(one) == [" _ 7 9\n", "Wait _ 16\n"]


def test_a_thought_that_is_not_ended_is_all_that_follows_its_opening() -> None:
    one = thinking.thought(TOKENIZER, ids("<think>\n _ 7 9\nWait"), CUT)
    assert (one.start, one.end, one.closed) == (2, 7, 7)


def test_without_tags_a_thought_ends_where_the_answer_is_headed() -> None:
    one = thinking.thought(TOKENIZER, ids("One. #### is 3.5! So\n#### 4"), "\n#### ")
    assert one.start == 0
    # a full stop inside a number ends no sentence, and what is put behind cuts no thought but on its own line
    assert spans(one) == ["One.", " #### is 3.5!", " So\n"]
    assert text(one.token_ids[: one.closed]) == "One. #### is 3.5! So\n####"
    whole = thinking.thought(TOKENIZER, ids("One. Two"), "\n#### ")
    assert (whole.end, whole.closed) == (len(whole.token_ids),) * 2


def test_an_end_of_several_tokens_ends_the_thought_with_its_first() -> None:
    bytes_alone = ids("a</")[1:] + ids("think>")
    one = thinking.thought(TOKENIZER, [*ids("ab"), *bytes_alone], CUT)
    assert (one.end, one.closed) == (2, 2 + len(bytes_alone))


def test_a_thought_of_nothing_is_empty() -> None:
    one = thinking.thought(TOKENIZER, [], CUT)
    assert (one.start, one.end, one.closed, one.sentences) == (0, 0, 0, [])
    assert text(thinking.begun(TOKENIZER, one, [], CUT)) == CUT


def test_what_is_kept_is_followed_by_the_text_that_asks_for_the_answer() -> None:
    one = thinking.thought(TOKENIZER, ids("<think>\n _ 7 9\n 16\n</think>"), CUT)
    inside = thinking.begun(TOKENIZER, one, one.token_ids[2:4], CUT)
    assert text(inside) == "<think>\n _ 7\n</think>\n\n**Final Answer**\n\\boxed{"
    line = thinking.begun(TOKENIZER, one, one.token_ids[2:6], CUT)
    assert text(line) == "<think>\n _ 7 9\n</think>\n\n**Final Answer**\n\\boxed{"
    # the empty thought of the policy's own template, in its tokens
    empty = thinking.begun(TOKENIZER, one, [], CUT)
    assert empty == ids("<think>\n\n</think>\n\n**Final Answer**\n\\boxed{")


def test_a_thought_that_the_prompt_opens_is_not_opened_twice() -> None:
    empty = paper_prompts.EMPTY_THOUGHT_PREFIX
    assert thinking.unthought("assistant\n<think>\n", empty) == "\n</think>\n\n"
    assert thinking.unthought("assistant\n", empty) == empty
    conclusion = paper_prompts.NO_THINKING_PREFIX
    assert thinking.unthought("assistant\n<think>\n", conclusion) == conclusion


def test_the_delimiters_are_the_papers() -> None:
    texts = {paper_prompts.EMPTY_THOUGHT_PREFIX, paper_prompts.NO_THINKING_PREFIX}
    assert set(ModesConfig().delimiters.values()) == texts
    assert thinking.CLOSE == END_OF_THINKING


@pytest.mark.parametrize(("budget", "kept"), [(0, []), (4, []), (5, [0]), (7, [0]), (8, [0, 1]), (99, [0, 1, 2])])
def test_truncation_keeps_whole_sentences_from_the_first(budget: int, kept: list[int]) -> None:
    assert shortening.truncated([5, 3, 4], budget) == kept


def test_sentences_are_deleted_in_order_until_the_rest_fits() -> None:
    lengths, order = [5, 3, 4], [1, 0, 2]
    assert shortening.without(lengths, order, 12) == [0, 1, 2]
    assert shortening.without(lengths, order, 9) == [0, 2]
    # The second would still fit beside the third: truncation passes over no sentence either.
    assert shortening.without(lengths, order, 8) == [2]
    assert shortening.without(lengths, order, 3) == []


def test_deleting_from_the_last_on_is_truncation() -> None:
    lengths = [5, 3, 4, 1, 7]
    for budget in range(sum(lengths) + 2):
        assert shortening.without(lengths, [4, 3, 2, 1, 0], budget) == shortening.truncated(lengths, budget)


def test_what_is_worth_least_is_deleted_first() -> None:
    assert shortening.by_worth([0.5, -1.0, 0.5, 2.0]) == [1, 2, 0, 3]
