"""Every vector of data/vectors.json, by what this package computes: a vector without a test, and an entry that its test does
not look at, are told.
"""

import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.linalg import vector_norm

from raml_ray.formulas import advantages, landscape, lhat, losses, metrics, policy_losses, pseudo_update, rewards, roles
from raml_ray.settings import SftConfig
from raml_ray.text import support


class Vector(dict[str, Any]):
    """A vector that knows which of its entries nobody has looked at."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({name: _vectors(value) for name, value in values.items()})
        self._unseen = set(values)

    def __getitem__(self, name: str) -> Any:
        self._unseen.discard(name)
        return super().__getitem__(name)

    def unseen(self) -> Iterator[str]:
        for name, value in self.items():
            if name in self._unseen:
                yield name
            elif isinstance(value, Vector) or (isinstance(value, list) and value and isinstance(value[0], Vector)):
                for one in [value] if isinstance(value, Vector) else value:
                    yield from (f"{name}.{inside}" for inside in one.unseen())


def _vectors(value: Any) -> Any:
    if isinstance(value, dict):
        return Vector(value)
    return [_vectors(one) for one in value] if isinstance(value, list) else value


def exactly(fraction: str) -> Any:
    return pytest.approx(float(Fraction(fraction)), abs=1e-15)


def metric_rows(rows: list[Vector]) -> None:
    for row in rows:
        n, c, k = row["n"], row["c"], row["k"]
        assert metrics.pass_at_k(n, c, k) == exactly(row["pass_at_k"]) == pytest.approx(row["pass_f"], abs=1e-15)
        assert metrics.mg_pass_at_k(n, c, k) == exactly(row["mg"]) == pytest.approx(row["mg_f"], abs=1e-15)
        of_tau = row["g"]
        for tau in of_tau:
            expected = exactly(of_tau[tau])
            assert metrics.g_pass_at_k(n, c, k, Fraction(tau)) == expected
            assert metrics.g_pass_at_k(n, c, k, float(Fraction(tau))) == expected


def metric_sets(sets: list[Vector]) -> None:
    for one in sets:
        counts, n, k = one["counts"], one["n"], one["k"]
        assert 100 * np.mean([metrics.pass_at_k(n, c, k) for c in counts]) == pytest.approx(one["pass_pct"])
        assert 100 * np.mean([metrics.mg_pass_at_k(n, c, k) for c in counts]) == pytest.approx(one["mg_pct"])


def ema(vector: Vector) -> None:
    curve = lhat.paper_curve(vector["raw"], alpha=0.01)
    assert curve.kept.tolist() == vector["kept"]
    assert curve.point.tolist() == [0, 1, 3, 4, 5]
    assert curve.position.tolist() == vector["index"]
    assert curve.smooth.tolist() == pytest.approx(vector["smooth_alpha_0.01"], abs=1e-12)


def ema_lag(vector: Vector) -> None:
    """What the average needs to forget a step, counted by what it says on both sides of the number."""
    from_1 = lhat.ema([1.0] + [0.0] * 200, alpha=0.01)
    constant = vector["time_constant_tokens"]
    assert from_1[math.floor(constant)] > 1 / math.e > from_1[math.ceil(constant)]
    from_4 = lhat.ema([4.5] + [0.0] * 3400, alpha=0.01)
    num_tokens = vector["tokens_to_fall_from_4.5_to_0.1"]
    assert from_4[math.floor(num_tokens)] > 0.1 > from_4[math.ceil(num_tokens)]
    index = lhat.normalised_index(3401)
    assert index[from_4 > 0.1].max() < vector["as_index_of_3400"] < index[from_4 < 0.1].min()


def relative_change(vector: Vector) -> None:
    changes = roles.paper_changes(vector["L"])
    assert changes.tolist() == pytest.approx(vector["all"])
    assert changes.mean() == pytest.approx(vector["mean"])
    assert changes.std() == pytest.approx(vector["std_population"])
    start = vector["token_ids"].index(vector["reflection_id"])
    # The notebook looks one token beyond the word; the same window is the word's own token alone.
    assert roles.paper_word_change(vector["L"], start, 1) == pytest.approx(vector["reflection_notebook"])
    assert changes[start - 1] == pytest.approx(vector["reflection_same_window"])


def sft_padding(vector: Vector) -> None:
    labels, results = vector["labels"], vector["result"]
    names, lengths = [f"q{number}" for number in range(len(labels))], [[0] * len(row) for row in labels]
    for num_trajectories in results:
        settings, expected = SftConfig(num_trajectories=int(num_trajectories), pad_to=8), results[num_trajectories]
        examples = support.choose(names, labels, lengths, settings, 42, None)
        assert len(examples) == expected["size"]
        for question in range(len(labels)):
            chosen = [index for owner, index in examples if owner == question]
            assert len(chosen) == expected["per_question"][str(question)]
            assert len(set(chosen)) == expected["distinct"][str(question)]
            assert all(labels[question][index] for index in chosen)


def reward(vector: Vector) -> None:
    correct_QG, well_formed_QG = torch.tensor([[1, 0, 1, 0]]).bool(), torch.tensor([[1, 1, 0, 0]]).bool()
    reward_QG = rewards.paper(correct_QG, well_formed_QG)
    assert reward_QG[0].tolist() == vector["TT,FT,TF,FF"]
    assert advantages.standardized(reward_QG)[0].tolist() == pytest.approx(vector["group_adv_ddof1"], abs=1e-6)


def adv16(vector: Vector) -> None:
    reward_QG, of_reward = torch.tensor([vector["rewards"]], dtype=torch.float32), vector["adv"]
    expected = {float(value): of_reward[value] for value in of_reward}
    standardized_QG, centered_QG = advantages.standardized(reward_QG), advantages.centered(reward_QG)
    assert standardized_QG[0].tolist() == pytest.approx([expected[one] for one in reward_QG[0].tolist()], abs=1e-6)
    assert (reward_QG - centered_QG)[0].tolist() == pytest.approx([vector["mean"]] * 16, abs=1e-6)
    assert (centered_QG / standardized_QG)[0].tolist() == pytest.approx([vector["std_ddof1"]] * 16, abs=1e-5)


def gen_mask_loss(vector: Vector) -> None:
    logprob_BT = torch.tensor(vector["ratio"]).log()
    advantage_BT = torch.tensor([[1.0], [-1.0]]).expand(2, 3)

    def mean(mask: list[list[int]], clip_high: float = 0.2) -> float:
        mask_BT, old_BT = torch.tensor(mask), torch.zeros(2, 3)
        bounds = {"clip_low": 0.2, "clip_high": clip_high}
        loss_BT = policy_losses.token_ratio(logprob_BT, old_BT, advantage_BT, mask_BT, **bounds).loss_BT
        return losses.masked(loss_BT, mask_BT).mean.item()

    # row 0, A = +1: -1.2 (clipped), -1, -0.5: mean -0.9; row 1, A = -1, two tokens: 1, 2: mean 1.5; all: 0.3 / 5
    assert mean([[1, 1, 1], [1, 1, 0]]) == pytest.approx(vector["all"], abs=1e-6)
    assert mean([[1, 1, 1], [0, 0, 0]]) == pytest.approx(vector["row0_only"], abs=1e-6)
    assert mean([[0, 0, 0], [1, 1, 0]]) == pytest.approx(vector["row1_only"], abs=1e-6)
    assert mean([[1, 1, 1], [1, 1, 0]], clip_high=0.28) == pytest.approx(vector["hi_0.28"], abs=1e-6)
    assert "NaN in verl" in vector["empty_mask"]
    assert mean([[0, 0, 0], [0, 0, 0]]) == 0.0  # here nothing counted is nothing lost


def landscape_norm(vector: Vector) -> None:
    weight, direction = torch.tensor(vector["W"]), torch.tensor(vector["D"])
    # |W| = sqrt(26), |D| = sqrt(5); rows of W are 5 and 1 long, those of D 1 and 2
    for kind, name in (("tensor", "raml_tensor_norm"), ("filter", "li2018_filter_norm")):
        expected = torch.tensor(vector[name])
        assert torch.allclose(landscape.normalised(direction, weight, kind), expected, rtol=1e-6, atol=0)


def grid(vector: Vector) -> None:
    """The notebook's ten points to a side miss the unmoved weights and are refused; an odd number has them."""
    steps = np.linspace(-1, 1, 10)
    assert bool((steps == 0).any()) is vector["linspace(-1,1,10)_contains_0"]
    assert np.abs(steps).min() == pytest.approx(vector["closest_to_0"])
    with pytest.raises(ValueError, match="10 points to a side"):
        landscape.grid(1.0, 10)
    points = landscape.grid(1.0, 51)
    assert ((0.0, 0.0) in points) is vector["linspace(-1,1,51)_contains_0"]
    assert sorted({point.x for point in points}) == pytest.approx(np.linspace(-1, 1, 51).tolist(), abs=1e-15)


