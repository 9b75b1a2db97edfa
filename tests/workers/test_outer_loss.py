"""The outer loss of the paper's Eq. 8 on answers alone, with and without the path through trajectories."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from raml_ray.formulas import losses
from raml_ray.settings import SftConfig, TrainConfig
from raml_ray.text.batches import ANSWER, Example, batches, collate, micro_batches
from raml_ray.workers import policy, sft_loop, sharding
from raml_ray.workers.sft_plan import share
from tests.workers import ranks, tiny

ANSWERS = {"answer_only": SftConfig(outer_loss="answer_only"), "detached": SftConfig(outer_loss="answer_only_detached")}


def with_answer(example: Example, start: int, end: int) -> Example:
    marks = [float(start <= place < end) for place in range(len(example.response_token_ids))]
    return replace(example, fields={ANSWER: marks})


# Two prompt tokens; a trajectory 7 8 9, its answer 4 5, and 3 behind it.
ONE = with_answer(Example([1, 2], [7, 8, 9, 4, 5, 3]), 3, 5)


def several() -> list[Example]:
    """Nine, of other lengths, whose answers lie anywhere, one at the response's very start, one at its end."""
    found = []
    for number, example in enumerate(tiny.examples(9, seed=5)):
        size = len(example.response_token_ids)
        start = min(number, size - 1) if number < 8 else size - 1
        found.append(with_answer(example, start, min(size, start + 1 + number % 3)))
    return found


def qwen3() -> PreTrainedModel:
    """A norm lies between the projection of keys and attention: cutting at the projection would be too early."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=tiny.VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=64,
            initializer_range=0.2,
            attn_implementation="sdpa",
        )
    )


def two_passes(model: PreTrainedModel, example: Example) -> torch.Tensor:
    """-log p(answer), summed: the trajectory is read without gradient, then the answer from its frozen cache.

    What is read first ends before the token that the answer follows; the prompt's own keys and values have gradient.
    """
    start = len(example.prompt_token_ids) + list(example.fields[ANSWER]).index(1.0)
    end = start + round(sum(example.fields[ANSWER]))
    ids = torch.tensor([[*example.prompt_token_ids, *example.response_token_ids]])
    num_prompt = min(len(example.prompt_token_ids), start - 1)
    cache = DynamicCache(config=model.config)
    if num_prompt:
        model(input_ids=ids[:, :num_prompt], past_key_values=cache, use_cache=True)
    with torch.no_grad():
        frozen = DynamicCache(config=model.config)
        if start - 1:
            model(input_ids=ids[:, : start - 1], past_key_values=frozen, use_cache=True)
    if start - 1 > num_prompt:
        for layer, constant in zip(cache.layers, frozen.layers, strict=True):
            layer.keys = torch.cat([layer.keys, constant.keys[:, :, num_prompt:]], dim=2)
            layer.values = torch.cat([layer.values, constant.values[:, :, num_prompt:]], dim=2)
    position = torch.arange(start - 1, end - 1)[None]
    logprob = (
        model(input_ids=ids[:, start - 1 : end - 1], position_ids=position, past_key_values=cache, use_cache=True)
        .logits[0]
        .log_softmax(-1)
    )
    return -logprob.gather(1, ids[0, start:end, None]).sum()


def gradients_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Biases of keys have a gradient of 0 but for rounding: softmax does not see them.
        assert float((found[name] - gradient).norm()) <= 5e-6 * float(gradient.norm()) + 1e-7, name


def test_a_batch_of_answers_alone_marks_what_is_worked_out_by_hand() -> None:
    batch = collate([ONE]).answers_alone(detached=True)
    assert batch.response_mask_BT.tolist() == [[0, 0, 0, 0, 0, 1, 1, 0]]
    # 7 and 8 are the trajectory; 9 and 4 are where the answer is predicted, and nothing looks back at 5 and 3.
    assert batch.constant_BT is not None
    assert batch.constant_BT.long().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]
    assert collate([ONE]).answers_alone(detached=False).constant_BT is None


def test_what_comes_before_in_a_packed_row_predicts_no_answer_of_the_next() -> None:
    first = with_answer(Example([1], [2, 3]), 1, 2)
    batch = collate([first, with_answer(Example([4], [5, 6]), 0, 1)], packing=True).answers_alone(detached=True)
    assert batch.response_mask_BT.tolist() == [[0, 0, 1, 0, 1, 0]]
    assert batch.constant_BT is not None
    assert batch.constant_BT.long().tolist() == [[0, 0, 1, 0, 1, 1]]


@pytest.mark.parametrize("make", [tiny.model, qwen3])
@pytest.mark.parametrize("packing", [False, True])
def test_detached_is_the_gradient_of_two_passes_with_a_frozen_cache(make, packing: bool) -> None:
    with ranks.alone():
        learner = sharding.wrap(make(), TrainConfig(packing=packing))
        batch = sft_loop.outer(collate([ONE, several()[4]], packing=packing), ANSWERS["detached"])
        learner.accumulate(losses.cross_entropy(learner.token_logprobs(batch), batch.response_mask_BT).total, last=True)
        found = {n.removeprefix("model."): p.grad.full_tensor() for n, p in learner._module.named_parameters()}  # type: ignore[union-attr]
    model = make()
    (two_passes(model, ONE) + two_passes(model, several()[4])).backward()
    same(found, gradients_of(model))


@pytest.mark.parametrize("packing", [False, True])
def test_no_gradient_reaches_the_trajectory_s_embeddings_when_detached_and_some_does_when_not(packing: bool) -> None:
    reached = {}
    for name, settings in ANSWERS.items():
        model = tiny.model()
        if packing:
            model.set_attn_implementation(sharding.attention.PACKED)
        embedded: list[torch.Tensor] = []
        model.get_input_embeddings().register_forward_hook(lambda m, i, out, kept=embedded: kept.append(out))
        batch = sft_loop.outer(collate([ONE], packing=packing), settings)
        logprob_BT = policy.token_logprobs(
            model,
            batch.input_ids_BT,
            batch.attention_mask_BT,
            batch.position_ids_BT,
            needed_BT=batch.response_mask_BT,
            constant_BT=batch.constant_BT,
        )
        (gradient,) = torch.autograd.grad(logprob_BT.sum(), embedded[0])
        reached[name] = [bool(row.any()) for row in gradient[0]]
    # Prompt 1 2, trajectory 7 8, then 9 4 that predict the answer 4 5; nothing comes from behind them.
    assert reached["detached"] == [True, True, False, False, True, True, False, False]
    assert reached["answer_only"] == [True, True, True, True, True, True, False, False]


def test_both_have_the_same_loss_and_other_gradients() -> None:
    found = {name: accumulated(settings, 10_000, True)[1] for name, settings in ANSWERS.items()}
    (first, second) = (gradients[0] for gradients in found.values())
    assert first == pytest.approx(second, abs=1e-6)
    values = [gradients[1]["model.layers.0.self_attn.v_proj.weight"] for gradients in found.values()]
    assert float((values[0] - values[1]).norm()) > 0.01 * float(values[0].norm())


def accumulated(
    settings: SftConfig, max_tokens: int, packing: bool
) -> tuple[None, tuple[float, dict[str, torch.Tensor]]]:
    with ranks.alone():
        return None, objective(settings, max_tokens, packing)


def objective(settings: SftConfig, max_tokens: int, packing: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean over answer tokens of all ranks, and its gradient, as the training loop accumulates them."""
    learner = sharding.wrap(tiny.model(), TrainConfig(packing=packing))
    mine = share(several(), learner.rank, learner.world_size)
    passes = int(learner.largest(len(micro_batches(mine, max_tokens, packing=packing))))
    count = learner.total(sum(sft_loop.num_scored(example, settings) for example in mine))
    total = 0.0
    for index, batch in enumerate(batches(mine, max_tokens, passes, packing=packing), start=1):
        scored = sft_loop.outer(batch, settings)
        part = losses.cross_entropy(learner.token_logprobs(scored), scored.response_mask_BT)
        learner.accumulate(part.total / count, last=index == passes)
        total += float(part.total.detach())
    gradients = {n.removeprefix("model."): p.grad.full_tensor() for n, p in learner._module.named_parameters()}  # type: ignore[union-attr]
    return learner.total(total) / count, gradients


