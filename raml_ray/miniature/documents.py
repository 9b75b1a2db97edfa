"""What the miniature's base policy reads: single reductions, and whole chats with the flaws that training may mend."""

import random
from collections.abc import Iterator
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from raml_ray.miniature import task
from raml_ray.settings import BaseConfig, MiniatureConfig

FACT_FRACTION = 0.6
"""Of all documents; the rest are chats."""
MOD_FACT_FRACTION = 0.2
MOD_CHAT_FRACTION = 0.15
UNTHOUGHT_FRACTION = 0.1
"""Of the chats: an answer without thinking."""
SHORT_FRACTION = 0.25
"""Of the trains of thought: two reductions per line, which is more than the policy can do reliably."""


class Piece(NamedTuple):
    """Consecutive text of a document, and whether the policy learns to write it."""

    text: str
    learned: bool


class Document(NamedTuple):
    """Token ids of one document, and for each whether its prediction counts in the loss."""

    token_ids: list[int]
    learned: list[bool]


def batches(
    miniature: MiniatureConfig, base: BaseConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> Iterator[list[Document]]:
    """Batches of `base.batch_size` documents without end, FACT_FRACTION of each single reductions."""
    rng = random.Random(seed)
    num_facts = round(FACT_FRACTION * base.batch_size)
    while True:
        facts = [_fact(miniature, rng) for _ in range(num_facts)]
        chats = [_chat(miniature, base, tokenizer, rng) for _ in range(base.batch_size - num_facts)]
        yield tokenized(facts + chats, tokenizer)


def tokenized(documents: list[list[Piece]], tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    """Each document's pieces tokenized apart and joined, so that no token reaches over a joint."""
    texts = [piece.text for document in documents for piece in document]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    made = []
    for document in documents:
        token_ids: list[int] = []
        learned: list[bool] = []
        for piece in document:
            piece_ids = next(ids)
            token_ids += piece_ids
            learned += [piece.learned] * len(piece_ids)
        made.append(Document(token_ids, learned))
    return made


def _start(miniature: MiniatureConfig, rng: random.Random) -> task.State:
    """A question's state of two operands to a full row, never one that is kept for evaluation."""
    num_operands = rng.randint(2, miniature.num_slots)
    while True:
        operands = tuple(rng.randrange(10) for _ in range(num_operands))
        if not task.held_out(operands):
            return task.placed(operands, miniature.num_slots)


def _fact(miniature: MiniatureConfig, rng: random.Random) -> list[Piece]:
    """A state from somewhere inside a chain, and one after it."""
    domain = "sum_mod_10" if rng.random() < MOD_FACT_FRACTION else "sum"
    state = _start(miniature, rng)
    num_live = sum(number is not None for number in state)
    for _ in range(rng.randrange(num_live - 1)):
        state, _ = task.reduced(state, domain, rng)
    after, _ = task.reduced(state, domain, rng)
    return [Piece(task.problem(state, domain), False), Piece(f"\n{task.row(after)}<|im_end|>", True)]


def _chat(
    miniature: MiniatureConfig, base: BaseConfig, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> list[Piece]:
    domain = "sum_mod_10" if rng.random() < MOD_CHAT_FRACTION else "sum"
    state = _start(miniature, rng)
    turns = [{"role": "user", "content": task.problem(state, domain)}]
    prompt = Piece(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False), False)
    kind = rng.random()
    if kind < UNTHOUGHT_FRACTION:
        answer = task.final_answer(task.value(state, domain))
        return [prompt, Piece(f"<think>\n\n</think>{answer}<|im_end|>", True)]
    style = task.Style(
        reductions_per_line=2 if rng.random() < SHORT_FRACTION else 1,
        slip_probability=base.slip_probability,
        noticed_fraction=base.noticed_fraction,
        verification_probability=miniature.verification_probability,
    )
    lines = task.thinking(state, domain, style, rng)
    if kind < UNTHOUGHT_FRACTION + base.early_answer_fraction:
        return [prompt, *_early_answer(lines, domain, rng)]
    return [prompt, Piece(task.response(lines, domain) + "<|im_end|>", True)]


def _early_answer(lines: list[task.Line], domain: str, rng: random.Random) -> list[Piece]:
    """Thinking that is cut anywhere, and what the last whole line comes to.

    To stop there is not learned: only what to answer if one has to.
    """
    last = rng.randrange(len(lines))
    slots = str(lines[last]).split(" ")
    num_kept = rng.randint(1, len(slots))
    thought = "\n".join(["<think>", *map(str, lines[:last]), " ".join(slots[:num_kept])])
    whole = last if num_kept == len(slots) else max(last - 1, 0)
    answer = task.value(lines[whole].state, domain)
    beginning, end = task.final_answer(answer).split("{")
    return [Piece(thought, True), Piece(beginning + "{", False), Piece(end + "<|im_end|>", True)]
