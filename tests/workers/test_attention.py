"""Packed rows against the same examples padded, which transformers' own attention computes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DogeConfig,
    DogeForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from raml_ray.formulas import losses, policy_losses
from raml_ray.settings import GrpoConfig, TrainConfig
from raml_ray.text.batches import Batch, Example, batches, collate, micro_batches
from raml_ray.workers import attention, grpo_update, policy, sft_plan, sharding
from tests.workers import ranks, test_grpo_loop, test_sft_loop, tiny

CPU = torch.device("cpu")
GROUPED = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "attn_implementation": "sdpa",
}
"""Four heads on two keys: grouped queries."""
LAYER_TYPES = ["sliding_attention", "full_attention"]
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=5)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, sliding_window=5, layer_types=LAYER_TYPES)),
}
EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "pad_token_id": 0}


def model(name: str, *, packing: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    made = ARCHITECTURES[name]()
    if packing:
        attention.use_packed(made)
    return made


def examples(count: int = 9) -> list[Example]:
    """Of several lengths, two pairs of which are equal, with what GRPO needs to know of each response token."""
    draw = torch.Generator().manual_seed(4)
    plain = tiny.examples(count)
    plain = [*plain, replace(plain[0]), Example(plain[1].prompt_token_ids, plain[1].response_token_ids[::-1])]
    made = []
    for example in plain:
        size = len(example.response_token_ids)
        old = (-4 + torch.randn(size, generator=draw)).tolist()
        fields = {"old_logprob": old, "advantage": torch.randn(size, generator=draw).tolist()}
        made.append(replace(example, fields=fields))
    return made


def cross_entropy(logprob_BT: Tensor, batch: Batch) -> losses.Part:
    return losses.cross_entropy(logprob_BT, batch.response_mask_BT)


def surrogate(logprob_BT: Tensor, batch: Batch) -> losses.Part:
    old_BT, advantage_BT = batch.fields["old_logprob"], batch.fields["advantage"]
    mask_BT = batch.response_mask_BT
    found = policy_losses.token_ratio(logprob_BT, old_BT, advantage_BT, mask_BT, clip_low=0.2, clip_high=0.2)
    return losses.masked(found.loss_BT, mask_BT)


Loss = Callable[[Tensor, Batch], losses.Part]


def trained(
    of: PreTrainedModel, loss: Loss, groups: Sequence[Sequence[Example]], *, packing: bool
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss per response token and its gradient."""
    total, count = 0.0, sum(len(example.response_token_ids) for group in groups for example in group)
    for group in groups:
        batch = collate(group, packing=packing)
        logprob_BT = policy.token_logprobs(
            of,
            batch.input_ids_BT,
            batch.attention_mask_BT,
            batch.position_ids_BT,
            needed_BT=batch.response_mask_BT,
        )
        part = loss(logprob_BT, batch).total / count
        part.backward()
        total += float(part.detach())
    return total, {name: p.grad for name, p in of.named_parameters() if p.grad is not None}


