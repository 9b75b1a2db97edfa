import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from raml_ray.formulas import losses
from raml_ray.settings import TrainConfig
from raml_ray.text.batches import Example, batches, micro_batches
from raml_ray.workers import checkpoints, sharding
from raml_ray.workers.sft_plan import share
from raml_ray.workers.sharding import Sharded
from tests.workers import meters, ranks, tiny

EXAMPLES = tiny.examples(9)


def accumulated(learner: Sharded, examples: Sequence[Example], max_tokens: int, *, packing: bool = False) -> None:
    """The gradient of the examples' mean negative log-likelihood per response token, over all ranks."""
    mine = share(examples, learner.rank, learner.world_size)
    passes = int(learner.largest(len(micro_batches(mine, max_tokens, packing=packing))))
    count = learner.total(sum(len(example.response_token_ids) for example in mine))
    for index, batch in enumerate(batches(mine, max_tokens, passes, packing=packing), start=1):
        part = losses.cross_entropy(learner.token_logprobs(batch), batch.response_mask_BT)
        learner.accumulate(part.total / count, last=index == passes)


def gradients(max_tokens: int, num_examples: int = 9) -> dict[str, torch.Tensor]:
    learner = sharding.wrap(tiny.model(), TrainConfig())
    accumulated(learner, EXAMPLES[:num_examples], max_tokens)
    return {name: p.grad.full_tensor() for name, p in learner._module.named_parameters()}  # type: ignore[union-attr]


def undivided(num_examples: int = 9) -> dict[str, torch.Tensor]:
    """The same without sharding, padding or batching: one example after the other through the plain model."""
    model = tiny.model()
    total, count = torch.tensor(0.0), 0
    for example in EXAMPLES[:num_examples]:
        ids_BT = torch.tensor([[*example.prompt_token_ids, *example.response_token_ids]])
        logprob_TV = model(input_ids=ids_BT).logits[0, :-1].log_softmax(-1)
        start = len(example.prompt_token_ids) - 1
        total = total - logprob_TV.gather(1, ids_BT[0, 1:, None])[start:].sum()
        count += len(example.response_token_ids)
    (total / count).backward()
    return {f"model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 5e-6 * float(gradient.norm()), name


@pytest.mark.parametrize("max_tokens", [10_000, 40, 25, 1])
def test_any_split_into_micro_batches_gives_the_undivided_gradient(max_tokens: int) -> None:
    with ranks.alone():
        same(gradients(max_tokens), undivided())


def test_two_ranks_give_the_undivided_gradient_even_when_one_has_less_to_do() -> None:
    # At one example per pass rank 0 of two passes five times, rank 1 four times and once with nothing.
    for found in ranks.run(gradients, 2, 1):
        same(found, undivided())


def test_a_rank_without_any_example_neither_hangs_nor_changes_the_gradient() -> None:
    for found in ranks.run(gradients, 2, 10_000, 1):
        same(found, undivided(1))


def test_the_first_adamw_step_moves_each_weight_by_the_learning_rate() -> None:
    # After one step both moments are the gradient's: m / sqrt(v) = sign(g), but for epsilon.
    with ranks.alone():
        learner = sharding.wrap(tiny.model(), TrainConfig(grad_clip=1e9))
        accumulated(learner, EXAMPLES, 10_000)
        assert not learner.step(0.01).skipped
        moved = (
            learner.full_state()["model.layers.0.mlp.up_proj.weight"] - tiny.model().model.layers[0].mlp.up_proj.weight
        ).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01), atol=1e-4, rtol=0)


def test_the_gradient_norm_is_the_whole_gradients_and_clipping_scales_it() -> None:
    expected = torch.cat([g.flatten() for g in undivided().values()]).norm()
    for norm, moment in ranks.run(clipped, 2):
        assert norm == pytest.approx(float(expected), rel=1e-5)
        # AdamW's first moment is (1 - beta1) of the clipped gradient, whose norm is train.grad_clip.
        assert moment == pytest.approx((1 - 0.9) * 0.25, rel=1e-4)


