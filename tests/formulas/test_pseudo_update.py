"""The exact pseudo-update: hand-made numbers, exactness for its own query, and for every query in linear attention."""

import pytest
import torch

from raml_ray.formulas import pseudo_update as pu


@pytest.mark.parametrize("num_old", [1, 4, 64])
def test_patched_weights_without_the_token_give_what_the_token_gave(num_old: int) -> None:
    """The whole of Prop. 2.1: query, keys and values from the old tokens alone, under changed weights."""
    generator = torch.Generator().manual_seed(num_old)
    size = 32
    w_q, w_k, w_v = (torch.randn(size, size, generator=generator).double() for _ in range(3))
    old = torch.randn(num_old, size, generator=generator).double()
    token = torch.randn(size, generator=generator).double()
    keys = torch.cat([old, token[None]])
    logit_T = (token @ w_q) @ (keys @ w_k).T / size
    written = pu.write(logit_T[None], keys @ w_v, torch.arange(num_old + 1) == num_old)
    whole = logit_T.softmax(-1) @ keys @ w_v
    assert torch.allclose(written.output_KE[0], whole, rtol=0, atol=1e-11)
    new_w_q = pu.query_map(old[-1], token) @ w_q
    new_w_v = w_v + pu.value_patch((written.old_attention_KT @ keys)[0], written.step_KE[0])
    without = ((old[-1] @ new_w_q) @ (old @ w_k).T / size).softmax(-1) @ old @ new_w_v
    assert torch.allclose(without, whole, rtol=0, atol=1e-10)


def test_the_patch_fails_for_another_query_and_says_by_how_much() -> None:
    generator = torch.Generator().manual_seed(6)
    keys, w_v = (torch.randn(3, 3, generator=generator).double() for _ in range(2))
    logit_KT = torch.tensor([[1.0, 0.0, 1.5], [0.0, 2.0, 0.0]]).double()
    last_is_new = torch.tensor([False, False, True])
    written, other = (pu.write(logit_KT[row, None], keys @ w_v, last_is_new) for row in (0, 1))
    read_D, other_read_D = ((one.old_attention_KT @ keys)[0] for one in (written, other))
    by_matrix = other_read_D @ pu.value_patch(read_D, written.step_KE[0]) - other.step_KE[0]
    error = pu.transfer_error(read_D, written.step_KE[0], other_read_D, other.step_KE[0])
    assert error.item() == pytest.approx((by_matrix.norm() / other.step_KE[0].norm()).item(), abs=1e-12)
    assert error > 0.1
    assert pu.transfer_error(read_D, written.step_KE[0], read_D, written.step_KE[0]) < 1e-12


def test_one_patch_serves_as_many_queries_as_read_independent_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    read_KD = torch.randn(3, 8, generator=generator).double()
    step_KE = torch.randn(3, 5, generator=generator).double()
    assert torch.allclose(read_KD @ pu.joint_value_patch(read_KD, step_KE), step_KE, rtol=0, atol=1e-12)
    one = pu.joint_value_patch(read_KD[:1], step_KE[:1])
    assert torch.allclose(one, pu.value_patch(read_KD[0], step_KE[0]), rtol=0, atol=1e-12)


def test_several_new_tokens_are_one_write_of_their_mean_value() -> None:
    logit_KT = torch.zeros(1, 4).double()
    value_TE = torch.tensor([[0.0], [2.0], [6.0], [10.0]]).double()
    written = pu.write(logit_KT, value_TE, torch.tensor([False, False, True, True]))
    # half of the attention is new; the old mean is 1, the new one 8
    assert (written.mass_K.item(), written.old_output_KE.item(), written.direction_KE.item()) == (0.5, 1.0, 7.0)
    assert written.output_KE.item() == pytest.approx(4.5)


def test_cosines_are_those_of_the_patch_as_a_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    read_HD, step_HE = torch.randn(2, 6, generator=generator), torch.randn(2, 4, generator=generator)
    matrix_HDE = torch.randn(2, 6, 4, generator=generator)
    expected = torch.cosine_similarity(pu.value_patch(read_HD, step_HE).flatten(1), matrix_HDE.flatten(1))
    assert torch.allclose(pu.value_patch_cosine(read_HD, step_HE, matrix_HDE), expected, atol=1e-6)
    own = pu.value_patch_cosine(read_HD, step_HE, 3 * pu.value_patch(read_HD, step_HE))
    assert own.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert pu.value_patch_cosine(read_HD, 0 * step_HE, matrix_HDE).tolist() == [0.0, 0.0]


def test_cosines_of_parts_join_to_the_cosine_of_the_whole() -> None:
    one_ND, other_ND = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    cosine_N = torch.cosine_similarity(one_ND, other_ND)
    joined = pu.joined_cosine(cosine_N, one_ND.norm(dim=-1), other_ND.norm(dim=-1))
    assert joined.item() == pytest.approx(torch.cosine_similarity(one_ND.flatten(), other_ND.flatten(), 0).item())
    assert pu.joined_cosine(cosine_N, torch.zeros(3), torch.ones(3)).item() == 0.0


def test_a_token_in_linear_attention_is_an_update_for_every_query() -> None:
    generator = torch.Generator().manual_seed(2)
    key_TD, value_TE = (torch.randn(5, 8, generator=generator).double() for _ in range(2))
    state_DE = torch.zeros(8, 8).double()
    for key_D, value_E in zip(key_TD, value_TE, strict=True):
        state_DE = pu.linear_attention_update(state_DE, key_D, value_E)
    query_KD = torch.randn(7, 8, generator=generator).double()
    assert torch.allclose(query_KD @ state_DE, (query_KD @ key_TD.T) @ value_TE, rtol=0, atol=1e-12)


def test_the_delta_rule_is_a_step_of_sgd() -> None:
    generator = torch.Generator().manual_seed(3)
    key_D, value_E = (torch.randn(8, generator=generator).double() for _ in range(2))
    state_DE = torch.randn(8, 8, generator=generator).double().requires_grad_()
    ((key_D @ state_DE - value_E).square().sum() / 2).backward()
    assert state_DE.grad is not None
    expected = state_DE.detach() - 0.3 * state_DE.grad
    found = pu.delta_rule_update(state_DE.detach(), key_D, value_E, 0.3)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    # with a unit key and rate 1 the state then holds the value
    unit_D = key_D / key_D.norm()
    assert torch.allclose(unit_D @ pu.delta_rule_update(found, unit_D, value_E, 1.0), value_E, rtol=0, atol=1e-12)


def test_writes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="some must be new"):
        pu.write(torch.zeros(1, 2), torch.zeros(2, 3), torch.tensor([False, False]))
    with pytest.raises(ValueError, match=r"got \(1, 2\), \(3, 3\)"):
        pu.write(torch.zeros(1, 2), torch.zeros(3, 3), torch.tensor([False, True]))
