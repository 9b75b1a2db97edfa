"""A run's folder with chosen numbers, and what the report says of it."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raml_ray import records
from raml_ray.config import Config, override
from raml_ray.formulas.metrics import bootstrap_interval
from raml_ray.metrics_file import MetricsFile
from raml_ray.stages import pipeline, report, report_data, report_outcomes
from raml_ray.stages.context import manifest
from raml_ray.stages.report_outcomes import Outcome
from raml_ray.storage import Folder

METRICS = ("accuracy", "pass_at_k", "mg_pass_at_k", "g_pass_at_k_0.5", "g_pass_at_k_1.0")
STEPS: tuple[dict[str, Any], ...] = (
    {"name": "start", "stage": "base"},
    {"name": "made", "stage": "generate", "overrides": {"generate.source": "oracle"}},
    {"name": "judged", "stage": "verify", "data": ("made",)},
    {"name": "tuned", "stage": "sft", "policy": "start", "data": ("judged",)},
    {"name": "zero", "stage": "grpo", "policy": "start"},
    {"name": "cold", "stage": "grpo", "policy": "tuned"},
    {"name": "e_start", "stage": "evaluate", "policy": "start"},
    {"name": "e_tuned", "stage": "evaluate", "policy": "tuned"},
    {"name": "e_zero", "stage": "evaluate", "policy": "zero"},
    {"name": "e_cold", "stage": "evaluate", "policy": "cold"},
    {"name": "probed", "stage": "analyze", "policy": "cold", "data": ("judged",)},
    {"name": "page", "stage": "report"},
)


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = str(tmp_path_factory.mktemp("runs"))
    return override(Config(), {"root": root, "name": "demo", "steps": STEPS, "evaluate.num_bootstrap": 200})


def folder_of(config: Config) -> Folder:
    return Folder(config.root) / config.name


def finish(
    config: Config, name: str, figures: dict[str, Any], counts: tuple[int, int, int, int] = (8, 8, 0, 0)
) -> Folder:
    step = config.step(name)
    summary = {
        "step": name,
        "stage": step.stage,
        "fingerprint": f"f-{name}",
        "policy": step.policy,
        "data": list(step.data),
        "counts": dict(zip(("rows_in", "rows_out", "rejected", "filtered"), counts, strict=True)),
        "figures": figures,
        "seconds": {"total": 2.0},
        "versions": {"torch": "2.13.0"},
        "peak_memory_gib": 0.5,
    }
    folder = folder_of(config) / name
    folder.write_json("summary.json", summary)
    folder.write_json("manifest.json", manifest(pipeline.context_of(config, step, folder_of(config)), {}))
    return folder


def evaluated(config: Config, name: str, values: dict[str, Sequence[float]]) -> None:
    """An evaluate step whose three metrics all have these values, question by question."""
    sets, rows = {}, []
    for set_name, per_question in values.items():
        found = bootstrap_interval(per_question, num_resamples=200, seed=0)._asdict()
        sets[set_name] = {"num_questions": len(per_question), "mean_tokens": 31.0, "truncated_fraction": 0.0,
                          "unreadable_fraction": 0.25} | dict.fromkeys(METRICS, found)  # fmt: skip
        rows += [
            {"set": set_name, "question_id": f"q{i}", "num_samples": 16, "num_correct": round(16 * value)}
            | dict.fromkeys(("accuracy", "pass_at_k", "mg_pass_at_k"), value)
            for i, value in enumerate(per_question)
        ]
    folder = finish(config, name, {"k": 8, "num_samples": 16, "temperature": 0.6, "sets": sets})
    folder.write_table("per_question.parquet", pa.Table.from_pylist(rows))


def analyzed(
    config: Config,
    *,
    wrong_end: float,
    correct: tuple[float, float] = (3.0, 2.1),
    wrong: tuple[float, float] = (3.0, 2.9),
) -> None:
    """Straight curves over ten prefixes, between the two values of their group; the eleventh is behind the answer."""
    rows = []
    for question in range(12):
        for group, end, before in (("correct", 0.25, correct), ("wrong", wrong_end, wrong)):
            rows.append(
                {
                    "trajectory_id": f"{group}{question}",
                    "probe": "gold",
                    "position": list(range(11)),
                    "lhat": [before[0] + (before[1] - before[0]) * step / 9 for step in range(10)] + [end],
                    "foil_margin": None,
                    "leak_position": 10 if group == "correct" else None,
                    "group": group,
                    "question_id": f"q{question}",
                    "num_tokens": 13,
                    "think_position": 0,
                    "num_suffix": 3,
                }
            )
    folder = finish(config, "probed", {"groups": {"correct": {"num": 12}, "wrong": {"num": 12}}})
    (folder / "curves").write_table("shard-0.parquet", records.table(rows, records.ANSWER_CURVE))


def whole_run(config: Config) -> None:
    folder = finish(config, "start", {})
    with MetricsFile(folder) as metrics:
        for step in range(40):
            metrics.append(step, {"base/loss": 3.0 - step / 40})
    finish(config, "made", {}, (64, 64, 0, 0))
    finish(config, "judged", {"verdicts": {"correct": 60, "wrong": 4}, "reasons": {"exact": 60, "different": 4}})
    with MetricsFile(finish(config, "tuned", {}, (64, 60, 1, 3))) as metrics:
        metrics.append(1, {"sft/loss": 0.9})
    for name in ("zero", "cold"):
        with MetricsFile(finish(config, name, {})) as metrics:
            for step in range(3):
                metrics.append(
                    step, {"grpo/reward": step / 4, "grpo/response_tokens": 30.0, "grpo/sync_max_error": 2e-6}
                )
    evaluated(config, "e_start", {"near": [0.1] * 12, "far": [0.0] * 12})
    evaluated(config, "e_tuned", {"near": [0.6] * 12, "far": [0.5] * 12})
    evaluated(config, "e_zero", {"near": [0.7, 0.5] * 6, "far": [0.6] * 12})
    evaluated(config, "e_cold", {"near": [0.9] * 12, "far": [0.4] * 12})
    analyzed(config, wrong_end=3.25)


def outcomes(figures: dict[str, Any]) -> dict[str, str]:
    return {claim["text"]: claim["outcome"] for claim in figures["claims"]}


def test_each_claim_is_decided_by_the_paired_difference_on_every_set(config: Config) -> None:
    whole_run(config)
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    assert outcomes(figures) == {
        "SFT is better than base": "holds",  # +0.5 on every question of both sets
        "Zero-GRPO is better than base": "holds",  # +0.6 or +0.4; +0.6
        "SFT is better than Zero-GRPO": "does not hold",  # -0.1 or +0.1 near, -0.1 on every question far
        "SFT + GRPO is better than SFT": "does not hold",  # +0.3 near, -0.1 far
        "SFT + GRPO is better than Zero-GRPO": "does not hold",  # -0.2 far
        "SFT answers more steadily than Zero-GRPO": "undecided",  # all three metrics are alike here, both ratios are 1
        "L-hat falls along a correct trajectory, before its answer is written": "holds",  # tau = -1
        # 3.25 (no answer is written) - 2.1 for each question
        "L-hat ends higher on wrong trajectories than on correct ones, before the answer is written": "holds",
    }
    first = next(one for one in figures["claims"][0]["measurements"] if one["metric"] == "mg_pass_at_k")
    assert first["difference"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert first["num_questions"] == 12 and first["where"] == "near" and first["level"] == 0.975
    before, drawn = figures["claims"][-1]["measurements"]
    # "wrong" has no leak, so its last prefix is the one that ends higher still
    assert before["difference"]["mean"] == pytest.approx(3.25 - 2.1) and drawn["difference"]["mean"] == pytest.approx(3)


def test_a_difference_whose_interval_holds_zero_is_undecided(config: Config) -> None:
    evaluated(config, "e_start", {"near": [0.5] * 12})
    evaluated(config, "e_tuned", {"near": [0.7, 0.3] * 6})
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    assert outcomes(figures) == {"SFT is better than base": "undecided"}


def test_policies_are_compared_on_the_questions_that_both_were_asked(config: Config) -> None:
    evaluated(config, "e_start", {"near": [0.1] * 10 + [0.9] * 10})
    evaluated(config, "e_tuned", {"near": [0.2] * 10})  # q0 .. q9 alone: better there, worse by the means
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    assert outcomes(figures) == {"SFT is better than base": "holds"}
    assert figures["claims"][0]["measurements"][0]["num_questions"] == 10


def test_the_page_needs_nothing_from_outside_and_is_well_formed(config: Config) -> None:
    whole_run(config)
    out = folder_of(config) / "page"
    figures = report.build(folder_of(config), override(config, {"report.title": "<b>A & B"}), out)
    html = out.read_text("report.html")
    assert figures["num_figures"] == 4 and html.count("<svg") == 4
    assert "&lt;b&gt;A &amp; B" in html and "<b>A" not in html
    fetched = re.findall(r'(?:src|href)="(?!#)([^"]*)"|url\((?!#)([^)]*)\)|@import', html)
    assert fetched == []
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    balance = Balance()
    balance.feed(html)
    assert balance.open == []


class Balance(HTMLParser):
    """The elements that are open, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()


