"""The GRPO loop on a tiny policy, with a sampler that the test controls."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from raml_ray.records import Question, Verdict
from raml_ray.settings import GrpoConfig, TrainConfig
from raml_ray.workers import checkpoints, grpo_groups, grpo_loop, grpo_update, sharding
from raml_ray.workers.rollouts import Rollout, questions_of_step, requests_of_step
from raml_ray.workers.sampling import Span
from tests.workers import ranks, tiny

SETTINGS = GrpoConfig(
    num_steps=3, questions_per_step=2, num_trajectories=4, num_updated=4, num_minibatches=1, learning_rate=1e-2
)
LIMITS = TrainConfig(max_tokens_per_micro_batch=64, grad_clip=100.0)


def rollout(question: int, tokens: list[int], verdict: Verdict, logprob: float = -1.0, version: int = 0) -> Rollout:
    spans = [Span(version, 0, len(tokens))]
    return Rollout(f"q{question}", [1 + question, 7], tokens, [logprob] * len(tokens), "stop", spans, verdict)


def groups(version: int = 0, num_questions: int = 2) -> list[list[Rollout]]:
    """Of each question one correct trajectory and three wrong ones, their tokens decided by the version."""
    draw = torch.Generator().manual_seed(version)
    verdicts = [Verdict.CORRECT, Verdict.WRONG, Verdict.UNREADABLE, Verdict.WRONG]
    return [
        [
            rollout(q, torch.randint(3, tiny.VOCABULARY, (2 + (q + i) % 3,), generator=draw).tolist(), verdict)
            for i, verdict in enumerate(verdicts)
        ]
        for q in range(num_questions)
    ]


def gradients(
    max_tokens: int, settings: GrpoConfig = SETTINGS, given: Sequence[Sequence[Rollout]] | None = None
) -> dict[str, torch.Tensor]:
    """The gradient of one update, caught where the optimizer would apply it."""
    limits = LIMITS.model_copy(update={"max_tokens_per_micro_batch": max_tokens})
    policy = sharding.wrap(tiny.model(), limits)
    caught: dict[str, torch.Tensor] = {}

    def step(learning_rate: float) -> sharding.Update:
        for name, parameter in policy._named().items():
            assert isinstance(parameter, torch.nn.Parameter) and parameter.grad is not None
            caught[name] = parameter.grad.full_tensor().clone()
        return sharding.Update(0.0, False)

    policy.step = step  # type: ignore[method-assign]
    found = given or groups()
    grpo_update.update(policy, found, grpo_groups.judge(found, settings, seed=0), settings, limits)
    return caught


def test_micro_batches_split_in_any_way_give_the_same_gradient() -> None:
    with ranks.alone():
        whole = gradients(10_000)
        for max_tokens in (1, 13, 30):
            split = gradients(max_tokens)
            for name, gradient in whole.items():
                torch.testing.assert_close(split[name], gradient, atol=1e-6, rtol=0)


def test_a_group_that_agrees_with_itself_changes_the_mean_and_not_the_direction() -> None:
    """Its tokens count in the denominator, so the gradient is that of the other group times their share of the tokens."""
    agreed = [rollout(2, [9, 9, 9], Verdict.WRONG) for _ in range(4)]  # 12 tokens
    other = groups(num_questions=1)[0]
    num_tokens = sum(len(row.token_ids) for row in other)
    with ranks.alone():
        alone = gradients(10_000, given=[other])
        beside = gradients(10_000, given=[other, agreed])
    for name, gradient in alone.items():
        torch.testing.assert_close(beside[name], gradient * num_tokens / (num_tokens + 12), atol=1e-6, rtol=1e-5)


def run(
    num_steps: int, start: int = 0, folder: str = "", given: Any = groups, settings: GrpoConfig = SETTINGS
) -> list[Mapping[str, float]]:
    """Versions start + 1 .. num_steps; the metrics of each. Goes on from the checkpoint in `folder` if start > 0."""
    torch.manual_seed(0)
    policy = sharding.wrap(tiny.model(), LIMITS)
    if start:
        restored = checkpoints.load(folder, policy.state())
        assert restored is not None and restored.step == start
    seen: list[Mapping[str, float]] = []

    def save(version: int) -> None:
        if folder:
            checkpoints.save(folder, version, policy.state(), {}, keep=9)

    grpo_loop.train(
        policy,
        settings.model_copy(update={"num_steps": num_steps}),
        LIMITS.model_copy(update={"checkpoint_every": 1}),
        seed=5,
        start_version=start,
        sample=lambda version: (given(version), {}),
        publish=lambda version: {"published": float(version)},
        report=lambda version, metrics: seen.append(metrics),
        save=save,
    )
    return seen


def test_training_raises_the_correct_trajectory_and_lowers_the_wrong_ones() -> None:
    same = groups(0)
    with ranks.alone():
        policy = sharding.wrap(tiny.model(), LIMITS)
        rows = [
            example
            for question in grpo_groups.examples(same, grpo_groups.judge(same, SETTINGS, seed=0))
            for example in question
        ]

        def logprobs() -> list[float]:
            from raml_ray.text.batches import collate

            with torch.no_grad():
                return policy.token_logprobs(collate(rows)).sum(1).tolist()

        before = logprobs()
        grpo_loop.train(
            policy, SETTINGS, LIMITS, seed=0, start_version=0,
            sample=lambda version: (same, {}), publish=lambda version: {}, report=lambda v, m: None, save=lambda v: None,
        )  # fmt: skip
        after = logprobs()
    for row, was, now in zip(rows, before, after, strict=True):
        assert (now > was) == (row.fields["advantage"][0] > 0)


def test_two_ranks_make_the_losses_of_one() -> None:
    keys = ("grpo/loss", "grpo/grad_norm", "grpo/reward", "grpo/mismatch_mean", "grpo/mismatch_max")
    with ranks.alone():
        one = run(3)
    for two in ranks.run(run, 2, 3):
        for mine, theirs in zip(one, two, strict=True):
            assert [theirs[key] for key in keys] == pytest.approx([mine[key] for key in keys], abs=1e-5)


def test_a_resumed_run_makes_the_losses_of_an_undisturbed_one(tmp_path: Any) -> None:
    with ranks.alone():
        undisturbed = run(3)
        run(1, folder=str(tmp_path))
        resumed = run(3, start=1, folder=str(tmp_path))
    assert [m["grpo/loss"] for m in resumed] == [m["grpo/loss"] for m in undisturbed[1:]]
    assert [m["grpo/grad_norm"] for m in resumed] == [m["grpo/grad_norm"] for m in undisturbed[1:]]


def test_groups_without_anything_to_teach_leave_the_policy_as_it_is() -> None:
    def agreed(version: int) -> list[list[Rollout]]:
        return [[rollout(0, [5, 6], Verdict.WRONG) for _ in range(4)]]

    with ranks.alone():
        seen = run(2, given=agreed)
    assert [m["grpo/zero_variance_fraction"] for m in seen] == [1.0, 1.0]
    assert [m["grpo/loss"] for m in seen] == [0.0, 0.0]
    assert all(math.isfinite(value) for m in seen for value in m.values())


def test_the_engines_are_given_the_restored_version_before_the_first_sample() -> None:
    order: list[str] = []
    with ranks.alone():
        policy = sharding.wrap(tiny.model(), LIMITS)

        def sample(version: int) -> tuple[list[list[Rollout]], dict[str, float]]:
            order.append(f"sample {version}")
            return groups(version), {}

        def publish(version: int) -> dict[str, float]:
            order.append(f"publish {version}")
            return {}

        grpo_loop.train(
            policy, SETTINGS, LIMITS, seed=0, start_version=1,
            sample=sample, publish=publish, report=lambda v, m: None, save=lambda v: order.append(f"save {v}"),
        )  # fmt: skip
    assert order == ["publish 1", "sample 1", "publish 2", "sample 2", "publish 3", "save 3"]


def test_every_epoch_asks_every_question_once_in_an_order_of_its_own() -> None:
    questions = [Question(str(i), "p", "1", "s") for i in range(6)]
    asked = [q.question_id for step in range(6) for q in questions_of_step(questions, step, num=4, seed=0)]
    epochs = [asked[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == list("012345") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_no_two_samples_have_the_same_seed() -> None:
    questions = [Question(str(i), "p", "1", "s") for i in range(12)]
    # The second step takes four questions of the first epoch and four of the next, which share some.
    steps = [questions_of_step(questions, step, num=8, seed=0) for step in range(3)]
    assert len({question.question_id for question in steps[1]}) < 8
    seeds = [
        request.seed
        for seed in range(2)
        for version, asked in enumerate(steps)
        for request in requests_of_step(asked, [[1]] * 8, version, num=4, seed=seed)
    ]
    assert len(seeds) == len(set(seeds)) == 2 * 3 * 8 * 4


def test_requests_come_question_by_question_and_are_decided_by_the_step() -> None:
    asked = [Question("a", "p", "1", "s"), Question("b", "p", "1", "s")]
    requests = requests_of_step(asked, [[1], [2, 3]], 5, num=3, seed=0)
    assert [request.prompt_token_ids for request in requests] == [[1]] * 3 + [[2, 3]] * 3
    assert requests == requests_of_step(asked, [[1], [2, 3]], 5, num=3, seed=0)
