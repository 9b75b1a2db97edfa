"""The text that asks for a final answer, followed by an answer, as tokens; and several of them as one tree."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

NAMED = {"paper": "\n\n**Final Answer**\n\\boxed{", "boxed": "\\boxed{"}
"""Suffixes that a setting can name. `paper` is the released notebook's (RaML, arXiv:2505.19815, C.1)."""


@dataclass(frozen=True, slots=True)
class AnswerSuffix:
    """Tokens to append to a prefix, and which of them spell the answer.

    `AnswerSuffix([198, 79075, 90, 16, 16], [False, False, False, True, True])`
    """

    token_ids: list[int]
    is_answer: list[bool]

    @property
    def num_answer_tokens(self) -> int:
        return sum(self.is_answer)


@dataclass(frozen=True, slots=True)
class Branch:
    """Suffixes as one tree: what they begin with in common is there once. Only tokens that another one follows are nodes.

    Of "box 1 2" and "box 1 3" with the answers behind "box", 5 being "box": `Branch([0, 5, 1], [-1, 0, 1],
    [[(1, 1), (2, 2)], [(1, 1), (2, 3)]])`.
    """

    token_ids: list[int]
    """Of the nodes, parents first. Node 0 is the prefix's last token, whatever it is; its entry means nothing."""
    parent: list[int]
    """Node -> its parent; -1 of node 0."""
    answers: list[list[tuple[int, int]]]
    """Suffix -> its answer's tokens, each as the node that it follows and its id."""

    @property
    def depth(self) -> list[int]:
        """Node -> tokens between the prefix's last one and it, the latter counted."""
        depth = [0] * len(self.parent)
        for node, parent in enumerate(self.parent[1:], start=1):
            depth[node] = depth[parent] + 1
        return depth

    @property
    def first(self) -> int:
        """The first node that is computed behind a prefix that has been read: 1, but 0 where an answer's token follows the
        prefix's last one at once."""
        return 0 if self.scored[0] == 0 else 1

    @property
    def scored(self) -> list[int]:
        """The nodes that an answer token follows, ascending."""
        return sorted({node for answer in self.answers for node, _ in answer})


def text_of(suffix: str) -> str:
    """The text of a named suffix, any other as it is."""
    return NAMED.get(suffix, suffix)


def answer_suffix(tokenizer: PreTrainedTokenizerBase, suffix: str, answer: str) -> AnswerSuffix:
    r"""Suffix and answer, tokenised together once: alone, the answer may be cut into other tokens than after `\boxed{`.

    A token that holds characters of both counts as the answer's.

    Raises: ValueError if the answer is empty, or the tokenizer knows no offsets.
    """
    if not answer:
        raise ValueError("empty answer: L-hat needs at least one answer token")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no offsets to find the answer by: use a fast tokenizer")
    text = text_of(suffix)
    encoded = tokenizer(text + answer, add_special_tokens=False, return_offsets_mapping=True)
    is_answer = [end > len(text) for _, end in encoded["offset_mapping"]]
    if not any(is_answer):
        raise ValueError(f"the tokenizer makes no token of the answer {answer!r}")
    return AnswerSuffix(list(encoded["input_ids"]), is_answer)


def branch(suffixes: Sequence[AnswerSuffix]) -> Branch:
    """The suffixes as one tree.

    Raises: ValueError if there is none, or one has no answer token or not a mark per token.
    """
    if not suffixes:
        raise ValueError("a branch needs at least one suffix")
    token_ids, parent, answers = [0], [-1], []
    children: dict[tuple[int, int], int] = {}
    for suffix in suffixes:
        if not any(suffix.is_answer) or len(suffix.is_answer) != len(suffix.token_ids):
            raise ValueError(f"a suffix needs a mark per token and at least one answer token, got {suffix}")
        node, answer = 0, []
        last = max(place for place, is_answer in enumerate(suffix.is_answer) if is_answer)
        for place, (token, is_answer) in enumerate(zip(suffix.token_ids, suffix.is_answer, strict=True)):
            if is_answer:
                answer.append((node, token))
            if place >= last:
                break
            if (node, token) not in children:
                children[node, token] = len(token_ids)
                token_ids.append(token)
                parent.append(node)
            node = children[node, token]
        answers.append(answer)
    return Branch(token_ids, parent, answers)
