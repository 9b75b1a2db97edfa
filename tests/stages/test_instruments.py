"""Pseudo-updates, roles and landscapes of a tiny policy: what is measured, counted, kept, and shown."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from raml_ray import records
from raml_ray.config import Config, ConfigError, Step, flatten, override
from raml_ray.miniature import base
from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import BaseConfig, PromptConfig
from raml_ray.stages import analyze, report_data, report_instruments, report_pseudo_update, verify
from raml_ray.stages.context import Context
from raml_ray.stages.instruments import chosen, interventions, landscape, pseudo_update, roles
from raml_ray.stages.report_figures import STYLE
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_outcomes import Outcome
from raml_ray.text import suffix
from raml_ray.workers.answer_loss import answer_loss
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


def test_several_policies_tokens_stand_beside_each_other(tmp_path: Path) -> None:
    context = contexts.context(tmp_path / "run", Step(name="a", stage="analyze"))
    steps = []
    for name, transfer in (("softmax", [1.5]), ("delta", [2e-6])):
        rows = [each | {"transfer_error": transfer} for each in tokens("t", [0.1, 0.3], 0.1, [0.0])]
        groups = {"correct": {"answer": pseudo_update.figures(rows, context)}}
        steps.append(replace(finished(context, {"groups": groups}), name=name, policy=f"base_{name}"))
    made = replace(steps[1], name="base_delta", stage="base", settings={"base.attention": "delta"})
    assert (
        report_pseudo_update._attention(report_data.Run(Config(), (made,), (), ()), steps[1]) == "base.attention=delta"
    )
    table = report_pseudo_update._beside(steps)
    for expected in (
        "softmax (of base_softmax)",
        "delta (of base_delta)",
        ">1.5e+00<",
        ">2.0e-06<",
        ">0.200<",
        ">0.100<",
    ):
        assert expected in table


@pytest.mark.parametrize("attention", ["linear", "delta"])
def test_a_twins_tokens_are_changes_of_its_states(attention: str, tmp_path: Path) -> None:
    tokenizer = miniature.build()
    shape = BaseConfig(attention=attention, hidden_size=64, num_heads=2, num_layers=2, intermediate_size=64)
    base.save(base.initial(shape, tokenizer, seed=0), tokenizer, tmp_path / "policy")
    config = override(Config(), {"analyze.instrument": "pseudo_update", "pseudo_update.num_positions": 3})
    updates = pseudo_update.Updates(chosen.opened(str(tmp_path / "policy"), config), config)
    found = [each | {"trajectory_id": f"t{n}"} for n in range(2) for each in updates.of(row(TEXT))]
    assert [(each["position"], each["reader"]) for each in found[:3]] == [(at, "answer") for at in (1, 6, 11)]
    context = contexts.context(tmp_path / "run", Step(name="a", stage="analyze"))
    summed = pseudo_update.figures(found, context)
    assert summed["reconstruction_error_max"] < 1e-5
    assert summed["transfer_error"]["mean"] < 1e-4
    assert summed["mass"] is None
    step = Step(name="twin", stage="analyze", overrides={"analyze.instrument": "pseudo_update"})
    context = contexts.context(tmp_path / "run", step)
    (context.folder / "updates").write_table("shard-000000.parquet", records.table(found, pseudo_update.TOKEN))
    groups = {"correct": {"answer": summed, "token": pseudo_update.figures([], context)}}
    page = shown(finished(context, {"groups": groups}))
    assert "for every later query" in page.tables
    assert page.claims[0].note == "questions: 1, fewer than 10: too few to decide"
    assert panels(page) == {"direction", "size", "transfer"}


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


def curve(lhat_K: list[float], leak: int | None, **changes: object) -> chosen.Row:
    return row(TEXT, position=list(range(len(lhat_K))), lhat=lhat_K, leak_position=leak) | changes


# <think> \n _ 7 9 \n Wait _ 16 \n </think>: halves over Wait (the 7th), doubles over the 7
LHAT_K = [4.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 4.0, 4.0, 1.0, 1.0, 1.0]


def test_words_are_held_against_like_places_before_the_answer() -> None:
    (found,) = roles.Roles(miniature.build(), Config()).of(curve(LHAT_K, 9))
    by_text = {word["text"]: word for word in found["words"]}
    wait = by_text["Wait"]
    assert (wait["category"], wait["start"], wait["num_tokens"]) == ("reflection", 6, 1)
    assert (wait["before"], wait["after"], wait["before_leak"]) == (8.0, 4.0, True)
    assert wait["log_ratio"] == pytest.approx(-math.log(2))
    # like places: tokens 5 4 7 3 2 1 0, of which one doubles and none halves; 8 is the answer
    assert wait["matched"] == pytest.approx(-math.log(2) - math.log(2) / 7)
    assert wait["matched_size"] == pytest.approx(math.log(2) - math.log(2) / 7)
    # six are smaller, and the one that doubles is as large
    assert wait["size_rank"] == pytest.approx(6.5 / 7 - 0.5)
    seven = by_text["7"]
    assert (seven["category"], seven["log_ratio"]) == ("calculation", pytest.approx(math.log(2)))
    assert not by_text["16"]["before_leak"]


def test_the_papers_statistic_is_of_what_its_notebook_looks_at() -> None:
    measure = roles.Roles(miniature.build(), Config())
    # <think> \n Wait 9 \n _ 7 \n Wait 9 \n </think>
    text = "<think>\nWait 9\n _ 7\nWait 9\n</think>\n\n**Final Answer**\n\\boxed{16}"
    lhat_K = [7.0, 4.0, 4.0, 2.0, 1.0, 1.0, 3.0, 3.0, 5.0, 9.0, 9.0, 9.0, 9.0]
    (found,) = measure.of(curve(lhat_K, None, text=text))
    # behind <think> to before </think> eleven entries, and six less, as many as suffix and 16 have tokens: 4 4 2 1 1
    assert found["paper_changes"] == pytest.approx([0, 0.5, 0.5, 0])
    # from before Wait to one token beyond it, 4 to 1; the second Wait stands among what is dropped
    assert found["paper_words"] == [{"word": "Wait", "change": pytest.approx(0.75)}]
    # an answer of one token drops one less: 3 behind 1
    (found,) = measure.of(curve(lhat_K, None, text=text, answer="6"))
    assert found["paper_changes"] == pytest.approx([0, 0.5, 0.5, 0, 2.0])


def test_curves_that_are_not_of_these_tokens_are_set_aside() -> None:
    measure = roles.Roles(miniature.build(), Config())
    with pytest.raises(ValueError, match="stride=1"):
        list(measure.of(curve(LHAT_K, 9, position=[*range(11), 12])))
    with pytest.raises(ValueError, match="other tokens"):
        list(measure.of(curve([1.0] * 40, 9)))


def test_roles_are_medians_and_the_papers_are_means(tmp_path: Path) -> None:
    context = contexts.context(tmp_path / "run", Step(name="a", stage="analyze"))
    measure = roles.Roles(miniature.build(), Config())
    rows = [*measure.of(curve(LHAT_K, 9)), *measure.of(curve([5.0] * 12, 9, trajectory_id="u"))]
    found = roles.figures(rows, context)
    reflection = found["categories"]["reflection"]
    assert (reflection["num_words"], reflection["num_before_leak"]) == (2, 2)
    # of -log 2 and 0
    assert reflection["log_ratio"]["median"] == pytest.approx(-math.log(2) / 2)
    # ranks of 3/7, and of 0 where nothing moves
    assert reflection["size_rank"]["mean"] == pytest.approx(3 / 14)
    assert reflection["matched_size"]["mean"] == pytest.approx(3 / 7 * math.log(2))
    assert found["categories"]["answer"]["log_ratio"] is found["categories"]["answer"]["size_rank"] is None
    # of ten entries behind <think> the last six are dropped; one of three changes is 1, and of the other three none is any
    assert found["paper"]["average"] == {
        "num": 6,
        "mean": pytest.approx(1 / 6),
        "std": pytest.approx(math.sqrt(1 / 6 - 1 / 36)),
    }
    changed = {"paper_words": [{"word": "Wait", "change": change} for change in (0.5, 0.0)]}
    assert roles.figures([{**rows[0], **changed}], context)["paper"]["Wait"] == {"num": 2, "mean": 0.25, "std": 0.25}


def test_words_without_curves_are_refused(tmp_path: Path) -> None:
    context = contexts.context(tmp_path / "run", Step(name="a", stage="analyze", data=("other",)))
    (tmp_path / "run" / "other").mkdir(parents=True)
    (tmp_path / "run" / "other" / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"name a step with analyze\.instrument=lhat"):
        roles.run(context)


SMALL: dict[str, object] = {"num_points": 3, "radii": [0.5], "num_prefixes": 2, "points_per_shard": 5}


def landscapes(tmp_path: Path, **settings: object) -> tuple[list[chosen.Row], list[chosen.Row]]:
    """The blocks of one trajectory, and what is measured of them."""
    config = override(Config(), {f"landscape.{name}": value for name, value in (SMALL | settings).items()})
    blocks = landscape.blocks([row(TEXT)], config.landscape)
    measure = landscape.Landscape(chosen.opened(contexts.policy(tmp_path / "policy"), config), config)
    return blocks, [each for block in blocks for each in measure.of(block)]


def test_every_grid_point_is_measured_once_behind_every_prefix(tmp_path: Path) -> None:
    blocks, found = landscapes(tmp_path)
    # nine points in blocks of five and four, on two planes
    assert [(block["block"], block["is_first"]) for block in blocks] == [
        ("t/random/0.5/0", True),
        ("t/random/0.5/5", False),
        ("t/update/2/0", True),
        ("t/update/2/5", False),
        ("t/update/0.5/0", False),
        ("t/update/0.5/5", False),
    ]
    points = [(each["plane"], each["x"], each["y"], each["prefix"]) for each in found if each["kind"] == "grid"]
    # the two grids of the update plane share their middle
    assert len(points) == 3 * 9 * 2 == len(set(points)) + 2
    middles = [each for each in found if each["kind"] == "grid" and each["x"] == each["y"] == 0]
    # the policy itself, on whatever plane
    assert [each["prefix"] for each in middles] == [0, 11] * 3
    for plane in (middles[2:4], middles[4:]):
        assert [each["lhat"] for each in plane] == pytest.approx([each["lhat"] for each in middles[:2]])


def test_a_trajectory_has_a_path_and_rivals_on_its_own_plane_alone(tmp_path: Path) -> None:
    _, found = landscapes(tmp_path)
    path = [each for each in found if each["kind"] == "path"]
    assert [(each["plane"], each["prefix"]) for each in path] == [("update", 0), ("update", 6), ("update", 11)]
    assert (path[0]["x"], path[0]["y"]) == (0.0, 0.0)
    assert path[-1]["x"] ** 2 + path[-1]["y"] ** 2 == pytest.approx(1.0, rel=1e-3)
    assert [each["kind"] for each in found if each["kind"] in landscape.CHANGES] == list(landscape.CHANGES)
    at = {each["kind"]: each["lhat"] for each in found if each["kind"] in landscape.CHANGES}
    assert at["gradient"] < path[0]["lhat"]


def test_a_landscape_without_its_middle_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"landscape\.num_points=10 is even"):
        override(Config(), {"landscape.num_points": 10})
    with pytest.raises(ConfigError, match=r"landscape\.radii=\[1.0, 1.0\]"):
        override(Config(), {"landscape.radii": [1.0, 1.0]})


def test_the_rise_around_the_policy_is_a_mean_over_trajectories(tmp_path: Path) -> None:
    def grid(trajectory: str, values: list[float]) -> list[chosen.Row]:
        head = {"trajectory_id": trajectory, "plane": "random", "radius": 0.5, "kind": "grid", "share": 0.0}
        return [head | {"x": float(x), "y": 0.0, "lhat": value} for x, value in zip((-1, 0, 1), values, strict=True)]

    found = landscape.figures(grid("a", [3.0, 1.0, 2.0]) + grid("b", [2.0, 2.0, 1.0]), 0)
    around = found["planes"]["random_0.5"]["without"]
    # rises of 1.5 and -0.5; of a's others none is lower, of b's one of two
    assert (around["middle"]["mean"], around["rise"]["mean"], around["lower"]["mean"]) == (1.5, 0.5, 0.25)
    assert found["in_place"]["update"] is None


def interventions_of(
    tmp_path: Path, text: str, frequency: Mapping[str, int] | None = None, **settings: object
) -> tuple[interventions.Interventions, chosen.Row]:
    changes = {"neutral": ["re: _"], "num_words": 1, "horizon": 2} | settings
    config = override(Config(), {f"interventions.{name}": value for name, value in changes.items()})
    measure = interventions.Interventions(chosen.opened(contexts.policy(tmp_path / "policy"), config), config)
    (found,) = measure.of(row(text, frequencies=json.dumps(frequency or {})))
    return measure, found


def test_words_are_put_in_each_others_places(tmp_path: Path) -> None:
    measure, found = interventions_of(tmp_path, TEXT)
    at_once, later = found["words"]
    # of the slots at 2 and 7 the nearer one is the partner of Wait at 6
    assert (at_once["word"], at_once["start"], at_once["partner"], at_once["partner_start"]) == ("Wait", 6, "_", 7)
    assert (at_once["horizon"], later["horizon"]) == (0, 2)
    policy, prompt = measure._policy, PromptConfig()
    prompt_ids, ids = chosen.token_ids(policy.tokenizer, row(TEXT), prompt)
    answer = suffix.answer_suffix(policy.tokenizer, suffix.NAMED["paper"], "16")

    def lhat(*parts: list[int]) -> float:
        return answer_loss(policy.model, [token for part in (prompt_ids, *parts) for token in part], answer).item()

    wait, slot = ids[6:7], ids[7:8]
    assert at_once["own"] == pytest.approx(lhat(ids[:7]) - lhat(ids[:6]), abs=1e-5)
    # behind the slot at 7 stands 16, the answer: it does not follow
    assert later["other_here"] == pytest.approx(lhat(ids[:6], slot, ids[7:8]) - lhat(ids[:6], ids[7:8]), abs=1e-5)
    assert later["moved"] == pytest.approx(lhat(ids[:7], wait) - lhat(ids[:7]), abs=1e-5)


def test_a_trajectory_without_such_a_word_is_a_row_without_words(tmp_path: Path) -> None:
    assert interventions_of(tmp_path, TEXT.replace("Wait", ""))[1]["words"] == []
    assert interventions_of(tmp_path, TEXT, neutral=["no such word"])[1]["words"] == []


def test_pairs_too_far_apart_in_frequency_are_left_out_and_counted(tmp_path: Path) -> None:
    frequency = {"wait": 2, "_": 20}
    _, near = interventions_of(tmp_path, TEXT, frequency, max_frequency_ratio=10)
    assert near["num_apart"] == 0
    assert [word["log_frequency_ratio"] for word in near["words"]] == [pytest.approx(math.log(10))] * 2
    _, far = interventions_of(tmp_path, TEXT, frequency, max_frequency_ratio=9.9, num_samples=1)
    assert (far["num_apart"], far["words"], far["continued"]) == (1, [], [])
    # the other way round alike, and without a limit nothing is left out
    _, rare = interventions_of(tmp_path, TEXT, {"wait": 20, "_": 2}, max_frequency_ratio=9.9)
    assert rare["num_apart"] == 1
    _, every = interventions_of(tmp_path, TEXT, {"wait": 20, "_": 2})
    assert (every["num_apart"], len(every["words"])) == (0, 2)
    with pytest.raises(ConfigError, match=r"interventions\.max_frequency_ratio"):
        override(Config(), {"interventions.max_frequency_ratio": 0.5})


def test_interventions_are_means_over_words_then_trajectories() -> None:
    def words(*owns: float) -> list[chosen.Row]:
        cells = {"other_here": 1.0, "moved": 2.0, "other_own": 5.0, "newline": 0.0}
        apart = {"log_frequency_ratio": 1.0 - owns[0]}
        return [{"own": own, "horizon": horizon, **apart, **cells} for own in owns for horizon in (0, 8)]

    listed = [words(3.0, 5.0), words(0.0), []]
    found = interventions.figures([{"words": each, "num_apart": 2} for each in listed], Config())
    assert (found["num"], found["num_words"], found["num_apart"]) == (3, 3, 6)
    # of sizes 2, 2 and 1
    assert found["log_frequency_ratio"] == {"median": 2.0, "worst": 2.0}
    assert found["after_0"]["own"]["mean"] == pytest.approx((4.0 + 0.0) / 2)
    # (own - 1) - (2 - 5) of 4 and of 0
    assert found["after_8"]["interaction"]["mean"] == pytest.approx((6.0 + 2.0) / 2)


def test_a_category_that_nobody_defined_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"interventions\.category='mood' is none of roles\.categories"):
        override(Config(), {"analyze.instrument": "interventions", "interventions.category": "mood"})


def analyzed(root: Path, instrument: str, data: str, **settings: object) -> report_data.StepResult:
    """A finished step of that instrument over the trajectories of two questions, as the report reads it."""
    step = Step(name=instrument, stage="analyze", data=(data,), overrides={"analyze.instrument": instrument})
    context = contexts.context(root, step, analyze__num_questions=2, **settings)
    outcome = analyze.run(context)
    outcome.counts.check()
    assert analyze.run(context) == outcome  # all shards are there
    contexts.finish(context, outcome)
    return finished(context, outcome.figures)


def finished(context: Context, figures: Mapping[str, Any]) -> report_data.StepResult:
    """The step as the report reads it."""
    return report_data.StepResult(
        name=context.step.name,
        stage="analyze",
        policy="",
        data=context.step.data,
        fingerprint="f",
        counts={},
        figures=figures,
        seconds=1.0,
        versions={},
        peak_memory_gib=None,
        metrics=(),
        settings=flatten(context.config),
        folder=context.folder,
    )


def shown(step: report_data.StepResult) -> Shown:
    """The page's part on this step, drawn as the report draws."""
    run = report_data.Run(Config(), (step,), (), ())
    with mpl.rc_context(STYLE):
        (found,) = report_instruments.shown(run)
    assert all(figure.svg and figure.png for figure in found.figures)
    return found


