"""L-hat of every prefix on a policy whose past is a state: a text is read once, token by token, and answers are decoded from
copies of the state at its positions, those of many positions side by side.

Nothing is approximated: a copy of a state is all that the policy knows of a prefix.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raml_ray.text.suffix import Branch, branch
from raml_ray.workers import recurrent_forms
from raml_ray.workers.probe_memory import MIB
from raml_ray.workers.probe_text import Probe
from raml_ray.workers.recurrent_forms import FORMS, State

TEMPORARIES = 6
"""Tensors of a layer's state, float32, that a step holds while it computes the next one."""


class _Snapshot(NamedTuple):
    """What is known at some positions of the texts."""

    owner: list[tuple[int, int]]
    """Of each row, the probe and the place among its prefixes."""
    hidden_NH: Tensor
    state: State


def answer_logprobs(model: PreTrainedModel, probes: "Sequence[Probe]", memory_mib: float) -> list[list[Tensor]]:
    """As `probe.answer_logprobs`, of an architecture in FORMS. Raises: ValueError if the memory holds no single position."""
    reader = _Reader(model, probes, memory_mib)
    for start in range(0, len(probes), reader.num_texts):
        reader.read(range(start, min(start + reader.num_texts, len(probes))))
    return reader.found


class _Reader:
    """Reads texts side by side, and decodes answers whenever the snapshots fill the memory."""

    def __init__(self, model: PreTrainedModel, probes: "Sequence[Probe]", memory_mib: float) -> None:
        self._model, self._probes = model, probes
        self._form = FORMS[model.config.model_type](model)
        self._device = model.get_input_embeddings().weight.device
        self._branches = [branch(probe.suffixes) for probe in probes]
        self._levels = [_levels(each) for each in self._branches]
        self.found = [
            [torch.empty(len(probe.lengths), suffix.num_answer_tokens) for suffix in probe.suffixes] for probe in probes
        ]
        row = recurrent_forms.num_bytes(self._form.start(1))
        layers = int(model.config.num_hidden_layers)
        step = row + TEMPORARIES * row // layers + 16 * int(model.config.hidden_size) * model.dtype.itemsize
        budget = memory_mib * MIB
        self.num_texts = max(int(budget / 2 // (2 * step)), 1)
        scored = 3 * 4 * int(model.config.vocab_size)
        widest = max((max(map(len, levels)) for levels in self._levels), default=1)
        each = row + 2 * widest * step + scored * max(len(b.scored) for b in self._branches)
        self._most = int((budget - 2 * step * min(self.num_texts, len(probes))) // each)
        if self._most < 1:
            raise ValueError(
                f"analyze.probe_memory_mib={memory_mib:g} has no room for one position's state and answers: set at least"
                f" {(each + 2 * step) / MIB:.0f}"
            )

    def read(self, indices: Sequence[int]) -> None:
        """Texts of these probes, side by side: those that are done leave."""
        alive, state = list(indices), self._form.start(len(indices))
        kept: list[_Snapshot] = []
        place = {index: {length: k for k, length in enumerate(self._probes[index].lengths)} for index in indices}
        for length in range(1, max(self._probes[index].lengths[-1] for index in indices) + 1):
            staying = [row for row, index in enumerate(alive) if self._probes[index].lengths[-1] >= length]
            if len(staying) < len(alive):
                alive = [alive[row] for row in staying]
                state = recurrent_forms.picked(state, self._rows(staying))
            id_B = self._rows([self._probes[index].token_ids[length - 1] for index in alive])
            hidden_BH, state = self._form.step(id_B, state)
            asked = [row for row, index in enumerate(alive) if length in place[index]]
            for part in _parts(asked, self._most - sum(len(one.owner) for one in kept), self._most):
                owner = [(alive[row], place[alive[row]][length]) for row in part]
                rows = self._rows(part)
                kept.append(_Snapshot(owner, hidden_BH.index_select(0, rows), recurrent_forms.picked(state, rows)))
                if sum(len(one.owner) for one in kept) == self._most:
                    self._decode(kept)
                    kept = []
        self._decode(kept)

    def _decode(self, kept: Sequence[_Snapshot]) -> None:
        """The answers after these positions, level by level of their trees."""
        if not kept:
            return
        owner = [one for snapshot in kept for one in snapshot.owner]
        state = recurrent_forms.joined([one.state for one in kept])
        hidden_NH = torch.cat([one.hidden_NH for one in kept])
        rows = [(at, 0) for at in range(len(owner))]
        self._score(owner, rows, hidden_NH)
        for level in range(1, max(len(self._levels[index]) for index, _ in owner)):
            place = {row: number for number, row in enumerate(rows)}
            grown = [(at, n) for at, (i, _) in enumerate(owner) for n in _at(self._levels[i], level)]
            trees = [self._branches[owner[at][0]] for at, _ in grown]
            parents = [place[at, tree.parent[node]] for (at, node), tree in zip(grown, trees, strict=True)]
            id_N = self._rows([tree.token_ids[node] for (_, node), tree in zip(grown, trees, strict=True)])
            hidden_NH, state = self._form.step(id_N, recurrent_forms.picked(state, self._rows(parents)))
            rows = grown
            self._score(owner, rows, hidden_NH)

    def _score(self, owner: Sequence[tuple[int, int]], rows: Sequence[tuple[int, int]], hidden_NH: Tensor) -> None:
        """Log-probabilities of the answer tokens that follow these nodes."""
        asked = [
            (number, *owner[at], *one)
            for number, (at, n) in enumerate(rows)
            for one in self._following(owner[at][0], n)
        ]
        if not asked:
            return
        places = sorted({number for number, *_ in asked})
        head = self._model.get_output_embeddings()
        logprob_NV = head(hidden_NH.index_select(0, self._rows(places)).to(head.weight.dtype)).float().log_softmax(-1)
        row_of = {number: row for row, number in enumerate(places)}
        picked = logprob_NV[
            self._rows([row_of[number] for number, *_ in asked]), self._rows([token for *_, token in asked])
        ]
        for (_, index, k, suffix, a, _), value in zip(asked, picked.tolist(), strict=True):
            self.found[index][suffix][k, a] = value

    def _following(self, index: int, node: int) -> Iterator[tuple[int, int, int]]:
        """Suffix, place in its answer, and token, of what follows a node of a probe's tree."""
        for suffix, answer in enumerate(self._branches[index].answers):
            for a, (before, token) in enumerate(answer):
                if before == node:
                    yield suffix, a, token

    def _rows(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)


def _levels(tree: Branch) -> list[list[int]]:
    """The nodes by their depth."""
    levels: dict[int, list[int]] = defaultdict(list)
    for node, depth in enumerate(tree.depth):
        levels[depth].append(node)
    return [levels[depth] for depth in range(len(levels))]


def _at(levels: Sequence[list[int]], depth: int) -> list[int]:
    return levels[depth] if depth < len(levels) else []


def _parts(rows: Sequence[int], first: int, most: int) -> Iterator[Sequence[int]]:
    """The rows in parts: one of at most `first`, then of at most `most`."""
    start, size = 0, first
    while start < len(rows):
        yield rows[start : start + size]
        start, size = start + size, most
