"""Every policy loss in the update: its gradient, whatever the micro-batches and ranks, and steps that cannot be made."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raml_ray.records import Verdict
from raml_ray.settings import GrpoConfig
from raml_ray.text.batches import Example
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers import (
    gradient_variance,
    grpo_groups,
    grpo_loop,
    grpo_update,
    lhat_descent,
    probe,
    probe_text,
    sharding,
    skipped_batches,
)
from raml_ray.workers.rollouts import Probe, Rollout
from raml_ray.workers.sampling import Span
from raml_ray.workers.sft_plan import share
from tests.workers import ranks, tiny
from tests.workers.test_grpo_loop import LIMITS, SETTINGS, groups, rollout, run

LOSSES = ("grpo", "dapo", "dr_grpo", "gspo", "cispo")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks finds: their start costs more than all that they do."""
    return ranks.run(everything, 2, str(tmp_path_factory.mktemp("skipped")))


def everything(folder: str) -> dict[str, Any]:
    return {
        "folder": folder,
        "gradients": all_gradients(40),
        "skipping": skipping(folder),
        "variances": variances(),
        "descents": descents(),
    }


def off_policy_examples() -> list[Example]:
    """Examples whose old, engine's and reference's log-probabilities differ from the policy's, and one without a lesson."""
    draw = torch.Generator().manual_seed(7)
    made = []
    for place, example in enumerate(tiny.examples(7)):
        size = len(example.response_token_ids)
        fields = {name: (-3.9 + torch.randn(size, generator=draw)).tolist() for name in ("old_logprob", "ref_logprob")}
        fields["rollout_logprob"] = [value - 0.5 * (place % 3) for value in fields["old_logprob"]]
        fields["advantage"] = [(-1.0) ** place * (place != 4)] * size
        made.append(replace(example, fields=fields))
    return made


def gradient(settings: GrpoConfig, max_tokens: int, packing: bool) -> tuple[list[torch.Tensor], dict[str, float]]:
    """Of all examples together, whole, and the sums that are logged."""
    limits = LIMITS.model_copy(update={"max_tokens_per_micro_batch": max_tokens, "packing": packing})
    policy = sharding.wrap(tiny.model(), limits)
    given = off_policy_examples()
    mine = share(given, policy.rank, policy.world_size)
    sums = grpo_update.accumulate(policy, mine, grpo_update.denominator(given, settings), settings, limits)
    assert sums is not None
    weights = [p for p in policy._module.parameters() if p.grad is not None]
    whole = [p.grad.full_tensor().clone() for p in weights]  # type: ignore[union-attr]
    assert len(policy.take_gradient()) == len(whole)
    assert all(p.grad is None for p in weights)
    return whole, sums


def variants() -> dict[str, GrpoConfig]:
    regularized = {"kl_coefficient": 0.3, "kl_estimator": "k1", "entropy_coefficient": 0.1, "correction": "mis"}
    made = {name: SETTINGS.model_copy(update={"loss": name, "max_tokens": 20}) for name in LOSSES}
    return made | {"regularized": SETTINGS.model_copy(update=regularized)}


def all_gradients(max_tokens: int, *, packing: bool = True) -> dict[str, Any]:
    return {name: gradient(settings, max_tokens, packing) for name, settings in variants().items()}


def test_no_loss_depends_on_micro_batches_packing_or_ranks(two_ranks: list[dict[str, Any]]) -> None:
    with ranks.alone():
        whole = all_gradients(10_000)
        split = all_gradients(25)
        padded = [all_gradients(size, packing=False) for size in (10_000, 25)]
    for found in (split, *padded, *(rank["gradients"] for rank in two_ranks)):
        for name, (gradients, sums) in whole.items():
            assert found[name][1] == pytest.approx(sums, abs=1e-4)
            for mine, theirs in zip(gradients, found[name][0], strict=True):
                torch.testing.assert_close(theirs, mine, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: name + text)
    # And they are different losses: the second weight's gradients differ.
    norms = {name: round(float(gradients[1].norm()), 6) for name, (gradients, _) in whole.items()}
    assert len(set(norms.values())) >= 5, norms


def test_the_first_minibatch_is_scored_by_its_own_step() -> None:
    """The old policy is the one that the first step computes with: its ratios are 1, and it passes over it once."""
    settings = SETTINGS.model_copy(update={"num_minibatches": 2})
    with ranks.alone():
        policy = sharding.wrap(tiny.model(), LIMITS)
        found = groups(0)
        judged = grpo_groups.judge(found, settings, seed=0)
        passes: list[bool] = []
        policy._module.register_forward_hook(lambda module, given, made: passes.append(made.requires_grad))
        metrics = grpo_update.update(policy, found, judged, settings, LIMITS)
    assert passes == [False, True, True]  # the second minibatch is scored before the first step
    lengths = sum(
        len(example.response_token_ids) for question in grpo_groups.examples(found, judged) for example in question
    )
    assert metrics["grpo/updated_tokens"] == lengths
    assert metrics["grpo/mismatch_mean"] > 0
    assert metrics["grpo/approx_kl"] > 0  # the second minibatch meets a policy that the first has moved


