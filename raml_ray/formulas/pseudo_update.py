"""A token read as an update of weights: what it writes into an attention head, and the change of W_v that would do the same.

A query q sees old keys and new ones. With p the attention on the new keys, o_l the output over the old keys alone and
v_t the (attention-weighted) new value, the output is o = o_l + p (v_t - o_l): p is the size of the step, v_t - o_l its
direction. The paper's Proposition 2.1 says that weights exist that give o from the old keys alone; its printed proof
does not show it. The rank-one change of W_v here does so exactly, for the one query that it was made for.

Row vectors throughout; every function takes any leading dimensions, the same for all its arguments.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Write(NamedTuple):
    """What the new keys write into a head for K queries: `output_KE = old_output_KE + mass_K * direction_KE`."""

    mass_K: Tensor
    """Attention on the new keys, in [0, 1]."""
    old_attention_KT: Tensor
    """Softmax over the old keys alone; 0 at the new ones."""
    old_output_KE: Tensor
    direction_KE: Tensor
    """New value minus old output."""

    @property
    def step_KE(self) -> Tensor:
        """The change of the head's output."""
        return self.mass_K[..., None] * self.direction_KE

    @property
    def output_KE(self) -> Tensor:
        """The head's output with the new keys."""
        return self.old_output_KE + self.step_KE


def write(logit_KT: Tensor, value_TE: Tensor, is_new_T: Tensor) -> Write:
    """What the keys marked as new write for queries with these attention logits; -inf hides a key.

    Raises: ValueError if logits, values and marks do not belong together, or no key is old, or none new.
    """
    if logit_KT.shape[-1:] != value_TE.shape[-2:-1] or is_new_T.shape != logit_KT.shape[-1:]:
        raise ValueError(
            "a write needs logits (.., K, T), values (.., T, E) and marks (T,), got"
            f" {tuple(logit_KT.shape)}, {tuple(value_TE.shape)}, {tuple(is_new_T.shape)}"
        )
    if bool(is_new_T.all()) or not bool(is_new_T.any()):
        raise ValueError(f"of {len(is_new_T)} keys some must be new and some old, got {int(is_new_T.sum())} new")
    old_attention_KT = logit_KT.masked_fill(is_new_T, -torch.inf).softmax(-1)
    new_attention_KT = logit_KT.masked_fill(~is_new_T, -torch.inf).softmax(-1)
    old_output_KE = old_attention_KT @ value_TE
    return Write(
        mass_K=(logit_KT.softmax(-1) * is_new_T).sum(-1),
        old_attention_KT=old_attention_KT,
        old_output_KE=old_output_KE,
        direction_KE=new_attention_KT @ value_TE - old_output_KE,
    )


def value_patch(read_D: Tensor, step_E: Tensor) -> Tensor:
    """The change of W_v, (.., D, E), of rank one, with which the read input m gives the step: m^T step / (m m^T).

    It is the smallest such change. It is exact for the query that m and the step belong to, and for no other.
    """
    scaled_E = step_E / read_D.square().sum(-1, keepdim=True)
    return read_D[..., :, None] * scaled_E[..., None, :]


def value_patch_norm(read_D: Tensor, step_E: Tensor) -> Tensor:
    """Frobenius norm of `value_patch`, |step| / |m|, without making it."""
    return _norm(step_E) / _norm(read_D)


def value_patch_cosine(read_D: Tensor, step_E: Tensor, matrix_DE: Tensor) -> Tensor:
    """Cosine of `value_patch` with a matrix (minus a gradient, say), in [-1, 1], without making it; 0 if either is 0."""
    along = (read_D[..., None, :] @ matrix_DE @ step_E[..., :, None])[..., 0, 0]
    size = _norm(read_D) * _norm(step_E) * _norm(matrix_DE.flatten(-2))
    return torch.where(size > 0, along / size, 0.0)


def joined_cosine(cosine_N: Tensor, norm_N: Tensor, other_norm_N: Tensor) -> Tensor:
    """Cosine of N parts and N other parts, each joined to one vector, from the parts' cosines and norms; 0 if either is 0."""
    size = _norm(norm_N) * _norm(other_norm_N)
    return torch.where(size > 0, (cosine_N * norm_N * other_norm_N).sum(-1) / size, 0.0)


def joint_value_patch(read_KD: Tensor, step_KE: Tensor) -> Tensor:
    """The smallest change of W_v, (.., D, E), that serves K queries at once; exact where their read inputs are independent.

    One query gives `value_patch`.
    """
    inverse_DK: Tensor = torch.linalg.pinv(read_KD)
    return inverse_DK @ step_KE


def transfer_error(read_D: Tensor, step_E: Tensor, other_read_D: Tensor, other_step_E: Tensor) -> Tensor:
    """What a patch made for one query leaves of another query's step: |m' dW_v - step'| / |step'|.

    0: it serves the other one as well; 1: as bad as no patch at all; NaN where there is no step to make.
    """
    share = (other_read_D * read_D).sum(-1, keepdim=True) / read_D.square().sum(-1, keepdim=True)
    return _norm(share * step_E - other_step_E) / _norm(other_step_E)


def query_map(old_D: Tensor, new_D: Tensor) -> Tensor:
    """P, (.., D, D), with old P = new: with W_q' = P W_q the old last token asks what the new one asks."""
    identity = torch.eye(old_D.shape[-1], dtype=old_D.dtype, device=old_D.device)
    return identity + value_patch(old_D, new_D - old_D)


def linear_attention_update(state_DE: Tensor, key_D: Tensor, value_E: Tensor) -> Tensor:
    """The state after a token, S + k^T v, (.., D, E): exact for every query, which reads q S."""
    return state_DE + key_D[..., :, None] * value_E[..., None, :]


def delta_rule_update(state_DE: Tensor, key_D: Tensor, value_E: Tensor, beta: float | Tensor) -> Tensor:
    """The state after a token, S - beta k^T (k S - v), (.., D, E): a step of SGD with rate beta on |k S - v|^2 / 2.

    Rates of several heads are given with a last dimension of 1.
    """
    error_E = (key_D[..., None, :] @ state_DE)[..., 0, :] - value_E
    return linear_attention_update(state_DE, key_D, -beta * error_E)


def _norm(row_D: Tensor) -> Tensor:
    return row_D.square().sum(-1).sqrt()
