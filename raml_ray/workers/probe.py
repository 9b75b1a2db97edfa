"""L-hat of every prefix of trajectories at once: a trajectory is read once, answers branch off at its positions.

Several trajectories, and the branches of many positions, lie packed in one row. A branch sees the cached tokens of its own
prefix and itself (`sight`), so the values are those of one forward pass per prefix, at the price of T + K * S tokens instead
of T * T / 2. Answers that share a beginning share its tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import DynamicCache, PreTrainedModel

from raml_ray.formulas.lhat import lhat
from raml_ray.text.suffix import Branch, branch
from raml_ray.workers import branch_attention, probe_memory, probe_proof, probe_recurrent, probe_support, sight
from raml_ray.workers.branch_attention import BRANCHING
from raml_ray.workers.probe_memory import MIB, Costs
from raml_ray.workers.probe_support import FLEX
from raml_ray.workers.probe_text import Probe
from raml_ray.workers.recurrent_forms import context_of
from raml_ray.workers.sight import Run, Tokens

PAIRS_PER_SIZE = 2
"""With a dense mask a pass is cut where its tokens are so many times the hidden size: attention among them, nearly all of it
between branches that do not see each other, then costs a third of all matrix products (4 N N H against 24 N H H operations)."""
LEAST_TOKENS = 512
"""Of such a pass all the same: smaller ones take as long as calling them does."""
MOST_APART = 1024
"""Tokens of a pass in which branches cost each other nothing (`branch_attention`): more spare few calls, and hold the
branches of early positions against the text of late ones."""


def answer_nll(model: PreTrainedModel, probes: Sequence[Probe], *, memory_mib: float) -> list[list[np.ndarray]]:
    """L-hat of each probe's suffixes after each of its prefixes, (K,) each, nats per answer token.

    The suffix's own tokens are not averaged. Raises: ValueError as `answer_logprobs`.

    Source: RaML, arXiv:2505.19815, Algorithm 3.
    """
    found = answer_logprobs(model, probes, memory_mib=memory_mib)
    return [[lhat(logprob_KA).numpy() for logprob_KA in of_probe] for of_probe in found]


@torch.inference_mode()
def answer_logprobs(model: PreTrainedModel, probes: Sequence[Probe], *, memory_mib: float) -> list[list[Tensor]]:
    """Log-probabilities of each suffix's answer tokens after each prefix, float32, (K, A) each, on the host.

    A pass holds at most `memory_mib` beside the weights, as `probe_memory` counts it.

    Raises: ValueError as `check`, or if the memory has no room for a single position.
    """
    for probe in probes:
        check(model, probe)
    model.eval()
    if probe_support.is_recurrent(model):
        return probe_recurrent.answer_logprobs(model, probes, memory_mib)
    if model.config.model_type not in probe_support.SUPPORTED:
        probe_proof.check(model, _by_tree)
    return _by_tree(model, probes, memory_mib)


def _by_tree(model: PreTrainedModel, probes: Sequence[Probe], memory_mib: float) -> list[list[Tensor]]:
    with branch_attention.where_it_can(model):
        packs = _packs(model, probes, memory_mib)
        return [of_probe for pack in packs for of_probe in _Pack(model, pack, memory_mib).logprobs()]


def check(model: PreTrainedModel, probe: Probe) -> None:
    """Raises: ValueError if the policy cannot be probed, a prefix is none of the text's, or prefix and suffix together are
    longer than the policy's context."""
    probe_support.check(model)
    lengths, num_tokens = probe.lengths, len(probe.token_ids)
    ascending = all(a < b for a, b in pairwise(lengths))
    if not lengths or not ascending or not 1 <= lengths[0] <= lengths[-1] <= num_tokens:
        shown = f"{lengths[0]} .. {lengths[-1]}" if lengths else "none"
        raise ValueError(f"prefixes of {shown} tokens must ascend within 1 .. {num_tokens}, the tokens there are")
    longest = max((len(suffix.token_ids) for suffix in probe.suffixes), default=0)
    context = context_of(model.config)
    if context is not None and lengths[-1] + longest > context:
        raise ValueError(f"{lengths[-1]} tokens and a suffix of {longest} exceed the policy's context of {context}")