def test_sections_come_in_order_and_tables_show_what_the_steps_counted(config: Config) -> None:
    whole_run(config)
    out = folder_of(config) / "page"
    report.build(folder_of(config), config, out)
    html = out.read_text("report.html")
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "What ran",
        "What came out, and what did not come out as the paper says",
        "Policies",
        "Training",
        "L-hat along the trajectory",
        "Verdicts",
        "Rows",
        "Weight syncs",
        "How to reproduce",
    ]
    assert "60<small>93.8 %</small>" in html  # 60 of 64 verdicts
    rows = {
        name: re.findall(r"<td[^>]*>(.*?)</td>", row) for name, row in re.findall(r"<tr><th>(\w+)</th>(.*?)</tr>", html)
    }
    assert rows["tuned"] == ["64", "60", "1", "3"]
    assert "one training seed" in html.lower() and "not over training seeds" in html


def test_every_figure_is_kept_as_svg_png_and_the_rows_it_draws(config: Config) -> None:
    whole_run(config)
    out = folder_of(config) / "page"
    report.build(folder_of(config), config, out)
    kept = [
        f"{name}.{kind}"
        for name in ("evaluation", "lhat_controlled_probed", "lhat_probed", "training")
        for kind in ("parquet", "png", "svg")
    ]
    assert (out / "figures").names() == kept
    assert (out / "figures").read_bytes("training.png")[:4] == b"\x89PNG"
    rows = pq.read_table((out / "figures").file("evaluation.parquet")).to_pylist()
    assert len(rows) == 4 * 2 * 3  # policies, sets, metrics
    assert {row["policy"] for row in rows} == {"base", "SFT", "Zero-GRPO", "SFT + GRPO"}
    points = pq.read_table((out / "figures").file("lhat_probed.parquet")).to_pylist()
    assert [(p["x"], pytest.approx(p["lhat"])) for p in (points[0], points[5], points[10])] == [
        (0, 3),
        (0.5, 2.5),
        (1, 0.25),
    ]
    # s1 = 0.01 * 2.9 + 0.99 * 3
    assert points[1]["paper_smooth"] == pytest.approx(2.999, abs=1e-4)


