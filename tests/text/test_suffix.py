"""The answer's tokens are found by offsets, never by tokenising the answer alone."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raml_ray.text.suffix import AnswerSuffix, Branch, answer_suffix, branch, text_of


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    # "{" and "1" merge to one token, so "12" is ["1", "2"] alone but ["{1", "2"] behind a brace
    vocabulary = {"b": 0, "{": 1, "1": 2, "2": 3, "{1": 4, " ": 5}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[("{", "1")]))
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def test_tokens_behind_the_suffix_are_the_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    assert answer_suffix(tokenizer, "b{", "2 1") == AnswerSuffix([0, 1, 3, 5, 2], [False, False, True, True, True])


def test_a_token_across_the_joint_counts_as_the_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    assert answer_suffix(tokenizer, "b{", "12") == AnswerSuffix([0, 4, 3], [False, True, True])


def test_an_empty_answer_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="empty answer"):
        answer_suffix(tokenizer, "b{", "")


def test_suffixes_that_begin_alike_share_their_beginning() -> None:
    two = [AnswerSuffix([5, 1, 2], [False, True, True]), AnswerSuffix([5, 1, 3], [False, True, True])]
    grown = branch(two)
    assert grown == Branch([0, 5, 1], [-1, 0, 1], [[(1, 1), (2, 2)], [(1, 1), (2, 3)]])
    assert (grown.depth, grown.scored, grown.first) == ([0, 1, 2], [1, 2], 1)
    apart = branch([*two, AnswerSuffix([6, 1], [False, True]), AnswerSuffix([5], [True])])
    # nothing follows the last token of an answer, so it is no node
    assert (apart.token_ids, apart.parent) == ([0, 5, 1, 6], [-1, 0, 1, 0])
    assert apart.answers[2:] == [[(3, 1)], [(0, 5)]]
    assert apart.first == 0, "the prefix's last token is asked what follows it"


def test_a_suffix_is_named_or_written_out() -> None:
    assert text_of("boxed") == "\\boxed{"
    assert text_of("paper") == "\n\n**Final Answer**\n\\boxed{"
    assert text_of("\n#### ") == "\n#### "