def divergences(coefficient: float) -> list[float]:
    """Of four versions on the same trajectories, from a reference that must stay as it is."""
    settings = SETTINGS.model_copy(update={"kl_coefficient": coefficient, "num_steps": 4, "learning_rate": 1e-3})
    policy, reference = sharding.wrap(tiny.model(), LIMITS), sharding.wrap(tiny.model(), LIMITS)
    before = reference.full_state()
    seen: list[float] = []
    grpo_loop.train(
        policy, settings, LIMITS, seed=0, start_version=0, sample=lambda v: (groups(0), {}), publish=lambda v: {},
        report=lambda v, m: seen.append(m["grpo/kl"]), save=lambda v: None, reference=reference,
    )  # fmt: skip
    after = reference.full_state()
    assert all(torch.equal(after[name], before[name]) for name in before)
    return seen


def test_a_reference_is_what_the_policy_is_held_near() -> None:
    with ranks.alone():
        loose, tight = divergences(1e-6), divergences(10.0)
    assert loose[0] == pytest.approx(0.0, abs=1e-9)
    assert loose[1] == pytest.approx(tight[1], rel=0.1)  # at the reference itself the divergence has no gradient
    assert tight[3] < 0.5 * loose[3]


def planted(version: int) -> list[list[Rollout]]:
    """In version 1 the engine gave one token no number for its probability."""
    found = groups(version)
    if version == 1:
        found[0][0].logprobs[0] = math.nan
    return found


def skipping(folder: str) -> dict[str, Any]:
    """Three versions, the second of which cannot be made; saved after every one that can."""
    torch.manual_seed(0)
    policy = sharding.wrap(tiny.model(), LIMITS)
    limits = LIMITS.model_copy(update={"checkpoint_every": 2})
    states: list[dict[str, torch.Tensor]] = []
    saved: list[int] = []
    seen: list[dict[str, float]] = []

    def report(version: int, metrics: Any) -> None:
        states.append({name: tensor.clone() for name, tensor in policy.full_tensors()})
        seen.append(dict(metrics))

    grpo_loop.train(
        policy, SETTINGS, limits, seed=5, start_version=0, sample=lambda version: (planted(version), {}),
        publish=lambda version: {}, report=report, save=saved.append,
        keep=lambda version, batch, figures: skipped_batches.keep(folder, version, policy.rank, batch, figures),
    )  # fmt: skip
    return {"states": states, "saved": saved, "seen": seen}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_step_that_is_not_finite_is_left_out_on_all_ranks_and_its_batch_kept(
    tmp_path: Path, two_ranks: list[dict[str, Any]], num_ranks: int
) -> None:
    folder, results = Path(two_ranks[0]["folder"]), [rank["skipping"] for rank in two_ranks]
    if num_ranks == 1:
        folder = tmp_path
        with ranks.alone():
            results = [skipping(str(folder))]
    for found in results:
        first, second, third = found["states"]
        assert all(torch.equal(second[name], first[name]) for name in first)  # bit for bit
        assert any(not torch.equal(third[name], second[name]) for name in first)
        assert [metrics["grpo/skipped_steps"] for metrics in found["seen"]] == [0.0, 1.0, 1.0]
        # Version 2 was due, and its step left out: the next one is saved in its place, the last as ever.
        assert found["saved"] == [3]
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == [f"0-step-00000002.rank-{rank}.safetensors" for rank in range(num_ranks)]
    rows, figures = zip(*(skipped_batches.read(str(file)) for file in files), strict=True)
    assert all(math.isnan(f["loss"]) and f["step"] == 2 for f in figures)
    kept = [example for examples in rows for example in examples]
    assert sorted(list(e.response_token_ids) for e in kept) == sorted(r.token_ids for g in planted(1) for r in g)
    assert sum(math.isnan(e.fields["rollout_logprob"][0]) for e in kept) == 1
    assert {"advantage", "rollout_logprob"} == set(
        kept[0].fields
    )  # of the first step the old policy is the one it failed on


def test_so_many_steps_left_out_in_a_row_end_the_run() -> None:
    def always(version: int) -> list[list[Rollout]]:
        return [[replace(r, logprobs=[math.nan] * len(r.token_ids)) for r in group] for group in groups(version)]

    with ranks.alone(), pytest.raises(ValueError, match=r"grpo\.learning_rate=0\.01: 3 updates in a row up to step 3"):
        run(5, given=always)


def test_kept_batches_are_bounded(tmp_path: Path) -> None:
    for step in range(5):
        skipped_batches.keep(str(tmp_path), step, 0, tiny.examples(2), {"loss": math.inf})
    skipped_batches.keep(str(tmp_path / "none"), 0, 0, [], {"loss": math.inf})
    assert len(list(tmp_path.iterdir())) == skipped_batches.MOST_KEPT