def test_lhat_of_fixed_trajectories_is_drawn_with_its_interval_and_what_one_run_gives_without(config: Config) -> None:
    whole_run(config)
    with MetricsFile(folder_of(config) / "start") as metrics:
        metrics.append(40, {"probe/lhat_before_leak": 2.0, "probe/lhat_before_leak_se": 0.5})
        metrics.append(50, {"probe/lhat_before_leak": 1.0})  # of one trajectory alone
    out = folder_of(config) / "page"
    report.build(folder_of(config), config, out)
    rows = pq.read_table((out / "figures").file("training.parquet")).to_pylist()
    probed = [row for row in rows if row["metric"] == "probe/lhat_before_leak"]
    assert [(row["x"], row["value"], row["low"], row["high"]) for row in probed] == [
        (40, 2.0, pytest.approx(1.02), pytest.approx(2.98)),
        (50, 1.0, None, None),
    ]
    assert all(row["low"] is None for row in rows if row["metric"] != "probe/lhat_before_leak")
    assert "1.96 standard errors over the fixed trajectories" in out.read_text("report.html")


def test_the_papers_panel_holds_what_its_notebook_draws(config: Config) -> None:
    analyzed(config, wrong_end=3.25)
    curves = folder_of(config) / "probed" / "curves"
    rows = curves.read_table("shard-0.parquet").to_pylist()
    # <think> is the second token; ten tokens less a suffix of three leave the prefixes 2 .. 7, the zero is not drawn.
    of_paper = {"think_position": 2, "num_tokens": 10, "num_suffix": 3, "leak_position": 5}
    first, *rest = rows
    first |= of_paper | {"lhat": [9.0, 8.0, 4.0, 3.0, 0.0, 3.5, 1.0, 0.5, 7.0, 7.0, 7.0]}
    rest[0] |= {"num_tokens": 2}  # shorter than the suffix: nothing of it is drawn
    curves.write_table("shard-0.parquet", records.table([first, *rest], records.ANSWER_CURVE))
    page = folder_of(config) / "page"
    report.build(folder_of(config), config, page)
    points = pq.read_table((page / "figures").file("lhat_probed.parquet")).to_pylist()
    drawn = {p["position"]: (p["paper_x"], p["paper_smooth"]) for p in points if p["trajectory_id"] == "correct0"}
    # 0.01 * 3 + 0.99 * 4 = 3.99; 0.01 * 3.5 + 0.99 * 3.99 = 3.9851; ...
    expected = {2: (0.0, 4.0), 3: (0.25, 3.99), 5: (0.5, 3.9851), 6: (0.75, 3.955249), 7: (1.0, 3.92069651)}
    assert {position: point for position, point in drawn.items() if point[0] is not None} == {
        position: pytest.approx(point) for position, point in expected.items()
    }
    assert len(drawn) == 11
    assert not [p for p in points if p["trajectory_id"] == "wrong0" and p["paper_x"] is not None]
    html = page.read_text("report.html")
    assert "here analyze.until=&lt;/think&gt; ends the curve" in html
    assert "analyze.stride=" not in html