def bf16_drift(vector: Vector) -> None:
    """Adding and subtracting moves in place, as the notebook does, walks away from the weights; summing each point from
    them in float32 does not."""
    generator = torch.Generator().manual_seed(0)
    shape = (256, 256)
    before = torch.randn(shape, generator=generator).bfloat16()
    first, second = (
        landscape.normalised(torch.randn(shape, generator=generator), before, "tensor").bfloat16() for _ in range(2)
    )
    in_place, drift = before.clone(), []

    def away(weight: torch.Tensor) -> float:
        return float(vector_norm(weight.float() - before.float()) / vector_norm(before.float()))

    steps = np.linspace(-1, 1, 10).tolist()
    for point in (landscape.Point(x, y) for x in steps for y in steps):
        move = point.x * first + point.y * second
        in_place += move
        in_place -= move
        drift.append(away(in_place))
        moved = landscape.moved({"w": before}, {"w": first}, {"w": second}, point)["w"]
        assert away(moved) > 0.1  # it went somewhere
    for count in (1, 10, 50, 100):
        assert drift[count - 1] == pytest.approx(vector[f"after_{count}"], rel=0.05)
    assert away(landscape.moved({"w": before}, {"w": first}, {"w": second}, landscape.Point(0.0, 0.0))["w"]) == 0