def row_of(tables: str, *first: str) -> list[str]:
    """The cells, as text, of the row that begins with these."""
    rows = [
        [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", each)]
        for each in tables.split("<tr>")
    ]
    (found,) = [each for each in rows if tuple(each[: len(first)]) == first]
    return found


def panels(found: Shown) -> set[str]:
    return set(found.figures[0].rows["panel"].to_pylist())


def test_the_page_shows_what_words_do_in_other_places(tmp_path: Path) -> None:
    step = Step(name="words", stage="analyze", overrides={"analyze.instrument": "interventions"})
    context = contexts.context(tmp_path / "run", step)
    cells = {"own": 0.5, "other_here": 1.0, "moved": 2.0, "other_own": 5.0, "newline": 0.25}
    words = [cells | {"horizon": horizon, "log_frequency_ratio": -math.log(3)} for horizon in (0, 8)]
    groups = {"correct": interventions.figures([{"words": words, "num_apart": 4}] * 2, context.config)}
    groups["wrong"] = interventions.figures([{"words": [], "num_apart": 1}], context.config)
    found = shown(finished(context, {"groups": groups}))
    assert "2 words of 2 correct trajectories" in found.tables
    assert row_of(found.tables, "correct", "2") == ["correct", "2", "8", "1.10x 3", "1.10x 3"]
    assert row_of(found.tables, "wrong", "0") == ["wrong", "0", "1", "-", "-"]
    assert panels(found) == {"change of L-hat at once", "change of L-hat 8 tokens on"}
    by_series = {point["series"]: point["y"] for point in found.figures[0].rows.to_pylist()}
    assert by_series["interaction, correct"] == pytest.approx((0.5 - 1.0) - (2.0 - 5.0))


@pytest.mark.ray
def test_instruments_measure_what_a_run_has_made_and_the_page_shows_it(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root)
    judged = verifying(root, "long")
    contexts.finish(judged, verify.run(judged))
    steps = [analyzed(root, "pseudo_update", "verify", pseudo_update__num_positions=3)]
    updates = shown(steps[0])
    assert updates.claims[0].outcome is Outcome.UNDECIDED  # of two questions
    assert "fewer than 10" in updates.claims[0].note
    assert "correct, read by the answer" in updates.tables
    assert panels(updates) == {"direction", "size", "transfer"}
    quick = {f"real_updates__{name}": 2 for name in ("sgd_steps", "lora_steps", "num_noise")}
    steps.append(analyzed(root, "real_updates", "verify", **quick))
    real = shown(steps[1])
    assert real.claims[0].outcome is Outcome.UNDECIDED
    assert "pseudo-update, SGD" in real.tables
    analyzed(root, "lhat", "verify")
    steps.append(analyzed(root, "roles", "lhat"))
    words = shown(steps[2])
    assert words.claims[0].text.startswith("Reflection words")
    assert "calculation, correct" in words.tables
    assert panels(words) == {"log_ratio", "matched", "paper"}
    apart = report_instruments.shown(report_data.Run(Config(), tuple(steps), (), ()))
    assert len(steps) > report_instruments.IN_ONE_PROCESS, "each is drawn by a process of its own"
    for one, other in zip(apart, (updates, real, words), strict=True):
        assert (one.title, one.tables, one.claims) == (other.title, other.tables, other.claims)
        assert [(figure.svg, figure.png) for figure in one.figures] == [
            (figure.svg, figure.png) for figure in other.figures
        ]
    surfaces = shown(
        analyzed(
            root,
            "landscape",
            "verify",
            **{f"landscape__{name}": value for name, value in (SMALL | {"points_per_shard": 9}).items()},
        )
    )
    assert [figure.name for figure in surfaces.figures] == [
        "landscape_landscape_random_0_5_correct",
        "landscape_landscape_update_2_correct",
        "landscape_landscape_update_0_5_correct",
    ]
    assert panels(surfaces) == {"surface", "cut, correct"}
    assert "its update in its place" in surfaces.tables