def same(found: tuple[float, Mapping[str, Tensor]], expected: tuple[float, Mapping[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("loss", [cross_entropy, surrogate])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_and_padded_examples_have_one_loss_and_one_gradient(name: str, loss: Loss) -> None:
    padded = trained(model(name, packing=False), loss, [examples()], packing=False)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in padded[1].values())
    same(trained(model(name, packing=True), loss, [examples()], packing=True), padded)


def test_neither_the_order_within_a_row_nor_the_token_budget_changes_anything() -> None:
    whole = trained(model("qwen2", packing=True), surrogate, [examples()], packing=True)
    rows = [[examples()[::-1]], *(micro_batches(examples(), budget, packing=True) for budget in (1, 25, 40))]
    assert len({len(groups) for groups in rows}) == 4
    for groups in rows:
        same(trained(model("qwen2", packing=True), surrogate, groups, packing=True), whole)


def test_a_sequence_sees_nothing_of_its_neighbours() -> None:
    of, (first, *others) = model("qwen2", packing=True).eval(), examples()

    def values(group: Sequence[Example]) -> list[Tensor]:
        batch = collate(group, packing=True)
        return batch.split(policy.token_logprobs(of, batch.input_ids_BT, None, batch.position_ids_BT))

    alone = values([first])[0]
    for group in ([first, *others], [*others, first]):
        torch.testing.assert_close(values(group)[group.index(first)], alone, atol=1e-6, rtol=0)


def test_recomputed_activations_give_the_same_gradient() -> None:
    kept = trained(model("qwen2", packing=True).train(), cross_entropy, [examples()], packing=True)
    recomputing = model("qwen2", packing=True).train()
    recomputing.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(layer.gradient_checkpointing and layer.training for layer in recomputing.model.layers)
    same(trained(recomputing, cross_entropy, [examples()], packing=True), kept)


def test_a_model_for_packed_rows_takes_padded_ones_too() -> None:
    padded = trained(model("mistral", packing=False), cross_entropy, [examples()], packing=False)
    same(trained(model("mistral", packing=True), cross_entropy, [examples()], packing=False), padded)
    as_long = [examples()[0]] * 2  # no padding: the mask could be left out
    padded = trained(model("qwen2", packing=False), cross_entropy, [as_long], packing=False)
    same(trained(model("qwen2", packing=True), cross_entropy, [as_long], packing=False), padded)


def test_several_rows_without_padding_are_each_a_sequence() -> None:
    ids_BT = torch.randint(tiny.VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))
    places_BT = torch.arange(7).expand(3, 7)
    of = model("qwen2", packing=True)
    together_BT = policy.token_logprobs(of, ids_BT, None, places_BT)
    for row in range(3):
        alone = policy.token_logprobs(of, ids_BT[row : row + 1], None, places_BT[:1])[0]
        torch.testing.assert_close(together_BT[row], alone, atol=1e-6, rtol=0)


def test_no_pair_of_tokens_of_two_sequences_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    of, shapes = model("llama", packing=True), list[tuple[int, ...]]()
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        shapes.append(tuple(query.shape))
        return real(query, *arguments, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    ids_BT, places_BT = torch.zeros(1, 10, dtype=torch.long), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]])
    policy.token_logprobs(of, ids_BT, None, places_BT)
    # Two layers: four tokens, then both sequences of three at once.
    assert shapes == [(1, 4, 4, 8), (2, 4, 3, 8)] * 2


def test_what_cannot_be_kept_apart_is_refused() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=10, hidden_size=8, state_size=2, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"mamba policies .* set train\.packing=false"):
        attention.use_packed(mamba)
    of = model("qwen2", packing=True)
    of.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ValueError, match=r"qwen2 policies \(chunked_attention\)"):
        attention.use_packed(of)
    with pytest.raises(ValueError, match="neither an attention mask nor the lengths"):
        model("qwen2", packing=True)(input_ids=torch.tensor([[1, 2, 3]]))
    states = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match=r"Module needs softcap: set train\.packing=false"):
        attention.packed(torch.nn.Module(), states, states, states, None, packed_lengths=(2,), softcap=50.0)


@pytest.mark.parametrize("window", [5, 4096])
def test_a_window_of_any_size_that_mask_and_attention_do_not_share_is_refused(window: int) -> None:
    phimoe = PhimoeForCausalLM(PhimoeConfig(**GROUPED, **EXPERTS, sliding_window=window))
    with pytest.raises(ValueError, match=rf"window of None, and its mask has {window}: set train\.packing=false"):
        attention.use_packed(phimoe)
    olmoe = OlmoeForCausalLM(OlmoeConfig(**GROUPED, **EXPERTS, sliding_window=window))
    with pytest.raises(ValueError, match=rf"window of {window}, and its mask has None: set train\.packing=false"):
        attention.use_packed(olmoe)


def test_an_architecture_with_a_mask_of_its_own_is_refused() -> None:
    doge = DogeForCausalLM(DogeConfig(**GROUPED, pad_token_id=0))
    with pytest.raises(ValueError, match=r"DogeAttention brings an attention mask of its own .* train\.packing=false"):
        attention.use_packed(doge)