def prop21(vector: Vector) -> None:
    """Query t, keys [E; t], W_q = W_k = 1."""

    def tensor(name: str) -> torch.Tensor:
        return torch.tensor(vector[name], dtype=torch.float64)

    def close(found: torch.Tensor, name: str) -> None:
        assert torch.allclose(found, tensor(name), rtol=0, atol=1e-12), name

    old, new, w_v = tensor("E"), tensor("t"), tensor("Wv")
    assert vector["Wq"] == vector["Wk"] == "I3"
    keys = torch.cat([old, new[None]])
    logits = new @ keys.T
    close(logits, "logits")
    written = pseudo_update.write(logits[None], keys @ w_v, torch.tensor([False, False, True]))
    read = (written.old_attention_KT @ keys)[0]
    mass, old_share = written.mass_K[0], written.old_attention_KT[0, :2]
    close(torch.cat([(1 - mass) * old_share, mass[None]]), "p")
    close(written.output_KE[0], "o")
    close(written.old_output_KE[0], "o_l")
    close((written.old_output_KE + written.direction_KE)[0], "v_t")
    close(read, "m")
    patch = pseudo_update.value_patch(read, written.step_KE[0])
    close(patch, "dWv")
    assert torch.linalg.matrix_rank(patch) == 1
    assert float(patch.norm()) == pytest.approx(vector["dWv_fro"], abs=1e-12)
    assert float(pseudo_update.value_patch_norm(read, written.step_KE[0])) == pytest.approx(
        vector["dWv_fro"], abs=1e-12
    )
    query_map = pseudo_update.query_map(old[-1], new)
    close(query_map, "P_with_xP_eq_t")
    assert torch.allclose(old[-1] @ query_map, new, rtol=0, atol=1e-12)


TESTS: dict[str, Callable[[Any], None]] = {
    "metrics": metric_rows,
    "metric_sets": metric_sets,
    "prop21": prop21,
    "misc.ema": ema,
    "misc.ema_lag": ema_lag,
    "misc.relative_change": relative_change,
    "misc.sft_padding": sft_padding,
    "misc.reward": reward,
    "misc.adv16": adv16,
    "misc.gen_mask_loss": gen_mask_loss,
    "misc.landscape_norm": landscape_norm,
    "misc.grid": grid,
    "misc.bf16_inplace_drift_rel": bf16_drift,
}


def vectors() -> dict[str, Any]:
    whole = json.loads((Path(__file__).parent / "data" / "vectors.json").read_text())
    inside = {f"misc.{name}": value for name, value in whole.pop("misc").items()}
    return {name: _vectors(value) for name, value in {**whole, **inside}.items()}


@pytest.mark.parametrize("name", vectors())
def test_every_entry_of_every_vector_is_met(name: str) -> None:
    vector = vectors()[name]
    TESTS[name](vector)
    left = [entry for one in (vector if isinstance(vector, list) else [vector]) for entry in one.unseen()]
    assert not left, f"{name}: no test looks at {left}"


def test_an_entry_that_nobody_looks_at_is_told() -> None:
    vector = Vector({"seen": 1, "not": 2, "inside": {"seen": [1, 2], "not": 3}, "rows": [{"seen": 0}, {"not": 0}]})
    assert vector["seen"] + sum(vector["inside"]["seen"]) + vector["rows"][0]["seen"] == 4
    assert list(vector.unseen()) == ["not", "inside.not", "rows.not"]