def test_a_run_without_a_finished_step_has_a_page_that_says_so(config: Config) -> None:
    out = folder_of(config) / "page"
    figures = report.build(folder_of(config), config, out)
    assert figures["claims"] == [] and figures["num_steps"] == 0
    html = out.read_text("report.html")
    assert "no finished step" in html and "Not finished: start, made" in html


def test_a_single_evaluation_is_shown_and_nothing_is_claimed(config: Config) -> None:
    evaluated(config, "e_zero", {"near": [0.25, 0.75]})
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    html = (folder_of(config) / "page").read_text("report.html")
    assert figures["claims"] == [] and "no claim of the paper can be checked" in html
    assert "<th>Zero-GRPO</th>" in html and "50.0<small>" in html


def test_accuracy_of_zero_everywhere_is_said_plainly(config: Config) -> None:
    for name in ("e_start", "e_tuned"):
        evaluated(config, name, {"near": [0.0] * 5})
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    assert figures["accuracy_near_zero"] and outcomes(figures) == {"SFT is better than base": "undecided"}
    assert "at or near zero for every policy" in (folder_of(config) / "page").read_text("report.html")


def test_the_papers_smoothed_fall_stands_beside_the_fall_before_the_leak(config: Config) -> None:
    analyzed(config, wrong_end=3.25, correct=(3.0, 3.9))  # it rises until the answer is written, at once
    smoothed = [3.0]
    for value in [3.0 + step / 10 for step in range(1, 10)] + [0.25]:
        smoothed.append(0.01 * value + 0.99 * smoothed[-1])
    rising = sum(b > a for i, a in enumerate(smoothed) for b in smoothed[i + 1 :])
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    before, drawn = figures["claims"][0]["measurements"]
    assert figures["claims"][0]["outcome"] == "does not hold" and before["difference"]["mean"] == -1.0
    assert before["num_questions"] == 12
    assert drawn["difference"]["mean"] == pytest.approx((55 - 2 * rising) / 55)


