"""The paper's claims: one page of them, each asked by some part of the report, and decided over seeds."""

import re
from pathlib import Path
from typing import Any

import pytest

from raml_ray.config import Config, override
from raml_ray.metrics_file import MetricsFile
from raml_ray.stages import claims, report, report_claims, report_seeds, sweep
from tests.stages.test_report import evaluated, finish, folder_of

ROOT = Path(__file__).parents[2]
STEPS: tuple[dict[str, Any], ...] = (
    {"name": "start", "stage": "base"},
    {"name": "tuned", "stage": "sft", "policy": "start"},
    {"name": "zero", "stage": "grpo", "policy": "start"},
    {"name": "e_start", "stage": "evaluate", "policy": "start"},
    {"name": "e_tuned", "stage": "evaluate", "policy": "tuned"},
    {"name": "e_zero", "stage": "evaluate", "policy": "zero"},
    {"name": "page", "stage": "report"},
)


def test_the_page_of_claims_is_the_list_that_the_report_decides_by() -> None:
    assert (ROOT / "docs/claims.md").read_text() == claims.page(), "python -m raml_ray.stages.claims > docs/claims.md"


def test_every_claim_has_an_id_of_its_own_and_is_asked_by_the_report() -> None:
    assert len(claims.BY_ID) == len(claims.STATEMENTS)
    code = "".join(path.read_text() for path in (ROOT / "raml_ray/stages").glob("report*.py"))
    assert [one.id for one in claims.STATEMENTS if f'"{one.id}"' not in code or not one.command] == []


def swept(root: str, seeds: tuple[int, ...], **space: list[object]) -> tuple[Config, sweep.Sweep]:
    """A sweep over seeds whose trained steps and base are finished."""
    config = override(Config(), {"root": root, "name": "demo", "steps": STEPS, "evaluate.num_bootstrap": 200})
    found = sweep.expanded(
        config, {name.replace("__", "."): values for name, values in space.items()} | {"seed": seeds}
    )
    folder_of(config).write_json(sweep.SWEEP_FILE, {"trials": [trial._asdict() for trial in found.trials]})
    for trial in found.trials:
        for name in ("start", "tuned", "zero"):
            finish(found.config, trial.steps[name], {})
    return found.config, found


def decided(config: Config, out: str = "page") -> dict[str, dict[str, Any]]:
    figures = report.build(folder_of(config), config, folder_of(config) / out)
    return {claim["id"]: claim for claim in figures["claims"]}