def clipped() -> tuple[float, float]:
    learner = sharding.wrap(tiny.model(), TrainConfig(grad_clip=0.25))
    accumulated(learner, EXAMPLES, 30)
    norm = learner.step(0.01).grad_norm
    moments = [t for name, t in learner.state().items() if name.endswith(".exp_avg")]
    return norm, float(torch.cat([m.full_tensor().flatten() for m in moments]).norm())  # type: ignore[attr-defined]


def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_by_all() -> None:
    for skipped, counted, unchanged, later in ranks.run(poisoned, 2):
        assert (skipped, counted, unchanged, later) == (True, 1, True, False)


def poisoned() -> tuple[bool, int, bool, bool]:
    learner = sharding.wrap(tiny.model(), TrainConfig())
    before = {name: tensor.clone() for name, tensor in learner.full_tensors()}
    batch = next(batches(EXAMPLES, 10_000, 1))
    loss = learner.token_logprobs(batch).sum() * (float("nan") if learner.rank == 1 else 1.0)
    learner.accumulate(loss, last=True)
    first = learner.step(0.1)
    unchanged = all(torch.equal(tensor, before[name]) for name, tensor in learner.full_tensors())
    accumulated(learner, EXAMPLES, 10_000)
    second = learner.step(0.1)
    return first.skipped, learner.updates.skipped, unchanged, second.skipped or learner.updates.skipped_in_a_row > 0


def test_gathered_weights_are_the_models_by_the_models_names_on_rank_0() -> None:
    first, second = ranks.run(gathered, 2)
    expected = dict(tiny.model().named_parameters())
    assert first.keys() == expected.keys()
    assert all(torch.equal(first[name], tensor) for name, tensor in expected.items())
    assert second == {}


def gathered() -> dict[str, torch.Tensor]:
    return sharding.wrap(tiny.model(), TrainConfig()).full_state()


def test_a_layers_weights_come_by_one_exchange_from_ranks_with_unlike_parts() -> None:
    for exchanges, same in ranks.run(exchanged, 3):  # 32, 48 and 50 rows
        assert (exchanges, same) == (4, True), "the embedding's, two layers', and the last norm's"


def exchanged() -> tuple[int, bool]:
    learner, expected = sharding.wrap(tiny.model(), TrainConfig()), dict(tiny.model().named_parameters())
    found, exchanges = gathered_by(learner)
    same = all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    return exchanges, same and found.keys() == expected.keys()


def gathered_by(learner: Sharded) -> tuple[dict[str, torch.Tensor], int]:
    """Its whole weights, on every rank, and by how many exchanges between the ranks they came."""
    exchanges = []
    with pytest.MonkeyPatch.context() as patch:
        for exchange in (dist.all_gather_into_tensor, dist.all_reduce):

            def noted(*tensors: torch.Tensor, exchange: Callable[..., None] = exchange) -> None:
                exchanges.append(exchange)
                exchange(*tensors)

            patch.setattr(dist, exchange.__name__, noted)
        return dict(learner.full_tensors()), len(exchanges)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    with ranks.alone():
        learner = sharding.wrap(tiny.model(), TrainConfig(dtype="bfloat16"))
        accumulated(learner, EXAMPLES, 10_000)
        norm = learner.step(0.01).grad_norm
        exact = float(torch.cat([g.flatten() for g in undivided().values()]).norm())
        assert norm == pytest.approx(exact, rel=0.05) and norm != pytest.approx(exact, rel=1e-6)
        assert {t.dtype for t in learner.full_state().values()} == {torch.float32}
        assert {t.dtype for t in learner.full_state(torch.bfloat16).values()} == {torch.bfloat16}