def test_a_fall_that_only_the_answer_makes_is_named(config: Config) -> None:
    analyzed(config, wrong_end=3.25, correct=(3.0, 3.0))  # flat until the answer is written: no trend to order
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    claim = figures["claims"][0]
    assert claim["outcome"] == "undecided" and [one["outcome"] for one in claim["measurements"]] == [
        "undecided",
        "holds",
    ]
    assert "by the answer being written" in claim["note"] and "long enough before its answer: 0" in claim["note"]


def test_policies_of_one_lineage_are_told_apart_and_a_setting_that_differs_is_compared(config: Config) -> None:
    few = {
        "name": "few",
        "stage": "sft",
        "policy": "start",
        "data": ("judged",),
        "overrides": {"sft.num_trajectories": 1},
    }
    steps = (*STEPS[:4], few, STEPS[6], STEPS[7], {"name": "e_few", "stage": "evaluate", "policy": "few"})
    config = override(config, {"steps": steps})
    finish(config, "tuned", {})
    finish(config, "few", {})
    evaluated(config, "e_tuned", {"near": [0.5] * 12})
    evaluated(config, "e_few", {"near": [0.2] * 12})
    labels = [one.label for one in report_data.read(folder_of(config), config).evaluations]
    assert labels == ["SFT (tuned)", "SFT (few)"]
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    assert outcomes(figures) == {"SFT on more trajectories per question is better (sft.num_trajectories)": "holds"}


def test_a_cold_start_is_compared_with_the_sft_that_it_came_from(config: Config) -> None:
    other = {"name": "other", "stage": "sft", "policy": "start", "data": ("judged",)}
    steps = (*STEPS[:6], other, STEPS[7], STEPS[9], {"name": "e_other", "stage": "evaluate", "policy": "other"})
    config = override(config, {"steps": steps})
    evaluated(config, "e_tuned", {"near": [0.5] * 12})
    evaluated(config, "e_other", {"near": [0.9] * 12})
    evaluated(config, "e_cold", {"near": [0.7] * 12})
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    assert outcomes(figures) == {"SFT + GRPO is better than SFT": "holds"}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("evaluate.temperature", 1.0),
        ("evaluate.max_tokens", 64),
        ("evaluate.top_p", 0.9),
        ("evaluate.top_k", 20),
        ("prompt.instruction", "Question: {problem}"),
    ],
)
def test_policies_evaluated_differently_are_not_compared(config: Config, setting: str, value: object) -> None:
    evaluated(config, "e_start", {"near": [0.1] * 12})
    evaluated(override(config, {f"steps.e_tuned.{setting}": value}), "e_tuned", {"near": [0.5] * 12})
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    (claim,) = figures["claims"]
    assert claim["outcome"] == "undecided" and claim["measurements"] == ()
    assert claim["note"] == f"SFT and base were evaluated differently: {setting}"


def test_one_pair_that_differs_in_two_settings_decides_neither_claim(config: Config) -> None:
    lengths = {"generate.source": "oracle", "generate.oracle_length": "short"}
    steps = (
        *STEPS[:4],
        {"name": "made_short", "stage": "generate", "overrides": lengths},
        {"name": "judged_short", "stage": "verify", "data": ("made_short",)},
        {"name": "short", "stage": "sft", "policy": "start", "data": ("judged_short",)},
        {"name": "few_short", "stage": "sft", "policy": "start", "data": ("judged_short",),
         "overrides": {"sft.num_trajectories": 1}},
        STEPS[7],
        {"name": "e_short", "stage": "evaluate", "policy": "short"},
        {"name": "e_few_short", "stage": "evaluate", "policy": "few_short"},
    )  # fmt: skip
    config = override(config, {"steps": steps})
    for name in ("start", "made", "judged", "tuned", "made_short", "judged_short", "short", "few_short"):
        finish(config, name, {"verdicts": {"correct": 1}})
    evaluated(config, "e_tuned", {"near": [0.5] * 12})
    evaluated(config, "e_few_short", {"near": [0.2] * 12})
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    assert figures["claims"] == []
    evaluated(config, "e_short", {"near": [0.6] * 12})  # differs from each of the two in one setting
    figures = report.build(folder_of(config), config, folder_of(config) / "page2")
    assert {claim["text"]: claim["measurements"][0]["comparison"] for claim in figures["claims"]} == {
        "SFT on more trajectories per question is better (sft.num_trajectories)": "SFT (short) - SFT (few_short)",
        "SFT on longer trajectories is better (generate.oracle_length)": "SFT (tuned) - SFT (short)",
    }
    assert list(outcomes(figures).values()) == ["holds", "does not hold"]


