"""Which token of a pass sees which: trajectories lie packed in one row, and branches hang on their prefixes.

A trajectory's token sees its trajectory up to itself; a branch's token sees its prefix, and of its own branch the way to
it. The same rule makes a dense mask (torch's attention kernel) or a block mask (FlexAttention, which skips what no token
sees).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raml_ray.text.suffix import Branch

ON_TRAJECTORY = -1
Rule = Callable[[Tensor, Tensor], Tensor]
"""Whether the query of this index sees the key of that index."""


class Tokens(NamedTuple):
    """The tokens of a pass, each column (N,)."""

    id_N: Tensor
    position_N: Tensor
    """Tokens of the same text before it."""
    trajectory_N: Tensor
    """Index of its trajectory in the pack."""
    seen_N: Tensor
    """How many tokens of its trajectory it sees."""
    branch_N: Tensor
    """A number that its branch alone has in the pass; ON_TRAJECTORY of trajectory tokens."""
    node_N: Tensor
    """Its node in the branch; 0 of trajectory tokens."""

    def then(self, others: "Tokens") -> "Tokens":
        return Tokens(*(torch.cat(pair) for pair in zip(self, others, strict=True)))


class Run(NamedTuple):
    """Neighbouring positions of one trajectory at which the same branch grows."""

    trajectory: int
    length_K: Tensor
    """Tokens of each prefix, (K,)."""
    last_id_K: Tensor
    """The last token of each prefix, (K,)."""
    branch: Branch


def on_trajectories(rows: Sequence[Sequence[int]], device: torch.device) -> Tokens:
    """The trajectories, one behind the other."""
    place_N = torch.cat([torch.arange(len(row)) for row in rows])
    row_N = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    id_N = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    nothing_N = torch.zeros_like(place_N)
    columns = (id_N, place_N, row_N, place_N + 1, nothing_N + ON_TRAJECTORY, nothing_N)
    return Tokens(*(column.to(device) for column in columns))


def on_branches(runs: Sequence[Run], device: torch.device) -> Tokens:
    """The branches of the runs, one behind the other. A branch begins with the last token of its prefix."""
    parts, num_branches = [], 0
    for run in runs:
        count, size = len(run.length_K), len(run.branch.token_ids)
        id_KS = torch.tensor(run.branch.token_ids).repeat(count, 1)
        id_KS[:, 0] = run.last_id_K
        before_K1 = run.length_K[:, None] - 1
        branch_K1 = torch.arange(num_branches, num_branches + count)[:, None]
        columns_KS = (
            id_KS,
            before_K1 + torch.tensor(run.branch.depth),
            torch.full((count, size), run.trajectory),
            before_K1.expand(-1, size),
            branch_K1.expand(-1, size),
            torch.arange(size).expand(count, -1),
        )
        parts.append(Tokens(*(column_KS.flatten() for column_KS in columns_KS)))
        num_branches += count
    return Tokens(*(torch.cat(columns).to(device) for columns in zip(*parts, strict=True)))


def ancestry(branches: Sequence[Branch], device: torch.device) -> Tensor:
    """Whether in that trajectory's branch a node lies on the way to another or is it, (R, S, S): [r, node, ancestor]."""
    size = max(len(branch.parent) for branch in branches)
    is_ancestor_RSS = torch.zeros(len(branches), size, size, dtype=torch.bool)
    for is_ancestor_SS, branch in zip(is_ancestor_RSS, branches, strict=True):
        for node, parent in enumerate(branch.parent):
            if parent >= 0:
                is_ancestor_SS[node] = is_ancestor_SS[parent]
            is_ancestor_SS[node, node] = True
    return is_ancestor_RSS.to(device)


def rule(query: Tokens, key: Tokens, is_ancestor_RSS: Tensor, window: int | None) -> Rule:
    """Who sees whom. With a sliding window a token sees so many positions, itself included."""

    def sees(q: Tensor, k: Tensor) -> Tensor:
        prefix = (key.branch_N[k] == ON_TRAJECTORY) & (key.position_N[k] < query.seen_N[q])
        way = (key.branch_N[k] == query.branch_N[q]) & (key.branch_N[k] != ON_TRAJECTORY)
        way = way & is_ancestor_RSS[query.trajectory_N[q], query.node_N[q], key.node_N[k]]
        found = (key.trajectory_N[k] == query.trajectory_N[q]) & (prefix | way)
        if window is not None:
            found = found & (query.position_N[q] - key.position_N[k] < window)
        return found

    return sees


def dense(sees: Rule, num_queries: int, num_keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The rule as an additive mask, (1, 1, Q, K)."""
    visible_QK = sees(torch.arange(num_queries, device=device)[:, None], torch.arange(num_keys, device=device))
    mask_QK = torch.zeros(num_queries, num_keys, dtype=dtype, device=device)
    return mask_QK.masked_fill_(~visible_QK, torch.finfo(dtype).min)[None, None]