class Shifted(torch.nn.Module):
    """Mixes in the token before, outside attention."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        mixed_BTD: Tensor = self.inner(hidden_BTD + torch.nn.functional.pad(hidden_BTD, (0, 0, 1, 0))[:, :-1])
        return mixed_BTD


def test_layers_that_mix_tokens_outside_attention_are_refused_by_name() -> None:
    of = model("qwen2", packing=False)
    of.model.layers[1].mlp = Shifted(of.model.layers[1].mlp)
    with pytest.raises(ValueError, match=r"qwen2 policies do not keep packed .* set train\.packing=false"):
        attention.use_packed(of)


def test_a_fault_is_seen_in_small_random_weights() -> None:
    torch.manual_seed(0)
    of = LlamaForCausalLM(LlamaConfig(**GROUPED | {"initializer_range": 0.02}))
    attention.use_packed(of)
    of.model.layers[0].mlp = Shifted(of.model.layers[0].mlp)
    with pytest.raises(ValueError, match="llama policies do not keep packed sequences apart"):
        attention.check(of)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rounding_alone_is_let_through(name: str, dtype: torch.dtype) -> None:
    of = model(name, packing=False).to(dtype)
    attention.use_packed(of)
    assert of.config._attn_implementation == attention.PACKED


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_no_trace(training: bool) -> None:
    of = model("mistral", packing=False).train(training)
    before, state = {name: p.clone() for name, p in of.named_parameters()}, torch.get_rng_state()
    attention.use_packed(of)
    assert all(module.training is training for module in of.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in of.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_a_model_without_weights_is_left_to_the_rank_that_has_them() -> None:
    with torch.device("meta"):
        doge = DogeForCausalLM(DogeConfig(**GROUPED, pad_token_id=0))
    attention.use_packed(doge)
    assert {p.device.type for p in doge.parameters()} == {"meta"}
    with pytest.raises(ValueError, match="DogeAttention brings an attention mask of its own"):
        attention.use_packed(DogeForCausalLM(DogeConfig(**GROUPED, pad_token_id=0)))


def sft_losses(packing: bool) -> list[float]:
    limits = TrainConfig(max_tokens_per_micro_batch=30, packing=packing)
    found: list[float] = []
    test_sft_loop.train(
        sharding.wrap(tiny.model(), limits), 9, limits,
        seed=3, start_step=0, report=lambda step, metrics: found.append(metrics["sft/loss"]), save=lambda step: None,
    )  # fmt: skip
    return found


def sharded_gradient(packing: bool) -> dict[str, Tensor]:
    limits = TrainConfig(packing=packing)
    learner = sharding.wrap(tiny.model(), limits)
    mine = sft_plan.share(tiny.examples(9), learner.rank, learner.world_size)
    passes = int(learner.largest(len(micro_batches(mine, 30, packing=packing))))
    for index, batch in enumerate(batches(mine, 30, passes, packing=packing), start=1):
        part = losses.cross_entropy(learner.token_logprobs(batch), batch.response_mask_BT)
        learner.accumulate(part.total / 70, last=index == passes)
    return {name: p.grad.full_tensor() for name, p in learner._module.named_parameters()}  # type: ignore[union-attr]


def test_one_and_two_ranks_pack_to_the_gradient_of_padding() -> None:
    with ranks.alone():
        padded, packed = sharded_gradient(False), sharded_gradient(True)
    for gradients in (packed, *ranks.run(sharded_gradient, 2, True)):
        same((0.0, gradients), (0.0, padded))


def test_supervised_training_loses_alike_packed_and_padded() -> None:
    with ranks.alone():
        packed, padded = sft_losses(True), sft_losses(False)
    assert len(packed) == 6
    assert packed == pytest.approx(padded, abs=1e-5)


def test_a_grpo_update_has_one_gradient_packed_and_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    with ranks.alone():
        packed = test_grpo_loop.gradients(20)
        limits = test_grpo_loop.LIMITS.model_copy(update={"packing": False})
        monkeypatch.setattr(test_grpo_loop, "LIMITS", limits)
        padded = test_grpo_loop.gradients(20)
    same((0.0, packed), (0.0, padded))


def test_old_log_probabilities_follow_their_tokens_out_of_packed_rows() -> None:
    settings, given = GrpoConfig(temperature=1.0), examples()
    limits = TrainConfig(max_tokens_per_micro_batch=30)
    with ranks.alone():
        found = grpo_update.rescored({"old_logprob": sharding.wrap(tiny.model(), limits)}, given, settings, limits)
    assert len(found) == len(given)
    for example in found:
        ids = [*example.prompt_token_ids, *example.response_token_ids]
        logprob_TV = tiny.model()(input_ids=torch.tensor([ids])).logits[0, :-1].detach().log_softmax(-1)
        chosen = logprob_TV.gather(1, torch.tensor(ids)[1:, None])[len(example.prompt_token_ids) - 1 :, 0]
        assert example.fields["old_logprob"] == pytest.approx(chosen.tolist(), abs=1e-5)