def test_fewer_than_ten_questions_decide_nothing(config: Config) -> None:
    evaluated(config, "e_start", {"near": [0.1] * 9})
    evaluated(config, "e_tuned", {"near": [0.9] * 9})
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    (claim,) = figures["claims"]
    assert claim["outcome"] == "undecided" and "9 shared questions, fewer than 10" in claim["note"]


def test_accuracy_near_zero_on_both_sides_decides_nothing_and_says_why(config: Config) -> None:
    evaluated(config, "e_start", {"near": [0.0] * 12})
    evaluated(config, "e_tuned", {"near": [0.02] * 12})  # the interval of the difference is above zero
    figures = report.build(folder_of(config), config, folder_of(config) / "page")
    (claim,) = figures["claims"]
    assert claim["measurements"][0]["difference"]["low"] > 0
    assert claim["outcome"] == "undecided" and "at or near zero on both sides" in claim["note"]


def test_sets_that_decide_together_share_the_chance_of_an_error() -> None:
    assert report_outcomes.level_for(1) == pytest.approx(0.95)
    assert report_outcomes.level_for(3) == pytest.approx(1 - 0.05 / 3)


def test_three_sets_refute_a_claim_about_equal_policies_no_more_often_than_one(config: Config) -> None:
    generator, num_runs, refuted = np.random.default_rng(0), 400, 0
    for _ in range(num_runs):
        sets = []
        for _ in range(3):
            values = {f"q{i}": value for i, value in enumerate(generator.normal(size=60))}
            level = report_outcomes.level_for(3)
            sets.append(report_outcomes.measured("", "", "", values, config, unit="points", level=level).outcome)
        refuted += report_outcomes.joined(sets) is Outcome.FAILS
    # 2.5 % expected (one side of 5 %) and one standard error is 0.8 %; three sets at 95 % each would give 7.3 %
    assert refuted / num_runs < 0.05


def test_a_metric_that_no_question_had_enough_samples_for_is_shown_as_a_dash(config: Config) -> None:
    evaluated(config, "e_start", {"near": [0.5] * 12, "far": [0.5] * 12})
    folder = folder_of(config) / "e_start"
    summary = folder.read_json("summary.json")
    summary["figures"]["sets"]["far"] |= dict.fromkeys(summary["figures"]["sets"]["far"].keys() & METRICS) | {
        "num_questions": 0
    }
    folder.write_json("summary.json", summary)
    report.build(folder_of(config), config, folder_of(config) / "page")
    cells = re.findall(r"<tr><th>base</th>(.*?)</tr>", (folder_of(config) / "page").read_text("report.html"))
    near, far = (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in cells)
    assert "50.0" in near[0] and far[:5] == ["-"] * 5


def test_published_verdicts_are_compared_policy_by_policy(config: Config) -> None:
    counts = {"both_correct": 3, "both_wrong": 1, "only_ours": 0, "only_published": 0, "unjudged": 0, "fraction": 1.0}
    nothing = dict.fromkeys(counts, 0) | {"unjudged": 2, "fraction": None}
    agreement = counts | {"unjudged": 2, "by_policy": {"one": counts, "two": nothing}}
    finish(config, "judged", {"verdicts": {"correct": 3, "wrong": 1}, "agreement": agreement})
    report.build(folder_of(config), config, folder_of(config) / "page")
    html = (folder_of(config) / "page").read_text("report.html")
    rows = {
        name: re.findall(r"<td[^>]*>(.*?)</td>", row) for name, row in re.findall(r"<tr><th>(\w+)</th>(.*?)</tr>", html)
    }
    assert rows["one"] == ["3", "1", "0", "0", "0", "100.00 %"] and rows["two"] == ["0", "0", "0", "0", "2", "-"]
    assert rows["together"] == ["3", "1", "0", "0", "2", "100.00 %"]


