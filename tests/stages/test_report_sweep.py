"""A sweep's folder with chosen accuracies, and what its page says of them."""

import math

import pytest

from raml_ray.config import Config, override
from raml_ray.stages import ablate, report, report_seeds, report_sweep, report_sweep_time, sweep
from raml_ray.stages.report_data import read
from tests.stages.test_report import evaluated, finish, folder_of

STEPS = (
    {"name": "start", "stage": "base"},
    {"name": "tuned", "stage": "grpo", "policy": "start"},
    {"name": "e", "stage": "evaluate", "policy": "tuned"},
    {"name": "page", "stage": "report"},
)


def swept(root: str, **space: list[object]) -> Config:
    """A finished sweep over grpo.num_updated and seed; accuracy is 0.1 * num_updated + 0.2 * seed on every question."""
    config = override(Config(), {"root": root, "name": "demo", "steps": STEPS, "evaluate.num_bootstrap": 200})
    found = sweep.expanded(config, {"grpo.num_updated": [1, 4], "seed": [0, 1]} | space)
    folder_of(config).write_json(sweep.SWEEP_FILE, {"trials": [trial._asdict() for trial in found.trials]})
    for trial in found.trials:
        finish(found.config, trial.steps["start"], {})
        finish(found.config, trial.steps["tuned"], {})
        value = 0.1 * trial.values["grpo.num_updated"] + 0.2 * trial.values["seed"]
        evaluated(found.config, trial.steps["e"], {"near": [value] * 4})
    return found.config


def test_two_seeds_have_the_interval_of_student() -> None:
    # mean 0.3, deviation 0.1 * sqrt(2), over sqrt(2): 0.1; t of one degree of freedom at 97.5 %: 12.706
    found = report_seeds.seeds_interval([0.2, 0.4])
    assert found == pytest.approx((0.3, 0.3 - 1.2706, 0.3 + 1.2706), abs=1e-4)
    alone = report_seeds.seeds_interval([0.2])
    assert alone.mean == 0.2 and math.isnan(alone.low)


def test_the_seeds_of_a_point_are_one_cell_and_points_stay_apart(tmp_path: object) -> None:
    config = swept(str(tmp_path))
    part, _ = report_sweep.swept(read(folder_of(config), config), folder_of(config))
    text, (figure,) = part.tables, part.figures
    rows = {(row["point"], row["metric"]): row for row in figure.rows.to_pylist()}
    assert set(rows) == {(point, metric) for point in ("(1,)", "(4,)") for metric in ("pass_at_k", "mg_pass_at_k")}
    assert rows["(1,)", "pass_at_k"]["mean"] == pytest.approx(0.2)  # of 0.1 and 0.3
    assert rows["(4,)", "pass_at_k"]["mean"] == pytest.approx(0.5)
    assert rows["(4,)", "pass_at_k"]["num_seeds"] == 2
    assert "4 trials" in text and "grpo.num_updated" in text and "Not whole" not in text


def test_a_trial_that_failed_is_named(tmp_path: object) -> None:
    config = swept(str(tmp_path))
    folder = folder_of(config)
    (folder / "e_num_updated_4_seed_1").remove()
    (folder / "trials" / "num_updated_4_seed_1").write_json("result.json", {"status": "failed", "error": "lost"})
    part, _ = report_sweep.swept(read(folder, config), folder)
    text, (figure,) = part.tables, part.figures
    assert "num_updated_4_seed_1 (failed)" in text
    assert {row["point"]: row["num_seeds"] for row in figure.rows.to_pylist()} == {"(1,)": 2, "(4,)": 1}


def test_the_page_leads_with_the_sweep_and_a_plain_run_has_none(tmp_path: object) -> None:
    config = swept(str(tmp_path))
    report.build(folder_of(config), config, folder_of(config) / "page")
    page = (folder_of(config) / "page").read_text("report.html")
    assert page.index("<h2>Sweep</h2>") < page.index("<h2>What ran</h2>")
    assert (folder_of(config) / "page" / "figures").exists("sweep.parquet")
    (folder_of(config) / sweep.SWEEP_FILE).remove()
    assert report_sweep.swept(read(folder_of(config), config), folder_of(config)) == []


@pytest.mark.parametrize(
    ("clock", "between", "told"),
    [
        (25.0, "5.0 s", "20.0 s in finished steps, 0.80 at once on average; by the clock 12.50 times the learners'"),
        (8.0, "", "20.0 s in finished steps, 2.50 at once on average; by the clock 4.00 times the learners'"),
    ],
)
def test_the_time_of_a_sweep_is_of_the_clock_and_steps_of_their_own(
    tmp_path: object, clock: float, between: str, told: str
) -> None:
    config = swept(str(tmp_path))  # 2 base policies, 4 learners and 4 evaluations, 2 s each
    folder = folder_of(config)
    folder.write_json(sweep.ATTEMPTS, [{"seconds": clock}])
    (folder / "tuned_num_updated_4_seed_1").write_text("metrics.jsonl", '{"step": 1, "time/step_s": 2.0}\n')
    page = report_sweep_time.spent(read(folder, config), folder)
    assert told in page
    assert ("processes of trials" in page and between in page) == bool(between)


def test_what_a_trials_evaluations_found_is_told_by_set_and_metric(tmp_path: object) -> None:
    config = swept(str(tmp_path))
    steps = {"start": "start_seed_1", "e": "e_num_updated_4_seed_1"}
    found = ablate.evaluated(config, folder_of(config), steps)
    assert found["e/near/pass_at_k"] == pytest.approx(0.1 * 4 + 0.2)
    assert {name.rpartition("/")[0] for name in found} == {"e/near"}