@pytest.mark.parametrize("case", ["unjudged", "all truncated", "refused"])
def test_a_step_without_anything_to_learn_from_is_counted(case: str) -> None:
    def given(version: int) -> list[list[Rollout]]:
        verdict = Verdict.TIMEOUT if case == "unjudged" else Verdict.UNREADABLE
        tokens = [] if case == "refused" else [5, 6]
        spans = [Span(version, 0, len(tokens))]
        row = Rollout("q", [1, 7], tokens, [-1.0] * len(tokens), "length", spans, verdict)
        return [[row] * 4, [row] * 4]

    with ranks.alone():
        seen = run(2, given=given, settings=SETTINGS.model_copy(update={"num_minibatches": 2}))
    assert all(math.isfinite(value) for metrics in seen for value in metrics.values())
    assert [metrics["grpo/empty_minibatches"] for metrics in seen] == [2.0, 2.0]
    assert [metrics["grpo/loss"] for metrics in seen] == [0.0, 0.0]
    assert seen[0]["grpo/truncated_fraction"] == 1.0


def test_the_policy_has_not_moved_before_the_only_step() -> None:
    with ranks.alone():
        assert [metrics["grpo/approx_kl"] for metrics in run(2)] == [0.0, 0.0]


def variances() -> list[dict[str, float]]:
    """Of the gradient, for draws of 1, 2 and all 4 trajectories of each question."""
    policy = sharding.wrap(tiny.model(), LIMITS)
    given = groups()
    found = []
    for num_updated in (1, 2, 4):
        settings = SETTINGS.model_copy(update={"num_updated": num_updated, "gradient_variance_draws": 12})
        judged = grpo_groups.judge(given, settings, seed=0)
        found.append(gradient_variance.measured(policy, given, judged, settings, LIMITS, seed=0))
    return found


def test_the_gradient_varies_less_the_more_trajectories_are_drawn(two_ranks: list[dict[str, Any]]) -> None:
    with ranks.alone():
        one, two, all_ = variances()
    assert one["grpo/gradient_variance"] > two["grpo/gradient_variance"] > 0.01
    assert all_["grpo/gradient_variance"] == pytest.approx(0.0, abs=1e-9)
    assert one["grpo/gradient_squared_norm"] == all_["grpo/gradient_squared_norm"] > 0
    for rank in two_ranks:
        for mine, theirs in zip((one, two), rank["variances"], strict=False):
            assert theirs == pytest.approx(mine, rel=1e-4)


def test_measuring_the_gradient_changes_nothing() -> None:
    with ranks.alone():
        plain = run(2)
        measured = run(2, settings=SETTINGS.model_copy(update={"gradient_variance_every": 2}))
    assert [m["grpo/loss"] for m in plain] == [m["grpo/loss"] for m in measured]
    assert ["grpo/gradient_variance" in m for m in measured] == [True, False]


def descents() -> list[list[float]]:
    suffix = AnswerSuffix([11, 12, 13, 14], [False, False, True, True])
    given = [
        [replace(row, probe=Probe(suffix, 2) if place else None) for place, row in enumerate(group)]
        for group in groups()
    ]
    found: list[list[float]] = lhat_descent.descents(sharding.wrap(tiny.model(), LIMITS), given, LIMITS).tolist()
    return found


def test_the_descent_is_the_probes(two_ranks: list[dict[str, Any]]) -> None:
    suffix = AnswerSuffix([11, 12, 13, 14], [False, False, True, True])
    with ranks.alone():
        alone = descents()
    for question, group in enumerate(groups()):
        assert math.isnan(alone[question][0])
        for place, row in enumerate(group[1:], start=1):
            ids = row.prompt_token_ids + row.token_ids[:2]
            asked = probe_text.Probe(ids, [len(row.prompt_token_ids), len(ids)], [suffix])
            ((curve,),) = probe.answer_nll(tiny.model(), [asked], memory_mib=64)
            assert alone[question][place] == pytest.approx(curve[0] - curve[-1], abs=1e-5)
    for rank in two_ranks:
        assert rank["descents"] == [pytest.approx(row, abs=1e-5, nan_ok=True) for row in alone]


def test_the_best_descent_is_learned_from_in_the_loop() -> None:
    suffix = AnswerSuffix([11, 12], [False, True])

    def probed(version: int) -> list[list[Rollout]]:
        return [[replace(r, probe=Probe(suffix, len(r.token_ids))) for r in group] for group in groups(version)]

    with ranks.alone():
        seen = run(
            1, given=probed, settings=SETTINGS.model_copy(update={"selection": "lhat_descent", "num_updated": 2})
        )
    assert seen[0]["grpo/updated_trajectories"] == 4.0
    assert math.isfinite(seen[0]["grpo/loss"])
    assert rollout(0, [5], Verdict.WRONG).probe is None