def test_the_figure_of_lhat_says_which_positions_were_probed(config: Config) -> None:
    analyzed(config, wrong_end=3.25)
    page = folder_of(config) / "page"
    report.build(folder_of(config), config, page)
    assert "every token up to and including &lt;/think&gt;; 24 of 24 trajectories go on" in page.read_text(
        "report.html"
    )
    curves = folder_of(config) / "probed" / "curves"
    rows = curves.read_table("shard-0.parquet").to_pylist()
    curves.write_table(
        "shard-0.parquet", records.table([row | {"num_tokens": 20} for row in rows[:6]], records.ANSWER_CURVE)
    )
    report.build(folder_of(config), config, page)
    told = "6 of 6 trajectories go on behind the last probed token, which lies at 50 % of their tokens"
    assert told in page.read_text("report.html")


def test_lhat_is_shown_beside_its_controls_and_before_the_answer_is_written(config: Config) -> None:
    analyzed(config, wrong_end=3.25)
    curves = folder_of(config) / "probed" / "curves"
    rows = curves.read_table("shard-0.parquet").to_pylist()
    for row in list(rows):
        margin = [place / 10 for place in range(11)]
        rows.append(row | {"probe": "shuffled", "lhat": [4.0] * 11})
        rows.append(row | {"probe": "spliced", "lhat": [4.0] * 5 + [0.5] * 6, "leak_position": 5})
        row["foil_margin"] = margin
    curves.write_table("shard-0.parquet", records.table(rows, records.ANSWER_CURVE))
    summary = (folder_of(config) / "probed").read_json("summary.json")
    excess = {"mean": 1.9, "low": 1.8, "high": 2.0}
    later = {"slope_after_leak": {"mean": -0.0125, "low": -0.02, "high": -0.01}}
    summary["figures"]["groups"]["correct"] |= {"shuffled": {"num": 12, "excess_before_leak": excess}} | later
    (folder_of(config) / "probed").write_json("summary.json", summary)
    page = folder_of(config) / "page"
    report.build(folder_of(config), config, page)
    drawn = pq.read_table((page / "figures").file("lhat_controlled_probed.parquet")).to_pylist()
    lines = {(row["panel"], row["line"], round(row["x"], 2)): row["mean"] for row in drawn}
    # Ten prefixes before the leak of the correct ones: from 3.0 to 2.1, halfway 2.55; none of the wrong ones holds it.
    assert lines["correct trajectories", "right answer, this trajectory", 0.5] == pytest.approx(2.55)
    assert lines["correct trajectories", "right answer, lines shuffled", 1.0] == 4.0
    assert lines["margin", "correct trajectories", 1.0] == pytest.approx(0.9)
    assert lines["margin", "wrong trajectories", 1.0] == pytest.approx(1.0)
    assert lines["around the leak", "right answer, this trajectory", -1] == pytest.approx(2.1)
    assert lines["around the leak", "right answer, this trajectory", 0] == pytest.approx(0.25)
    assert lines["around the leak", "right answer, spliced into another's trajectory", 0] == 0.5
    html = page.read_text("report.html")
    assert re.search(r"lines shuffled: L-hat more than in order[^<]*</th><td[^>]*>1.90<small>\[1.80, 2.00\]", html)
    slope = html.index("<small>[-2.00, -1.00]")  # -1.25 nats per 100 tokens
    assert html.index("lines shuffled: L-hat more") < html.index("where a fall may be copying") < slope
    assert slope < html.index("as the paper draws it (probed)")


def test_one_contradicting_set_refutes_and_one_open_set_leaves_open() -> None:
    assert report_outcomes.joined([Outcome.HOLDS, Outcome.HOLDS]) is Outcome.HOLDS
    assert report_outcomes.joined([Outcome.HOLDS, Outcome.UNDECIDED]) is Outcome.UNDECIDED
    assert report_outcomes.joined([Outcome.HOLDS, Outcome.UNDECIDED, Outcome.FAILS]) is Outcome.FAILS
    assert report_outcomes.joined([]) is Outcome.UNDECIDED