def test_recomputed_activations_are_not_kept_and_change_nothing() -> None:
    kept, found = [], []
    with ranks.alone():
        for recomputes in (False, True):
            learner = sharding.wrap(tiny.model(), TrainConfig(activation_checkpointing=recomputes))
            learner.train()
            with meters.kept_for_backward() as sizes:
                loss = learner.token_logprobs(next(batches(EXAMPLES, 10_000, 1, packing=True))).sum()
            kept.append(sum(sizes))
            learner.accumulate(loss, last=True)
            found.append([p.grad.full_tensor() for p in learner._module.parameters()])  # type: ignore[union-attr]
    assert kept[1] < kept[0] / 3
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_a_policy_that_cannot_recompute_its_activations_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with ranks.alone(), pytest.raises(ValueError, match=r"set train\.activation_checkpointing=false"):
        sharding.wrap(model, TrainConfig(activation_checkpointing=True))


def trained(folder: str, steps: Sequence[int], *, keep: int = 2) -> dict[str, torch.Tensor]:
    """Weights after as many updates, with a checkpoint after each."""
    learner = sharding.wrap(tiny.model(), TrainConfig())
    for step in steps:
        accumulated(learner, EXAMPLES[step : step + 4], 10_000)
        learner.step(0.01)
        checkpoints.save(folder, step, learner.state(), {"seed": 7}, keep=keep)
    return learner.full_state()


def resumed(folder: str, steps: Sequence[int]) -> tuple[Any, dict[str, torch.Tensor]]:
    """What was restored into another model, and the weights after the steps that follow."""
    learner = sharding.wrap(tiny.model(seed=99), TrainConfig())
    found = checkpoints.load(folder, learner.state())
    for step in steps:
        accumulated(learner, EXAMPLES[step : step + 4], 10_000)
        learner.step(0.01)
    return found, learner.full_state()


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_restored_learner_goes_on_to_the_very_same_weights(tmp_path: Path) -> None:
    with ranks.alone():
        straight = trained(str(tmp_path / "a"), [1, 2, 3, 4])
        trained(str(tmp_path / "b"), [1, 2])
        found, weights = resumed(str(tmp_path / "b"), [3, 4])
    assert found == checkpoints.Restored(2, {"seed": 7})
    assert equal(weights, straight)


def test_another_number_of_ranks_reads_the_checkpoint(tmp_path: Path) -> None:
    weights = ranks.run(trained, 2, str(tmp_path), [1, 2])[0]
    with ranks.alone():
        found, alone = resumed(str(tmp_path), [])
    assert found.step == 2
    assert equal(alone, weights)


def test_only_the_newest_checkpoints_are_kept_and_half_written_ones_go(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "__0_0.distcp").write_text("half")
    with ranks.alone():
        trained(str(tmp_path), [2, 3, 4])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_without_a_commit_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    with ranks.alone():
        trained(str(tmp_path), [1, 2])
        (tmp_path / "step-00000002" / "COMMIT").unlink()
        assert resumed(str(tmp_path), [])[0].step == 1
        assert resumed(str(tmp_path / "nowhere"), [])[0] is None


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "manifest.json", "COMMIT"])
def test_one_flipped_bit_anywhere_falls_back_on_the_checkpoint_before(tmp_path: Path, name: str) -> None:
    with ranks.alone():
        before = trained(str(tmp_path), [1])
        trained(str(tmp_path), [1, 2])
        file = tmp_path / "step-00000002" / name
        content = bytearray(file.read_bytes())
        content[random.Random(0).randrange(len(content))] ^= 1
        file.write_bytes(content)
        found, weights = resumed(str(tmp_path), [])
    assert found.step == 1
    assert equal(weights, before)


def test_with_every_checkpoint_damaged_training_does_not_start_over_in_silence(tmp_path: Path) -> None:
    with ranks.alone():
        trained(str(tmp_path), [1], keep=1)
        (tmp_path / "step-00000001" / "__0_0.distcp").unlink()
        with pytest.raises(ValueError, match="every checkpoint is damaged"):
            resumed(str(tmp_path), [])
