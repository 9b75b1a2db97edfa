"""Adapters beside frozen weights, and the merged policy that engines and folders get."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from raml_ray.miniature import tokenizer as miniature
from raml_ray.records import Verdict
from raml_ray.settings import EngineConfig, GrpoConfig, SftConfig, TrainConfig
from raml_ray.stages import learners
from raml_ray.storage import Folder
from raml_ray.text.batches import Example, collate
from raml_ray.workers import checkpoints, grpo_loop, lora, policy, sft_loop, sft_plan, sharding, weights
from raml_ray.workers.engine import Engine
from raml_ray.workers.rollouts import Rollout
from tests.workers import ranks, tiny

LIMITS = TrainConfig(lora_rank=4, lora_alpha=8, max_tokens_per_micro_batch=60, checkpoint_every=2)
SETTINGS = SftConfig(batch_size=4, num_epochs=2, learning_rate=0.02, warmup_steps=1)
NUM_EXAMPLES = 10  # by 4 are 3 steps, twice
BATCH = collate(tiny.examples(6, seed=9))


def trained(learner: sharding.Sharded, until: int = 6, start: int = 0, folder: str = "") -> list[float]:
    """The losses of SFT up to that step; with a folder its checkpoints are written there."""
    found: list[float] = []
    plan = sft_plan.plan([NUM_EXAMPLES], SETTINGS, 3)._replace(num_steps=until)
    examples = tiny.examples(NUM_EXAMPLES)

    def report(step: int, metrics: Mapping[str, float]) -> None:
        found.append(metrics["sft/loss"])

    def save(step: int) -> None:
        if folder:
            checkpoints.save(folder, step, learner.state(), {}, keep=1)

    shares = tiny.shares(plan, examples, start, learner.rank, learner.world_size)
    sft_loop.train(
        learner, plan, shares, SETTINGS.model_copy(update={"schedule": "constant"}), LIMITS,
        seed=3, start_step=start, report=report, save=save,
    )  # fmt: skip
    return found


def logprobs(learner: sharding.Sharded) -> torch.Tensor:
    with torch.no_grad():
        return learner.token_logprobs(BATCH)


def of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return policy.token_logprobs(
            model,  # type: ignore[arg-type]
            BATCH.input_ids_BT,
            BATCH.attention_mask_BT,
            BATCH.position_ids_BT,
            needed_BT=BATCH.response_mask_BT,
        )


def test_merging_adds_the_weighted_product_of_the_thin_matrices() -> None:
    tensors = {
        "q.base_layer.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "q.base_layer.bias": torch.tensor([5.0, 6.0]),
        "q.lora_A.default.weight": torch.tensor([[1.0, 0.0]]),
        "q.lora_B.default.weight": torch.tensor([[2.0], [1.0]]),
        "norm.weight": torch.tensor([7.0]),
    }
    found = dict(lora.merged(tensors.items(), TrainConfig(lora_rank=1, lora_alpha=3)))
    # 3 / 1 times [2 1]^T [1 0] = [[6 0] [3 0]]
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "q.weight": [[7, 2], [6, 4]],
        "q.bias": [5, 6],
        "norm.weight": [7],
    }


def test_the_frozen_weights_stay_and_the_merged_folder_is_the_policy_that_was_trained(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "base")
    miniature.build().save_pretrained(tmp_path / "base")
    before = dict(tiny.model().named_parameters())
    with ranks.alone():
        learner = sharding.wrap(tiny.model(), LIMITS)
        torch.testing.assert_close(logprobs(learner), of(tiny.model()), atol=1e-6, rtol=0)
        losses = trained(learner)
        assert losses[-1] < losses[0]
        frozen = {n.removeprefix("model."): p for n, p in learner._module.named_parameters() if not p.requires_grad}
        assert all(torch.equal(p.full_tensor(), before[n.replace(lora.BASE, ".")]) for n, p in frozen.items())  # type: ignore[union-attr]
        # Every linear layer, 7 in each of two, has A and B and nothing else is trained or kept.
        kept = [name for name in learner.state() if name.startswith("model.")]
        assert len(kept) == 2 * 2 * 7 and all("lora_" in name for name in kept)
        learners.save_policy(learner, Folder(str(tmp_path)), str(tmp_path / "base"))
        expected = logprobs(learner)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert {name for name, _ in made.named_parameters()} == set(before)
    torch.testing.assert_close(of(made), expected, atol=1e-5, rtol=0)
    assert float((expected - of(tiny.model())).abs().max()) > 0.1
    changed = {name for name, weight in made.named_parameters() if not torch.equal(weight, before[name])}
    assert {name.split(".")[-2] for name in changed} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_two_ranks_train_the_adapters_of_one_and_a_run_cut_off_goes_on_exactly(tmp_path: Path) -> None:
    with ranks.alone():
        learner = fresh()
        straight = trained(learner)
        alone = learner.full_state()
        trained(fresh(), until=4, folder=str(tmp_path))
        resumed = fresh(seed=5)  # of other adapters, which the checkpoint replaces
        restored = checkpoints.load(str(tmp_path), resumed.state())
        assert restored is not None and restored.step == 4
        assert trained(resumed, start=4) == straight[4:]
        assert all(torch.equal(tensor, alone[name]) for name, tensor in resumed.full_state().items())
    (losses, state), (others, nothing) = ranks.run(on_a_rank, 2)
    assert losses == others == pytest.approx(straight, abs=1e-5)
    assert nothing == {}
    assert all(torch.allclose(tensor, alone[name], atol=1e-4) for name, tensor in state.items())


def fresh(seed: int = 11) -> sharding.Sharded:
    model = tiny.model()
    torch.manual_seed(seed)
    return sharding.wrap(model, LIMITS)


def on_a_rank() -> tuple[list[float], dict[str, torch.Tensor]]:
    learner = fresh()
    return trained(learner), learner.full_state()


def test_grpo_moves_the_adapters_and_publishes_the_merged_policy() -> None:
    settings = GrpoConfig(num_steps=1, questions_per_step=1, num_trajectories=2, num_updated=2, num_minibatches=1)
    answers = {Verdict.CORRECT: [5, 6], Verdict.WRONG: [7, 8, 9]}
    group = [Rollout("q", [1, 2], ids, [-1.0] * len(ids), "stop", 0, verdict) for verdict, ids in answers.items()]
    published: list[dict[str, torch.Tensor]] = []

    with ranks.alone():
        learner = fresh()

        def publish(version: int) -> Mapping[str, float]:
            published.append(learner.full_state())
            return {}

        grpo_loop.train(
            learner, settings, LIMITS, seed=0, start_version=0, sample=lambda version: ([group], {}), publish=publish,
            report=lambda version, metrics: None, save=lambda version: None,
        )  # fmt: skip
    first, second = published
    base = dict(tiny.model().named_parameters())
    assert all(torch.equal(tensor, base[name]) for name, tensor in first.items())
    assert {name for name in first if not torch.equal(first[name], second[name])} == {
        name for name in base if name.endswith("_proj.weight")
    }


def test_targets_are_linear_layers_of_the_policy() -> None:
    with ranks.alone():
        learner = sharding.wrap(tiny.model(), TrainConfig(lora_rank=2, lora_targets=("q_proj", "v_proj")))
        assert {n.split(".")[-4] for n in learner.state() if "lora_A" in n and n.startswith("model.")} == {
            "q_proj",
            "v_proj",
        }
        with pytest.raises(
            ValueError, match=r"train\.lora_targets: lm_head, query are no linear layers of qwen2 .* q_pro"
        ):
            sharding.wrap(tiny.model(), TrainConfig(lora_rank=2, lora_targets=("q_proj", "query", "lm_head")))


@pytest.mark.vllm
def test_an_engine_that_takes_over_merged_weights_agrees_with_the_adapted_learner(tmp_path: Path) -> None:
    def model() -> torch.nn.Module:
        return tiny.served(vocab_size=tiny.VOCABULARY, max_position_embeddings=64, seed=0)

    model().save_pretrained(tmp_path)  # type: ignore[operator]
    sequences = [[3, 1, 4, 1, 5, 9, 2, 6], [8, 9, 7, 9], [49, 0]]
    with ranks.alone():  # ends before the engine makes a process group of its own
        learner = sharding.wrap(model(), LIMITS)  # type: ignore[arg-type]
        trained(learner)
        batch = collate([Example(ids[:1], ids[1:]) for ids in sequences])
        with torch.no_grad():
            rows = batch.split(learner.token_logprobs(batch))
        mine = [row[1:].numpy() for row in rows]
        merged = weights.pack(learner.full_tensors())
    engine = Engine(str(tmp_path), EngineConfig(max_model_len=64, kv_cache_gib=0.05, max_num_seqs=16), seed=0)
    assert weights.compare(engine.token_logprobs(sequences), mine).max_abs > 1e-2
    engine.load_weights([merged], 1)
    assert weights.compare(engine.token_logprobs(sequences), mine).max_abs < 1e-5
    engine.close()
