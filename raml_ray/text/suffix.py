"""The text that asks for a final answer, followed by the true one, as tokens."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class AnswerSuffix:
    """Tokens to append to a prefix, and which of them spell the answer.

    `AnswerSuffix([198, 79075, 90, 16, 16], [False, False, False, True, True])`
    """

    token_ids: list[int]
    is_answer: list[bool]


def answer_suffix(tokenizer: PreTrainedTokenizerBase, suffix: str, answer: str) -> AnswerSuffix:
    r"""Suffix and answer, tokenised together once: alone, the answer may be cut into other tokens than after `\boxed{`.

    A token that holds characters of both counts as the answer's.

    Raises: ValueError if the answer is empty, or the tokenizer knows no offsets.
    """
    if not answer:
        raise ValueError("empty answer: L-hat needs at least one answer token")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no offsets to find the answer by: use a fast tokenizer")
    encoded = tokenizer(suffix + answer, add_special_tokens=False, return_offsets_mapping=True)
    is_answer = [end > len(suffix) for _, end in encoded["offset_mapping"]]
    if not any(is_answer):
        raise ValueError(f"the tokenizer makes no token of the answer {answer!r}")
    return AnswerSuffix(list(encoded["input_ids"]), is_answer)