def undivided(settings: SftConfig) -> tuple[float, dict[str, torch.Tensor]]:
    """One example after the other through the plain model."""
    model = tiny.model()
    total, count = torch.tensor(0.0), 0
    for example in several():
        if settings.outer_loss == "answer_only_detached":
            total = total + two_passes(model, example)
        else:
            ids = torch.tensor([[*example.prompt_token_ids, *example.response_token_ids]])
            logprob_TV = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            marks_T = torch.tensor([0.0] * (len(example.prompt_token_ids) - 1) + list(example.fields[ANSWER]))
            total = total - (logprob_TV.gather(1, ids[0, 1:, None])[:, 0] * marks_T).sum()
        count += round(sum(example.fields[ANSWER]))
    (total / count).backward()
    return float(total) / count, gradients_of(model)


@pytest.mark.parametrize("name", list(ANSWERS))
def test_packing_padding_and_micro_batches_do_not_change_the_objective(name: str) -> None:
    loss, expected = undivided(ANSWERS[name])
    for max_tokens, packing in itertools.product((10_000, 30, 1), (True, False)):
        _, (found_loss, found) = accumulated(ANSWERS[name], max_tokens, packing)
        assert found_loss == pytest.approx(loss, abs=1e-5)
        same(found, expected)


def on_ranks(cases: Sequence[tuple[SftConfig, bool]]) -> list[tuple[float, dict[str, torch.Tensor]]]:
    return [objective(settings, 30, packing) for settings, packing in cases]


def test_two_ranks_have_the_objective_of_one() -> None:
    cases = list(itertools.product(ANSWERS.values(), (True, False)))
    expected = [undivided(settings) for settings, _ in cases]
    for together in ranks.run(on_ranks, 2, cases):
        for (found_loss, found), (loss, gradients) in zip(together, expected, strict=True):
            assert found_loss == pytest.approx(loss, abs=1e-5)
            same(found, gradients)


def test_layers_that_do_not_hand_down_what_is_constant_are_refused() -> None:
    model = tiny.model()
    model.config.num_hidden_layers = 3  # as if one of the layers had attention of its own
    batch = collate([ONE]).answers_alone(detached=True)
    with pytest.raises(ValueError, match=r"2 of 3 layers hand down what is constant: set sft\.outer_loss=answer_only"):
        policy.token_logprobs(
            model, batch.input_ids_BT, batch.attention_mask_BT, batch.position_ids_BT, constant_BT=batch.constant_BT
        )