def _packs(model: PreTrainedModel, probes: Sequence[Probe], memory_mib: float) -> Iterator[list[Probe]]:
    """The probes in groups whose texts one pass can hold, in half of its memory."""
    costs, most = _costs(model), _most_tokens(model)
    pack: list[Probe] = []
    num_tokens = 0
    for probe in probes:
        more = num_tokens + probe.lengths[-1]
        if pack and (more > most or costs.bytes(more, 0, 1) > memory_mib * MIB / 2):
            yield pack
            pack, more = [], probe.lengths[-1]
        pack.append(probe)
        num_tokens = more
    if pack:
        yield pack


class _Pack:
    """Texts in one row, read into a cache, and what grows on them."""

    def __init__(self, model: PreTrainedModel, probes: Sequence[Probe], memory_mib: float) -> None:
        self._model, self._probes, self._memory_mib = model, probes, memory_mib
        self._device = model.get_input_embeddings().weight.device
        self._branches = [branch(probe.suffixes) for probe in probes]
        self._ancestry = sight.ancestry(self._branches, self._device)
        self._cache = DynamicCache()  # without the config, whose sliding layers would forget what a branch may see
        self._costs, self._windows = _costs(model), probe_support.windows(model.config)
        texts = [probe.token_ids[: probe.lengths[-1]] for probe in probes]
        self._texts = sight.on_trajectories(texts, self._device)

    @property
    def num_cached(self) -> int:
        return len(self._texts.id_N)

    def logprobs(self) -> list[list[Tensor]]:
        self._read()
        parts: list[list[list[Tensor]]] = [[[] for _ in probe.suffixes] for probe in self._probes]
        # From the end of the row: what no branch sees any more leaves the cache, half of all pairs in the end.
        for runs in reversed(list(self._chunks())):
            self._forget_behind(runs[-1])
            for run, of_run in zip(runs, self._branch_off(runs), strict=True):
                for index, logprob_KA in enumerate(of_run):
                    parts[run.trajectory][index].append(logprob_KA)
        return [[torch.cat(chunks[::-1]) for chunks in of_probe] for of_probe in parts]

    def _forget_behind(self, run: Run) -> None:
        """Keep of the cached texts what this run and those before it can see."""
        before = sum(probe.lengths[-1] for probe in self._probes[: run.trajectory])
        seen = before + int(run.length_K[-1])
        self._cache.crop(seen - self.num_cached)  # a negative count is the number of tokens to remove
        self._texts = Tokens(*(column_N[:seen] for column_N in self._texts))

    def _read(self) -> None:
        """Put the texts into the cache, in as many passes as the memory asks for."""
        done = 0
        while done < self.num_cached:
            count = self._most_texts(done)
            query, key = (Tokens(*(c[a : done + count] for c in self._texts)) for a in (done, 0))
            is_plain = len(self._probes) == 1 and done == 0 and not any(self._windows.values())
            # One text from its beginning is what attention is made for; elsewhere the mask says who sees whom.
            mask = None if is_plain and self._kind() != FLEX else self._masks(query, key)
            self._forward(query, mask, 1)
            done += count

    def _most_texts(self, num_cached: int) -> int:
        low, high = 0, self.num_cached - num_cached
        while low < high:
            middle = (low + high + 1) // 2
            if self._costs.bytes(middle, num_cached, 1) <= self._memory_mib * MIB:
                low = middle
            else:
                high = middle - 1
        if low == 0:
            raise self._too_little(self._costs.bytes(1, num_cached, 1))
        return low

    def _chunks(self) -> Iterator[list[Run]]:
        """All branches, in runs that together fit into a pass."""
        is_apart = self._kind() == BRANCHING
        most, budget = MOST_APART if is_apart else _most_tokens(self._model), self._memory_mib * MIB
        num_own = max(len(grown.token_ids) - grown.first for grown in self._branches) if is_apart else None
        chunk: list[tuple[int, list[int]]] = []
        tokens = logits = 0
        for index, (probe, grown) in enumerate(zip(self._probes, self._branches, strict=True)):
            size, scored = len(grown.token_ids) - grown.first, len(grown.scored)
            if (least := self._costs.bytes(size, self.num_cached, scored, num_own)) > budget:
                raise self._too_little(least)
            for length in probe.lengths:
                needed = self._costs.bytes(tokens + size, self.num_cached, logits + scored, num_own)
                if chunk and (tokens + size > most or needed > budget):
                    yield [self._run(*entry) for entry in chunk]
                    chunk, tokens, logits = [], 0, 0
                if not chunk or chunk[-1][0] != index:
                    chunk.append((index, []))
                chunk[-1][1].append(length)
                tokens, logits = tokens + size, logits + scored
        yield [self._run(*entry) for entry in chunk]

    def _run(self, index: int, lengths: list[int]) -> Run:
        token_ids = self._probes[index].token_ids
        last_id_K = torch.tensor([token_ids[length - 1] for length in lengths])
        return Run(index, torch.tensor(lengths), last_id_K, self._branches[index])

    def _branch_off(self, runs: Sequence[Run]) -> list[list[Tensor]]:
        """Log-probabilities (K, A) of each run's suffixes; leaves the cache as it was."""
        query = sight.on_branches(runs, self._device)
        scored, sizes, start = [], [], 0
        for run in runs:
            count, size = len(run.length_K), run.size
            sizes += [size] * count
            nodes = torch.tensor(run.branch.scored) - run.branch.first
            scored.append((start + torch.arange(count)[:, None] * size + nodes).flatten())
            start += count * size
        by_branch = sizes if self._kind() == BRANCHING else None
        masks = self._masks(query, self._texts if by_branch else self._texts.then(query), by_branch)
        logits = self._forward(query, masks, torch.cat(scored).to(self._device), by_branch).float()
        self._cache.crop(-start)
        of_runs = logits.split([len(places) for places in scored])
        return [_answers(part, run.branch, len(run.length_K)) for part, run in zip(of_runs, runs, strict=True)]

    def _forward(
        self, query: Tokens, mask: object, keep: int | Tensor, branch_sizes: Sequence[int] | None = None
    ) -> Tensor:
        more = {} if branch_sizes is None else {"branch_sizes": branch_sizes}
        logits: Tensor = self._model(
            input_ids=query.id_N[None],
            position_ids=query.position_N[None],
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
            **more,
        ).logits[0]
        return logits

    def _kind(self) -> str:
        return str(self._model.config._attn_implementation)

    def _masks(self, query: Tokens, key: Tokens, branch_sizes: Sequence[int] | None = None) -> object:
        masks = {kind: self._mask(query, key, window, branch_sizes) for kind, window in self._windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(
        self, query: Tokens, key: Tokens, window: int | None, branch_sizes: Sequence[int] | None
    ) -> Tensor | BlockMask:
        if branch_sizes is not None:
            return sight.dense_by_branch(query, key, self._ancestry, branch_sizes, window, self._model.dtype)
        sees = sight.rule(query, key, self._ancestry, window)
        num_queries, num_keys = len(query.id_N), len(key.id_N)
        if self._kind() != FLEX:
            return sight.dense(sees, num_queries, num_keys, self._model.dtype, self._device)
        return create_block_mask(
            lambda batch, head, q, k: sees(q, k),
            None,
            None,
            num_queries,
            num_keys,
            device=self._device,
            _compile=self._device.type == "cuda",
        )

    def _too_little(self, needed: int) -> ValueError:
        return ValueError(
            f"analyze.probe_memory_mib={self._memory_mib:g} has no room for one position behind {self.num_cached} tokens:"
            f" set at least {needed / MIB:.0f}"
        )


def _answers(logits_NV: Tensor, grown: Branch, num_positions: int) -> list[Tensor]:
    """Of the logits at the scored nodes of so many branches, each suffix's log-probabilities (K, A)."""
    logits_KPV = logits_NV.view(num_positions, len(grown.scored), -1)
    normaliser_KP = logits_KPV.logsumexp(-1)
    place = {node: index for index, node in enumerate(grown.scored)}
    found = []
    for answer in grown.answers:
        nodes, tokens = [place[node] for node, _ in answer], [token for _, token in answer]
        found.append((logits_KPV[:, nodes, tokens] - normaliser_KP[:, nodes]).cpu())
    return found


def _most_tokens(model: PreTrainedModel) -> int:
    """Of a pass, where there is more than one text or branch in it."""
    is_flex = model.config._attn_implementation == FLEX
    return 2**31 if is_flex else max(PAIRS_PER_SIZE * int(model.config.hidden_size), LEAST_TOKENS)


def _costs(model: PreTrainedModel) -> Costs:
    kind = model.config._attn_implementation
    num_masks = 0 if kind == FLEX else len(probe_support.windows(model.config))
    return probe_memory.costs(model.config, model.dtype.itemsize, num_masks=num_masks, is_eager=kind == "eager")