def test_policies_are_paired_within_a_seed_and_the_interval_is_over_seeds(tmp_path: Path) -> None:
    config, found = swept(str(tmp_path), (1, 2, 3))
    for trial, (base, sft) in zip(found.trials, ((0.1, 0.4), (0.5, 0.7), (0.2, 0.6)), strict=True):
        # Questions differ by seed, as they do in a run; over questions alone the difference has no spread.
        evaluated(config, trial.steps["e_start"], {"near": [base] * 12})
        evaluated(config, trial.steps["e_tuned"], {"near": [sft] * 12})
    claim = decided(config)["sft-beats-base"]
    primary = next(one for one in claim["measurements"] if one["metric"] == "mg_pass_at_k")
    # 0.3, 0.2, 0.4: mean 0.3, deviation 0.1, over sqrt(3); t of two degrees of freedom at 97.5 %: 4.3027
    assert primary["difference"]["mean"] == pytest.approx(0.3)
    assert primary["difference"]["low"] == pytest.approx(0.3 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert (primary["num_seeds"], primary["num_questions"], primary["comparison"]) == (3, 36, "SFT - base")
    assert claim["outcome"] == "holds"


def test_seeds_that_disagree_leave_a_claim_undecided_though_each_alone_would_decide_it(tmp_path: Path) -> None:
    config, found = swept(str(tmp_path), (1, 2, 3))
    for trial, sft in zip(found.trials, (0.9, 0.8, 0.2), strict=True):
        evaluated(config, trial.steps["e_start"], {"near": [0.5] * 12})
        evaluated(config, trial.steps["e_tuned"], {"near": [sft] * 12})
    assert decided(config)["sft-beats-base"]["outcome"] == "undecided"


def test_two_seeds_decide_nothing_and_show_their_interval(tmp_path: Path) -> None:
    config, found = swept(str(tmp_path), (1, 2))
    for trial in found.trials:
        evaluated(config, trial.steps["e_start"], {"near": [0.1] * 12})
        evaluated(config, trial.steps["e_tuned"], {"near": [0.9] * 12})
    claim = decided(config)["sft-beats-base"]
    assert claim["outcome"] == "undecided" and "2 seeds, fewer than 3" in claim["note"]
    assert claim["measurements"][0]["difference"]["low"] == pytest.approx(0.8)


def test_a_swept_setting_is_compared_at_its_ends_and_policies_at_the_runs_own(tmp_path: Path) -> None:
    config, found = swept(str(tmp_path), (1, 2, 3), sft__num_trajectories=[1, 32])
    for trial in found.trials:
        few = trial.values["sft.num_trajectories"] == 1
        jitter = trial.values["seed"] / 100
        evaluated(config, trial.steps["e_start"], {"near": [0.3] * 12})
        evaluated(config, trial.steps["e_tuned"], {"near": [0.2 + jitter if few else 0.6] * 12})
    found_claims = decided(config)
    more = found_claims["sft-more-trajectories"]
    assert (more["outcome"], more["text"]) == (
        "holds",
        "SFT on more trajectories per question is better (sft.num_trajectories)",
    )
    # Of 0.39, 0.38 and 0.37
    assert more["measurements"][0]["difference"]["mean"] == pytest.approx(0.38)
    # Nothing is at the run's own settings alone, so SFT on one trajectory counts too: it is worse than base.
    assert found_claims["sft-beats-base"]["outcome"] == "does not hold"


def test_policies_of_a_grid_that_varies_something_do_not_speak_for_the_recipe(tmp_path: Path) -> None:
    config = override(
        Config(),
        {
            "root": str(tmp_path),
            "name": "demo",
            "steps": STEPS,
            "evaluate.num_bootstrap": 200,
            "ablate.grids": {"own": {}, "few": {"space": {"sft.num_trajectories": [1]}, "steps": ["e_tuned"]}},
        },
    )
    found = sweep.expanded(config, {"seed": [1]})
    folder_of(config).write_json(sweep.SWEEP_FILE, {"trials": [trial._asdict() for trial in found.trials]})
    own, few = found.trials
    for step in found.config.steps:
        if step.stage in ("base", "sft", "grpo"):
            finish(found.config, step.name, {})
    evaluated(found.config, own.steps["e_start"], {"near": [0.3] * 12})
    evaluated(found.config, own.steps["e_tuned"], {"near": [0.6] * 12})
    evaluated(found.config, few.steps["e_tuned"], {"near": [0.1] * 12})
    claim = decided(found.config)["sft-beats-base"]
    assert claim["outcome"] == "holds" and len([m for m in claim["measurements"] if m["decides"]]) == 1


def test_steadiness_is_the_ratio_of_means_and_not_the_mean_of_ratios() -> None:
    # mG-Pass@k 0.2 and 0.4, Pass@k 0.5 and 1: means 0.3 and 0.75
    evaluation: Any = type("E", (), {"values": {"near": {"mg_pass_at_k": {"a": 0.2, "b": 0.4},
                                                         "pass_at_k": {"a": 0.5, "b": 1.0}}}})  # fmt: skip
    values = report_claims._steadiness(evaluation, "near")
    assert sum(values.values()) / 2 == pytest.approx(0.3 / 0.75)
    # a: 0.4 + (0.2 - 0.4 * 0.5) / 0.75
    assert values["a"] == pytest.approx(0.4)


def test_the_gradients_variance_is_compared_at_versions_that_both_measured(tmp_path: Path) -> None:
    config, found = swept(str(tmp_path), (1, 2, 3), grpo__num_updated=[1, 8, 32])
    variance = {1: 8.0, 8: 1.0, 32: 0.0}  # of 32 of 32 there is none
    for trial in found.trials:
        updated, seed = trial.values["grpo.num_updated"], trial.values["seed"]
        with MetricsFile(folder_of(config) / trial.steps["zero"]) as metrics:
            metrics.append(5, {"grpo/gradient_variance": variance[updated]})
            if updated == 1:
                metrics.append(10, {"grpo/gradient_variance": 100.0})
            metrics.append(15, {"grpo/gradient_variance": variance[updated] * (seed if updated == 1 else 1)})
    claim = decided(config)["gradient-variance-falls"]
    deciding, beside = claim["measurements"]
    # log 8 at version 5; log 8, 16 and 24 at version 15: mean log 8 + mean(0, log 2, log 3) / 2
    assert deciding["difference"]["mean"] == pytest.approx(2.0794 + (0.6931 + 1.0986) / 6, abs=1e-3)
    # (1 - 1/32) / (1/8 - 1/32) = 10.33
    assert deciding["difference"]["mean"] - beside["difference"]["mean"] == pytest.approx(2.3354, abs=1e-3)
    assert claim["outcome"] == "holds" and deciding["num_seeds"] == 3


@pytest.mark.parametrize("closed", [{"prompt.thinking": False}, {"prompt.response_prefix": "<think>\n\n</think>\n"}])
def test_thinking_and_not_thinking_are_compared_on_the_same_questions(tmp_path: Path, closed: dict[str, Any]) -> None:
    steps = (
        STEPS[0],
        {"name": "open", "stage": "evaluate", "policy": "start"},
        {"name": "shut", "stage": "evaluate", "policy": "start", "overrides": closed},
    )
    config = override(Config(), {"root": str(tmp_path), "steps": steps, "evaluate.num_bootstrap": 200})
    finish(config, "start", {})
    evaluated(config, "open", {"near": [0.6] * 12})
    evaluated(config, "shut", {"near": [0.2] * 12})
    claim = decided(config)["end-of-thought-riskier"]
    assert claim["outcome"] == "holds"
    assert claim["measurements"][0]["difference"]["mean"] == pytest.approx(0.4)


def test_the_page_says_what_the_intervals_are_over_and_which_claims_it_does_not_ask(tmp_path: Path) -> None:
    config, found = swept(str(tmp_path), (1, 2, 3))
    for trial in found.trials:
        evaluated(config, trial.steps["e_start"], {"near": [0.1] * 12})
        evaluated(config, trial.steps["e_tuned"], {"near": [0.4] * 12})
    decided(config)
    html = (folder_of(config) / "page").read_text("report.html")
    assert "Training seeds 1, 2, 3" in html and "One training seed" not in html
    assert "Run <code>demo</code>, seeds 1, 2, 3" in html
    left_out = re.search(r"claims that this run does not ask.*?</details>", html, re.DOTALL)
    assert left_out and "raml ablate miniature_sft_trajectories" in left_out[0]
    assert "SFT is better than base" not in left_out[0]


def test_the_seeds_of_a_run_are_those_of_what_is_compared(tmp_path: Path) -> None:
    config, found = swept(str(tmp_path), (4, 7))
    evaluated(config, found.trials[0].steps["e_start"], {"near": [0.1] * 12})
    run = report.read(folder_of(config), config)
    assert report_seeds.seeds(run) == [4, 7]  # grpo of both, evaluate of one


def test_policies_that_were_sampled_differently_are_not_compared_in_steadiness_either(tmp_path: Path) -> None:
    steps = (*STEPS[:5], {**STEPS[5], "overrides": {"evaluate.temperature": 1.0}})
    config = override(Config(), {"root": str(tmp_path), "steps": steps, "evaluate.num_bootstrap": 200})
    for name in ("start", "tuned", "zero"):
        finish(config, name, {})
    evaluated(config, "e_tuned", {"near": [0.9] * 12})
    evaluated(config, "e_zero", {"near": [0.5] * 12})
    claim = decided(config)["sft-steadier"]
    assert (claim["outcome"], list(claim["measurements"])) == ("undecided", [])
    assert "evaluated differently: evaluate.temperature" in claim["note"]
