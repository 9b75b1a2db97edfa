"""Training examples as token ids, and how they are grouped, then packed or padded, into micro-batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from raml_ray.settings import PromptConfig
from raml_ray.text import prompts

EXAMPLE = pa.schema(
    [
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("response_token_ids", pa.list_(pa.int32())),
        ("answer_start", pa.int32()),
        ("answer_end", pa.int32()),
    ]
)
"""An Example; of its response tokens those from `answer_start` up to `answer_end` (0 and 0: unknown) are the answer's."""
ANSWER = "answer"
"""The field that is 1 on the tokens of the final answer and 0 on the other response tokens."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the response that is trained on: `Example([5, 6], [7, 8, 2], {"advantage": [0.5, 0.5, 0.5]})`."""

    prompt_token_ids: Sequence[int]
    response_token_ids: Sequence[int]
    """End-of-sequence included."""
    fields: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Further numbers of each response token (old log-probabilities, advantages, weights)."""

    def __len__(self) -> int:
        """Prompt and response together, tokens."""
        return len(self.prompt_token_ids) + len(self.response_token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded on the right, a row each, or packed one behind the other into one row, (B, T). Column t of the mask
    and of every field speaks of token t, as column t of `policy.token_logprobs` does."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor | None
    """1 on tokens, 0 on padding; None if packed: an example's tokens see their own example alone."""
    position_ids_BT: Tensor
    """From 0 on in every example."""
    response_mask_BT: Tensor
    """1.0 on response tokens, float32."""
    fields: Mapping[str, Tensor]
    """Each (B, T) float32, 0 outside the response."""
    lengths: tuple[int, ...]
    """Tokens of each example, in the order of the rows or within the row."""
    constant_BT: Tensor | None = None
    """True on tokens whose keys and values the others attend to as constants: no gradient goes through them."""

    @property
    def sequence_BT(self) -> Tensor:
        """The number of the example that each token (padding, too) belongs to, from 0 on, int64."""
        return ((self.position_ids_BT == 0).flatten().cumsum(0) - 1).view_as(self.position_ids_BT)

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.input_ids_BT.to(device),
            None if self.attention_mask_BT is None else self.attention_mask_BT.to(device),
            self.position_ids_BT.to(device),
            self.response_mask_BT.to(device),
            {name: values_BT.to(device) for name, values_BT in self.fields.items()},
            self.lengths,
            None if self.constant_BT is None else self.constant_BT.to(device),
        )

    def split(self, values_BT: Tensor) -> list[Tensor]:
        """Of values per column those of each example, (T,) each."""
        if self.attention_mask_BT is None:
            return list(values_BT[0].split(self.lengths))
        return [values_T[:length] for values_T, length in zip(values_BT, self.lengths, strict=True)]

    def weightless(self) -> "Batch":
        """The same tokens with an empty response mask: a forward and backward pass that adds nothing."""
        return replace(self, response_mask_BT=torch.zeros_like(self.response_mask_BT))

    def answers_alone(self, *, detached: bool) -> "Batch":
        """The same with the answers' tokens alone in the response mask; `detached` makes the trajectories constants.

        The token before an answer token is where that is predicted: it belongs to the query and not to the trajectory,
        as everywhere in this project (`probe`), so keys and values of the token that the answer follows do carry
        gradient.
        """
        answer_BT = self.fields.get(ANSWER, torch.zeros_like(self.response_mask_BT))
        predicts_BT = torch.nn.functional.pad(answer_BT[:, 1:], (0, 1))
        constant_BT = (self.response_mask_BT != 0) & (predicts_BT == 0) if detached else None
        return replace(self, response_mask_BT=answer_BT, constant_BT=constant_BT)


class Examples(Sequence[Example]):
    """The rows of an EXAMPLE table, kept as Arrow columns and turned into an Example when asked for."""

    def __init__(self, rows: pa.Table) -> None:
        columns = rows.select(EXAMPLE.names).combine_chunks()
        self._prompts = _flat(columns["prompt_token_ids"])
        self._responses = _flat(columns["response_token_ids"])
        self._spans = [columns[name].to_numpy() for name in ("answer_start", "answer_end")]

    def __len__(self) -> int:
        return len(self._prompts[1]) - 1

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        prompt, response = (
            ids[offsets[index] : offsets[index + 1]].tolist() for ids, offsets in (self._prompts, self._responses)
        )
        start, end = (int(places[index]) for places in self._spans)
        return Example(prompt, response, {ANSWER: _marks(len(response), start, end)} if end else {})


def _marks(count: int, start: int, end: int) -> list[float]:
    return [float(start <= place < end) for place in range(count)]


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    rows = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    return rows.values.to_numpy(zero_copy_only=False), rows.offsets.to_numpy()


