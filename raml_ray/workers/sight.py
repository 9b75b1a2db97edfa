"""Which token of a pass sees which: trajectories lie packed in one row, and branches hang on their prefixes.

A trajectory's token sees its trajectory up to itself; a branch's token sees its prefix, and of its own branch the way to
it. A prefix's last token is the branch's own where its logits are asked for, and the trajectory's elsewhere. The same rule makes a dense mask (torch's attention kernel) or a block mask (FlexAttention, which skips what no token
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

    @property
    def size(self) -> int:
        """Tokens of the branch that are computed at each position."""
        return len(self.branch.token_ids) - self.branch.first


def on_trajectories(rows: Sequence[Sequence[int]], device: torch.device) -> Tokens:
    """The trajectories, one behind the other."""
    place_N = torch.cat([torch.arange(len(row)) for row in rows])
    row_N = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    id_N = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    nothing_N = torch.zeros_like(place_N)
    columns = (id_N, place_N, row_N, place_N + 1, nothing_N + ON_TRAJECTORY, nothing_N)
    return Tokens(*(column.to(device) for column in columns))


def on_branches(runs: Sequence[Run], device: torch.device) -> Tokens:
    """The branches of the runs from their first computed nodes on, one behind the other."""
    parts, num_branches = [], 0
    for run in runs:
        first, count, size = run.branch.first, len(run.length_K), run.size
        id_KS = torch.tensor(run.branch.token_ids[first:]).repeat(count, 1)
        if first == 0:
            id_KS[:, 0] = run.last_id_K
        before_K1 = run.length_K[:, None] - 1
        branch_K1 = torch.arange(num_branches, num_branches + count)[:, None]
        columns_KS = (
            id_KS,
            before_K1 + torch.tensor(run.branch.depth[first:]),
            torch.full((count, size), run.trajectory),
            (before_K1 + first).expand(-1, size),
            branch_K1.expand(-1, size),
            torch.arange(first, first + size).expand(count, -1),
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
    sees_text, sees_way = _on_text(query, key, window), _on_branch(query, key, is_ancestor_RSS, window)
    return lambda q, k: sees_text(q, k) | sees_way(q, k)


def _on_text(query: Tokens, key: Tokens, window: int | None) -> Rule:
    """Which keys of its trajectory a token sees."""

    def sees(q: Tensor, k: Tensor) -> Tensor:
        is_text = (key.branch_N[k] == ON_TRAJECTORY) & (key.position_N[k] < query.seen_N[q])
        return is_text & (key.trajectory_N[k] == query.trajectory_N[q]) & _is_near(query, key, window, q, k)

    return sees


def _on_branch(query: Tokens, key: Tokens, is_ancestor_RSS: Tensor, window: int | None) -> Rule:
    """Which keys of its own branch a token sees."""

    def sees(q: Tensor, k: Tensor) -> Tensor:
        is_own = (key.branch_N[k] == query.branch_N[q]) & (key.branch_N[k] != ON_TRAJECTORY)
        is_way = is_ancestor_RSS[query.trajectory_N[q], query.node_N[q], key.node_N[k]]
        is_mine = is_own & (key.trajectory_N[k] == query.trajectory_N[q])
        return is_mine & is_way & _is_near(query, key, window, q, k)

    return sees


def _is_near(query: Tokens, key: Tokens, window: int | None, q: Tensor, k: Tensor) -> Tensor | bool:
    return window is None or query.position_N[q] - key.position_N[k] < window


def dense(sees: Rule, num_queries: int, num_keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The rule as an additive mask, (1, 1, Q, K)."""
    visible_QK = sees(torch.arange(num_queries, device=device)[:, None], torch.arange(num_keys, device=device))
    return _additive(visible_QK, dtype)


def dense_by_branch(
    query: Tokens, key: Tokens, is_ancestor_RSS: Tensor, sizes: Sequence[int], window: int | None, dtype: torch.dtype
) -> Tensor:
    """The rule for branches as `branch_attention` takes it, (1, 1, N, C + S): what each of the N tokens of branches, of
    these sizes, sees of the C keys, which lie on trajectories, and then of the first token of its own branch, its second,
    ... its S-th, S being the largest size; what a smaller branch does not have means nothing."""
    query_N1 = torch.arange(len(query.id_N))[:, None]
    size_B = torch.tensor(sizes)
    start_N1 = (size_B.cumsum(0) - size_B).repeat_interleave(size_B)[:, None]
    own_NS = (start_N1 + torch.arange(max(sizes))).clamp(max=len(query_N1) - 1)
    text_NC = _on_text(query, key, window)(query_N1, torch.arange(len(key.id_N)))
    way_NS = _on_branch(query, query, is_ancestor_RSS, window)(query_N1, own_NS)
    return _additive(torch.cat([text_NC, way_NS], dim=1), dtype)


def _additive(visible_QK: Tensor, dtype: torch.dtype) -> Tensor:
    mask_QK = torch.zeros(visible_QK.shape, dtype=dtype, device=visible_QK.device)
    return mask_QK.masked_fill_(~visible_QK, torch.finfo(dtype).min)[None, None]
