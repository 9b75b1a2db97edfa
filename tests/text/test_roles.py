"""Words by their roles, with and without a space before them, in whatever tokens they are cut into."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from raml_ray.config import Config, ConfigError, override
from raml_ray.miniature import tokenizer as miniature
from raml_ray.text import roles
from raml_ray.text.roles import Word

CATEGORIES = {"reflection": ("wait", "hold on"), "calculation": (r"re:\d+ \+ \d+",), "formatting": ("re:\n",)}


def byte_level(*tokens: str) -> PreTrainedTokenizerBase:
    """A tokenizer of single bytes and these tokens (their spaces as the byte level writes them)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *tokens])}
    inner = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def found(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Word]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return roles.words(*roles.token_spans(tokenizer, ids), CATEGORIES)


def test_words_are_found_with_and_without_a_space_and_in_any_case() -> None:
    tokenizer = byte_level("Wait", "\u0120wait", "\u0120hold", "\u0120on")
    assert found(tokenizer, "Wait wait") == [Word("reflection", "Wait", 0, 1), Word("reflection", "wait", 1, 1)]
    # " hold" and " on" are a token each, in front of ","
    assert found(tokenizer, "a hold on,") == [Word("reflection", "hold on", 1, 2)]


def test_no_word_is_found_inside_another() -> None:
    assert found(byte_level("waiter", "await"), "waiter await") == []


def test_rules_may_be_regular_expressions_over_several_tokens() -> None:
    assert found(byte_level(), "a12 + 3\n") == [Word("calculation", "12 + 3", 1, 6), Word("formatting", "'\\n'", 7, 1)]


def test_of_overlapping_words_the_category_named_first_wins() -> None:
    text, spans = "hold on", [(0, 4), (4, 7)]
    assert roles.words(text, spans, {"a": ("hold on",), "b": ("on",)}) == [Word("a", "hold on", 0, 2)]
    assert roles.words(text, spans, {"b": ("on",), "a": ("hold on", "hold")}) == [
        Word("a", "hold", 0, 1),
        Word("b", "on", 1, 1),
    ]


def test_characters_of_several_tokens_belong_to_the_last() -> None:
    tokenizer = byte_level()
    text, spans = roles.token_spans(tokenizer, tokenizer("x\u2192y", add_special_tokens=False)["input_ids"])
    assert (text, spans) == ("x\u2192y", [(0, 1), (1, 1), (1, 1), (1, 2), (2, 3)])


def test_tokens_that_read_differently_alone_are_placed_by_their_prefixes() -> None:
    inner = Tokenizer(models.WordLevel({"wait": 0, "no": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    # decoding joins words by spaces, which no token alone has
    text, spans = roles.token_spans(tokenizer, [0, 1, 0])
    assert (text, spans) == ("wait no wait", [(0, 4), (4, 7), (7, 12)])
    assert roles.token_spans(tokenizer, []) == ("", [])


def test_the_miniatures_words_have_roles() -> None:
    tokenizer = miniature.build()
    assert found(tokenizer, "<think>\n _ 7\nWait 9\n</think>")[:3] == [
        Word("formatting", "'\\n'", 1, 1),
        Word("formatting", "'\\n'", 4, 1),
        Word("reflection", "Wait", 5, 1),
    ]


def test_the_notebooks_words_are_found_by_their_ids() -> None:
    assert roles.occurrences([7, 1, 2, 1, 2, 2], [1, 2]) == [1, 3]
    assert roles.occurrences([1], [1, 2]) == []


def test_the_notebook_looks_at_the_thinking_but_for_as_many_of_its_last_entries_as_the_suffix_has_tokens() -> None:
    # <think> a b c d e </think> f: behind 1 token (<think>) to behind 6 (e), of these six the last two not
    assert roles.paper_span([1, 5, 6, 7, 8, 9, 2, 4], [1], [2], 2) == range(1, 5)
    # opened in the prompt: from behind no token on; never closed: to the end
    assert roles.paper_span([5, 6, 7, 2, 4], [1], [2], 0) == range(4)
    assert roles.paper_span([5, 6, 7], [1], [2], 1) == range(3)
    # tags of several tokens count where all of them stand
    assert roles.paper_span([1, 5, 1, 3, 6, 2, 7, 2, 3], [1, 3], [2, 3], 1) == range(4, 7)
    # less thinking than suffix is none
    assert len(roles.paper_span([1, 5, 2], [1], [2], 6)) == 0


@pytest.mark.parametrize(
    ("rule", "why"),
    [("", "matches the empty"), ("re:", "matches the empty"), ("re:(", "no regular"), ("re:a*", "empty")],
)
def test_rules_that_mark_nothing_or_everything_are_refused(rule: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"roles\.categories\.mine: .*{why}"):
        override(Config(), {"roles.categories.mine": [rule]})


def test_a_category_of_ones_own_stands_beside_the_others() -> None:
    categories = override(Config(), {"roles.categories.mine": ["wow"]}).roles.categories
    assert list(categories)[-2:] == ["formatting", "mine"]
    assert roles.words("wow, wait", [(0, 3), (3, 9)], categories) == [
        Word("mine", "wow", 0, 1),
        Word("reflection", "wait", 1, 1),
    ]


def test_the_rules_that_come_along_find_what_they_are_for() -> None:
    text = "We have 3 + 4 = 7.\nWait, so \\boxed{7}"
    spans = [(index, index + 1) for index in range(len(text))]
    found = [(word.category, word.text) for word in roles.words(text, spans, Config().roles.categories)]
    assert found == [
        ("assertion", "We have"),
        ("calculation", "3"),
        ("calculation", "+"),
        ("calculation", "4"),
        ("calculation", "="),
        ("calculation", "7"),
        ("formatting", "'\\n'"),
        ("reflection", "Wait"),
        ("transition", "so"),
        ("answer", "\\boxed"),
        ("calculation", "7"),
    ]
