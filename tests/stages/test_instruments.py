"""Pseudo-updates, roles and landscapes of a tiny policy: what is measured, counted, kept, and shown."""

from pathlib import Path

import matplotlib as mpl
import pytest

from raml_ray.config import Config, ConfigError, Step, override
from raml_ray.stages import analyze, report_data, report_instruments, verify
from raml_ray.stages.context import manifest
from raml_ray.stages.instruments import chosen, pseudo_update
from raml_ray.stages.report_figures import STYLE
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_outcomes import Outcome
from raml_ray.storage import SUMMARY, Folder
from tests.stages import contexts
from tests.stages.test_analyze import row
from tests.stages.test_verify import oracle, verifying

TEXT = "<think>\n _ 7 9\nWait _ 16\n</think>\n\n**Final Answer**\n\\boxed{16}"


def test_every_chosen_token_is_measured_for_both_readers(tmp_path: Path) -> None:
    config = override(Config(), {"analyze.instrument": "pseudo_update", "pseudo_update.num_positions": 3})
    policy = chosen.opened(contexts.policy(tmp_path / "policy"), config)
    found = list(pseudo_update.Updates(policy, config).of(row(TEXT)))
    # the thinking has eleven tokens with both its tags: the first, one in the middle, the last
    assert [(each["position"], each["reader"]) for each in found] == [
        (place, reader) for place in (1, 6, 11) for reader in ("answer", "token")
    ]
    assert [each["token"] for each in found[::2]] == ["<think>", "\n", "</think>"]
    for each in found:
        assert each["num_layers"] == 2
        assert len(each["mass"]) == len(each["transfer_error"]) == 4
        assert -1 <= each["cosine_whole"] <= 1
    # L-hat after a token is L-hat before the next
    config = override(config, {"pseudo_update.num_positions": 100})
    every = list(pseudo_update.Updates(policy, config).of(row(TEXT)))[::2]
    assert [each["lhat_after"] for each in every[:-1]] == pytest.approx([each["lhat_before"] for each in every[1:]])


def test_updates_that_half_precision_could_not_check_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"set analyze\.dtype=float32"):
        override(Config(), {"analyze.instrument": "pseudo_update", "analyze.dtype": "bfloat16"})


def tokens(trajectory: str, cosines: list[float], shuffled: float, transfer: list[float]) -> list[chosen.Row]:
    """Rows of one head; patches of norm 1, 2, .. over changes of L-hat that shrink."""
    return [
        {
            "trajectory_id": trajectory,
            "cosine_whole": cosine,
            "cosine_random_whole": 0.0,
            "cosine_shuffled_whole": shuffled,
            "patch_norm_whole": 1.0 + place,
            "lhat_before": 9.0,
            "lhat_after": place,
            "mass": [0.5],
            "transfer_error": transfer,
            "reconstruction_error": [1e-7],
        }
        for place, cosine in enumerate(cosines)
    ]


def test_tokens_are_summed_up_by_trajectory(tmp_path: Path) -> None:
    context = contexts.context(tmp_path / "run", Step(name="a", stage="analyze"))
    rows = tokens("a", [0.1, 0.2, 0.3, 0.4, 0.5], 0.1, [0.5, 9.0, 1.0]) + tokens("b", [0.1], float("nan"), [3.0])
    found = pseudo_update.figures(rows, context)
    assert (found["num"], found["tokens"], found["reconstruction_error_max"]) == (2, 6, 1e-7)
    # means of 0.3 and 0.1; only the first trajectory has another token
    assert found["cosine"]["mean"] == pytest.approx(0.2)
    assert found["cosine_excess"]["mean"] == pytest.approx(0.2)
    assert found["transfer_error"]["mean"] == pytest.approx((1.0 + 3.0) / 2)
    # changes of 9, 8, .. 5 nats under norms of 1 .. 5; one token has no order
    assert found["tau_norm_change"]["mean"] == pytest.approx(-1.0)
    assert pseudo_update.figures([], context)["cosine"] is None


def analyzed(root: Path, instrument: str, data: str, **settings: object) -> report_data.StepResult:
    """A finished step of that instrument over the trajectories of two questions, as the report reads it."""
    step = Step(name=instrument, stage="analyze", data=(data,), overrides={"analyze.instrument": instrument})
    context = contexts.context(root, step, analyze__num_questions=2, **settings)
    outcome = analyze.run(context)
    outcome.counts.check()
    assert analyze.run(context) == outcome  # all shards are there
    context.folder.write_json("manifest.json", manifest(context, {}))
    summary = {
        "stage": "analyze",
        "fingerprint": "f",
        "counts": {},
        "seconds": {"total": 1.0},
        "figures": outcome.figures,
    }
    context.folder.write_json(SUMMARY, summary)
    return report_data.read(Folder(str(root)), Config(steps=(step.model_copy(update={"data": ()}),))).steps[0]


def shown(step: report_data.StepResult) -> Shown:
    """The page's part on this step, drawn as the report draws."""
    run = report_data.Run(Config(), (step,), (), ())
    with mpl.rc_context(STYLE):
        (found,) = report_instruments.shown(run)
    assert all(figure.svg and figure.png for figure in found.figures)
    return found


@pytest.mark.ray
def test_instruments_measure_what_a_run_has_made_and_the_page_shows_it(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root)
    judged = verifying(root, "long")
    contexts.finish(judged, verify.run(judged))
    updates = shown(analyzed(root, "pseudo_update", "verify", pseudo_update__num_positions=3))
    assert updates.claims[0].outcome is Outcome.UNDECIDED  # of two questions
    assert "fewer than 10" in updates.claims[0].note
    assert "correct, read by the answer" in updates.tables
    panels = set(updates.figures[0].rows["panel"].to_pylist())
    assert panels == {"direction", "size", "transfer"}
