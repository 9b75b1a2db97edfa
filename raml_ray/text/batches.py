"""Training examples as token ids, and how they are grouped and padded into micro-batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from raml_ray.settings import PromptConfig
from raml_ray.text import prompts

EXAMPLE = pa.schema([("prompt_token_ids", pa.list_(pa.int32())), ("response_token_ids", pa.list_(pa.int32()))])


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
    """Examples padded on the right, (B, T). Column t of the mask and of every field speaks of token t, as column t of
    `policy.token_logprobs` does."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    """1 on tokens, 0 on padding."""
    position_ids_BT: Tensor
    response_mask_BT: Tensor
    """1.0 on response tokens, float32."""
    fields: Mapping[str, Tensor]
    """Each (B, T) float32, 0 outside the response."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.input_ids_BT.to(device),
            self.attention_mask_BT.to(device),
            self.position_ids_BT.to(device),
            self.response_mask_BT.to(device),
            {name: values_BT.to(device) for name, values_BT in self.fields.items()},
        )

    def weightless(self) -> "Batch":
        """The same tokens with an empty response mask: a forward and backward pass that adds nothing."""
        return replace(self, response_mask_BT=torch.zeros_like(self.response_mask_BT))


class Examples(Sequence[Example]):
    """The rows of an EXAMPLE table, kept as Arrow columns and turned into an Example when asked for."""

    def __init__(self, rows: pa.Table) -> None:
        columns = rows.select(EXAMPLE.names).combine_chunks()
        self._prompts = _flat(columns["prompt_token_ids"])
        self._responses = _flat(columns["response_token_ids"])

    def __len__(self) -> int:
        return len(self._prompts[1]) - 1

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Example(
            *(ids[offsets[index] : offsets[index + 1]].tolist() for ids, offsets in (self._prompts, self._responses))
        )


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    rows = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    return rows.values.to_numpy(zero_copy_only=False), rows.offsets.to_numpy()


def table(examples: Iterable[Example]) -> pa.Table:
    """Examples as an EXAMPLE table (their fields are not kept)."""
    rows = list(examples)
    return pa.table(
        {
            "prompt_token_ids": [list(example.prompt_token_ids) for example in rows],
            "response_token_ids": [list(example.response_token_ids) for example in rows],
        },
        schema=EXAMPLE,
    )


def encode(tokenizer: PreTrainedTokenizerBase, problem: str, response: str, prompt: PromptConfig) -> Example:
    """The Example of a question and a trajectory's text (the forced `prompt.response_prefix` included) for the policy
    that owns the tokenizer; its end-of-sequence token ends the response, once.

    Raises: ValueError if the tokenizer has no such token, or the text lacks the prefix that the prompt forces.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no eos_token: set it in tokenizer_config.json"
        )
    if not response.startswith(prompt.response_prefix):
        raise ValueError(
            f"prompt.response_prefix={prompt.response_prefix!r}, but the trajectory begins {response[:40]!r}"
        )
    rest = response[len(prompt.response_prefix) :]
    response_ids = [int(i) for i in tokenizer(rest, add_special_tokens=False)["input_ids"]]
    if response_ids[-1:] != [tokenizer.eos_token_id]:
        response_ids.append(int(tokenizer.eos_token_id))
    return Example(prompts.prompt_token_ids(tokenizer, problem, prompt), response_ids)


def micro_batches(examples: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """The examples, longest first, in groups whose padded size (rows x longest) stays within `max_tokens`.

    A longer example is a group of its own. The order depends on the lengths and, among equal ones, on the given order.
    """
    groups: list[list[Example]] = []
    for example in sorted(examples, key=len, reverse=True):
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0]) <= max_tokens:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def collate(examples: Sequence[Example]) -> Batch:
    """The examples as one Batch, padded on the right to the longest (or by token 0, which no mask lets in).

    Raises: ValueError if there are none, one lacks a prompt or response, or a field's length is not its response's.
    """
    if not examples:
        raise ValueError("a batch of no examples cannot be padded")
    shape = len(examples), max(len(example) for example in examples)
    input_ids_BT = torch.zeros(shape, dtype=torch.long)
    attention_mask_BT = torch.zeros(shape, dtype=torch.long)
    response_mask_BT = torch.zeros(shape)
    fields = {name: torch.zeros(shape) for name in examples[0].fields}
    for row, example in enumerate(examples):
        _check(example, fields)
        start, end = len(example.prompt_token_ids), len(example)
        input_ids_BT[row, :start] = torch.tensor(example.prompt_token_ids)
        input_ids_BT[row, start:end] = torch.tensor(example.response_token_ids)
        attention_mask_BT[row, :end] = 1
        response_mask_BT[row, start:end] = 1.0
        for name, values in example.fields.items():
            fields[name][row, start:end] = torch.tensor(values)
    position_ids_BT = torch.arange(shape[1]).expand(shape).contiguous()
    return Batch(input_ids_BT, attention_mask_BT, position_ids_BT, response_mask_BT, fields)


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


def batches(examples: Sequence[Example], max_tokens: int, count: int) -> Iterator[Batch]:
    """`count` batches: those of the examples, then weightless ones, so that every rank passes as often as the busiest.

    Raises: ValueError if the examples fill more than `count`.
    """
    groups = micro_batches(examples, max_tokens)
    if len(groups) > count:
        raise ValueError(f"the examples fill {len(groups)} micro-batches, but the ranks agreed on {count}")
    yield from (collate(group) for group in groups)
    empty = collate([Example([0], [0], {name: [0.0] for name in examples[0].fields} if examples else {})]).weightless()
    yield from (empty for _ in range(count - len(groups)))