def table(examples: Iterable[Example]) -> pa.Table:
    """Examples as an EXAMPLE table (of their fields the answer alone is kept)."""
    rows = list(examples)
    marks = [list(example.fields.get(ANSWER, ())) for example in rows]
    starts = [row.index(1.0) if 1.0 in row else 0 for row in marks]
    return pa.table(
        {
            "prompt_token_ids": [list(example.prompt_token_ids) for example in rows],
            "response_token_ids": [list(example.response_token_ids) for example in rows],
            "answer_start": starts,
            "answer_end": [start + row.count(1.0) for start, row in zip(starts, marks, strict=True)],
        },
        schema=EXAMPLE,
    )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    problem: str,
    response: str,
    prompt: PromptConfig,
    *,
    answer: tuple[int, int] | None = None,
) -> Example:
    """The Example of a question and a trajectory's text (the forced `prompt.response_prefix` included) for the policy
    that owns the tokenizer; its end-of-sequence token ends the response, once.

    Given the characters of the response that are its answer, the field ANSWER marks their tokens; one that holds
    characters of both counts as the answer's. An answer within the forced prefix has none.

    Raises: ValueError if the tokenizer has no such token, or knows no offsets to find an answer by, or the text lacks
    the prefix that the prompt forces.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no eos_token: set it in tokenizer_config.json"
        )
    if not response.startswith(prompt.response_prefix):
        raise ValueError(
            f"prompt.response_prefix={prompt.response_prefix!r}, but the trajectory begins {response[:40]!r}"
        )
    if answer and not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no offsets to find answers by: use a fast tokenizer")
    rest = response[len(prompt.response_prefix) :]
    encoded = tokenizer(rest, add_special_tokens=False, return_offsets_mapping=answer is not None)
    response_ids = [int(i) for i in encoded["input_ids"]]
    fields = {}
    if answer:
        first, last = (place - len(prompt.response_prefix) for place in answer)
        fields[ANSWER] = [float(start < last and end > first) for start, end in encoded["offset_mapping"]]
    if response_ids[-1:] != [tokenizer.eos_token_id]:
        response_ids.append(int(tokenizer.eos_token_id))
        fields = {name: [*marks, 0.0] for name, marks in fields.items()}
    return Example(prompts.prompt_token_ids(tokenizer, problem, prompt), response_ids, fields)


def micro_batches(examples: Sequence[Example], max_tokens: int, *, packing: bool = False) -> list[list[Example]]:
    """The examples, longest first, in groups of at most `max_tokens` each: packed their sum, padded rows x longest.

    A longer example is a group of its own. The order depends on the lengths and, among equal ones, on the given order.
    """
    longest_first = sorted(examples, key=len, reverse=True)
    return _packed(longest_first, max_tokens) if packing else _padded(longest_first, max_tokens)


def _padded(longest_first: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    groups: list[list[Example]] = []
    for example in longest_first:
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0]) <= max_tokens:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def _packed(longest_first: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Each example into the first group with room: at most 11/9 of the fewest groups that hold them, and one more."""
    groups: list[list[Example]] = []
    free: list[int] = []
    for example in longest_first:
        place = next((place for place, room in enumerate(free) if room >= len(example)), len(groups))
        if place == len(groups):
            groups.append([])
            free.append(max_tokens)
        groups[place].append(example)
        free[place] -= len(example)
    return groups


def collate(examples: Sequence[Example], *, packing: bool = False) -> Batch:
    """The examples as one Batch: packed into one row, or padded on the right to the longest (by token 0, which no mask
    lets in).

    Raises: ValueError if there are none, one lacks a prompt or response, or a field's length is not its response's.
    """
    if not examples:
        raise ValueError("a batch cannot be made of no examples")
    lengths = tuple(len(example) for example in examples)
    shape = (1, sum(lengths)) if packing else (len(examples), max(lengths))
    input_ids_BT = torch.zeros(shape, dtype=torch.long)
    attention_mask_BT = torch.zeros(shape, dtype=torch.long)
    position_ids_BT = torch.arange(shape[1]).repeat(shape[0], 1)
    response_mask_BT = torch.zeros(shape)
    fields = {name: torch.zeros(shape) for name in examples[0].fields}
    row, start = 0, 0
    for example in examples:
        _check(example, fields)
        response, end = start + len(example.prompt_token_ids), start + len(example)
        input_ids_BT[row, start:response] = torch.tensor(example.prompt_token_ids)
        input_ids_BT[row, response:end] = torch.tensor(example.response_token_ids)
        attention_mask_BT[row, start:end] = 1
        position_ids_BT[row, start:end] = torch.arange(len(example))
        response_mask_BT[row, response:end] = 1.0
        for name, values in example.fields.items():
            fields[name][row, response:end] = torch.tensor(values)
        row, start = (0, end) if packing else (row + 1, 0)
    mask_BT = None if packing else attention_mask_BT
    return Batch(input_ids_BT, mask_BT, position_ids_BT, response_mask_BT, fields, lengths)


def _check(example: Example, names: Iterable[str]) -> None:
    if not example.prompt_token_ids or not example.response_token_ids:
        raise ValueError(
            f"an example needs a prompt and a response: the first token of a sequence has no probability: {example}"
        )
    if set(names) != set(example.fields):
        raise ValueError(f"examples of one batch have different fields: {sorted(names)} and {sorted(example.fields)}")
    for name, values in example.fields.items():
        if len(values) != len(example.response_token_ids):
            raise ValueError(f"{name} has {len(values)} values for {len(example.response_token_ids)} response tokens")


def batches(examples: Sequence[Example], max_tokens: int, count: int, *, packing: bool = False) -> Iterator[Batch]:
    """`count` batches: those of the examples, then weightless ones, so that every rank passes as often as the busiest.

    Raises: ValueError if the examples fill more than `count`.
    """
    groups = micro_batches(examples, max_tokens, packing=packing)
    if len(groups) > count:
        raise ValueError(f"the examples fill {len(groups)} micro-batches, but the ranks agreed on {count}")
    yield from (collate(group, packing=packing) for group in groups)
    nothing = Example([0], [0], {name: [0.0] for name in examples[0].fields} if examples else {})
    empty = collate([nothing], packing=packing).weightless()
    yield from (empty for _ in range(count - len(groups)))
