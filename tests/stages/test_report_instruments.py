"""What the instruments' figures hold: every group that there is, axes with names and units, and the numbers that were measured."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure as Canvas

from raml_ray.config import Step
from raml_ray.formulas.landscape import grid
from raml_ray.stages import report_data, report_pseudo_update_figures, report_roles
from raml_ray.stages.instruments import chosen, landscape, pseudo_update
from raml_ray.stages.report_figures import Figure
from raml_ray.storage import Folder
from tests.stages import contexts
from tests.stages.test_instruments import finished, shown


def stepped(root: Path, instrument: str, table: chosen.Table, rows: list[dict[str, Any]]) -> report_data.StepResult:
    """A finished step with these rows, summed up as the instrument does."""
    step = Step(name="seen", stage="analyze", overrides={"analyze.instrument": instrument})
    context = contexts.context(root / "run", step)
    folder = Folder(f"{context.folder.path}/{table.name}")
    folder.write_table("shard-000000.parquet", chosen.records.table(rows, table.schema))
    groups: dict[str, Any] = {}
    for group in ("correct", "wrong"):
        mine = [row for row in rows if row["group"] == group]
        if instrument == "landscape":
            groups[group] = landscape.figures(mine, 0)
        else:
            read = {reader: [row for row in mine if row["reader"] == reader] for reader in ("answer", "token")}
            groups[group] = {reader: pseudo_update.figures(found, context) for reader, found in read.items()}
    return finished(context, {"groups": groups})


def drawn(figure: Figure, **where: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = figure.rows.to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def surfaces(group: str, trajectory: str, height: float) -> list[dict[str, Any]]:
    """A trajectory's planes: L-hat is `height` and the place's x, behind all of the trajectory a tenth of that."""
    head = {"trajectory_id": trajectory, "question_id": trajectory[-1], "group": group, "block": trajectory}
    found = []
    for plane, radius in (("random", 1.0), ("update", 2.0), ("update", 0.5)):
        for point in grid(radius, 3):
            for share, scale in ((0.0, 1.0), (1.0, 0.1)):
                at = {"kind": "grid", "prefix": int(share * 8), "share": share, "x": point.x, "y": point.y}
                found.append(head | at | {"plane": plane, "radius": radius, "lhat": scale * (height + point.x)})
    for share, x, y in ((0.0, 0.0, 0.0), (0.5, 0.1, 0.3), (1.0, 0.6, 0.8)):
        at = {"kind": "path", "prefix": int(share * 8), "share": share, "x": x, "y": y, "off_plane": 0.25}
        found.append(head | at | {"plane": "update", "radius": 2.0, "lhat": height})
    return found


def test_landscapes_of_both_groups_are_drawn_at_every_radius(tmp_path: Path) -> None:
    rows = [*surfaces("correct", "t1", 3.0), *surfaces("correct", "t2", 5.0), *surfaces("wrong", "u1", 8.0)]
    figures = {each.name: each for each in shown(stepped(tmp_path, "landscape", landscape.POINTS, rows)).figures}
    assert list(figures) == [
        f"landscape_seen_{plane}_{group}"
        for plane in ("random_1", "update_2", "update_0_5")
        for group in ("correct", "wrong")
    ]
    correct, wrong = figures["landscape_seen_update_0_5_correct"], figures["landscape_seen_update_0_5_wrong"]
    # the mean of 3 and 5, and 8; 0.5 to the right of it
    assert [row["lhat"] for row in drawn(correct, panel="surface", share=0.0, x=0.5, y=0.0)] == [4.5]
    assert [row["lhat"] for row in drawn(wrong, panel="surface", share=0.0, x=0.5, y=0.0)] == [8.5]
    assert [row["lhat"] for row in drawn(wrong, panel="cut, wrong", x=-0.5)] == pytest.approx([0.75])
    assert "2 correct trajectories (2 questions)" in correct.caption
    assert "1 wrong trajectories (1 questions)" in wrong.caption
    assert "projected (25% of their lengths, on average, lie off the plane)" in wrong.caption


def test_a_landscapes_axes_say_what_they_are_and_in_what_unit(tmp_path: Path) -> None:
    figures = shown(stepped(tmp_path, "landscape", landscape.POINTS, surfaces("correct", "t1", 3.0))).figures
    for figure, names, unit in (
        (figures[0], ("along random direction 1,", "along random direction 2,"), "norms of the weights' filters"),
        (figures[1], ("along -gradient of L-hat,", "towards the update,"), "lengths of the update"),
    ):
        assert figure.svg.count(f">{names[0]}<") == 2 + 2 + 1  # from above, from the side, the cut
        # from above it is said once, for both
        assert figure.svg.count(names[1]) == 1 + 2
        assert figure.svg.count(f">{unit}<") == 2 + 1 + 2 * 2 + 1  # both ways, and the cut
        assert "first axis" not in figure.svg and "L-hat, nats<" in figure.svg


def tokens(group: str, trajectory: str, sizes: list[float], *, mass: float, reader: str = "answer") -> list[chosen.Row]:
    """Tokens of one layer with two heads: the second has twice the first's mass; |v_t - o_l| and the change of L-hat are the
    token's size."""
    head = {"trajectory_id": trajectory, "question_id": trajectory, "group": group, "reader": reader, "token": "x"}
    return [
        head
        | {"position": place, "num_layers": 1, "lhat_before": 9.0, "lhat_after": 9.0 - size}
        | {f"{name}_whole": 0.1 for name in ("cosine", "cosine_random", "cosine_shuffled")}
        | {"patch_norm_whole": size}
        | {name: [0.1, 0.1] for name in pseudo_update.MEASURES}
        | {"mass": [mass, 2 * mass], "direction_norm": [size, size], "transfer_error": [size, size]}
        for place, size in enumerate(sizes)
    ]


def test_a_tokens_step_is_drawn_in_both_its_parts_for_every_head_and_both_groups(tmp_path: Path) -> None:
    rows = [
        row
        for reader in ("answer", "token")
        for row in (
            *tokens("correct", "a", [1.0, 2.0, 3.0, 4.0, 90.0], mass=0.1, reader=reader),
            *tokens("correct", "b", [5.0] * 5, mass=0.3, reader=reader),
            *tokens("wrong", "c", [7.0, 6.0, 5.0, 4.0, 3.0], mass=0.2, reader=reader),
        )
    ]
    layers, heads = shown(stepped(tmp_path, "pseudo_update", pseudo_update.UPDATES, rows)).figures
    # medians over tokens of 3 and 5, and their mean
    (cell,) = drawn(heads, panel="direction_norm", reader="answer", group="correct", layer=0, head=1)
    assert (cell["median"], cell["low"], cell["high"]) == (4.0, 3.0, 5.0)
    (cell,) = drawn(heads, panel="mass", reader="token", group="correct", layer=0, head=1)
    assert cell["median"] == pytest.approx(2 * 0.2)
    assert len(heads.rows) == 2 * 2 * 2 * 2  # measures, readers, groups, heads
    assert "2 correct trajectories (2 questions), 1 wrong trajectories (1 questions)" in heads.caption
    assert "p_t, attention mass" in heads.svg and "|v_t - o_l|, length of the direction" in heads.svg
    # a median over tokens, mean over trajectories, here too; of wrong trajectories as well
    assert [row["y"] for row in drawn(layers, panel="transfer", series="answer", group="correct")] == [4.0]
    assert [row["y"] for row in drawn(layers, panel="transfer", series="answer", group="wrong")] == [5.0]
    assert len(drawn(layers, panel="size", group="wrong")) == 5
    # the larger update moves L-hat more, in all that have an order
    assert "correct: 1.00 [1.00, 1.00], larger updates move L-hat more" in layers.caption


def test_heads_that_keep_a_state_have_no_mass_to_draw(tmp_path: Path) -> None:
    rows = tokens("correct", "a", [1.0, 2.0], mass=float("nan"))
    _, heads = shown(stepped(tmp_path, "pseudo_update", pseudo_update.UPDATES, rows)).figures
    assert {row["panel"] for row in drawn(heads)} == {"direction_norm"}
    assert "|u|, length of what is written" in heads.svg


def test_the_scatter_is_thinned_evenly() -> None:
    num = 2 * report_pseudo_update_figures.MOST_POINTS + 2
    rows = tokens("correct", "a", [float(place) + 1 for place in range(num)], mass=0.1)
    found = list(report_pseudo_update_figures._size(Canvas().subplots(), rows, "correct"))
    assert [each["x"] for each in found[:3]] == [1.0, 4.0, 7.0] and len(found) == num // 3


def test_the_papers_mean_over_words_has_an_interval_over_trajectories() -> None:
    # of one trajectory alone: 1; of both: 2; of the other alone: 7 / 3
    low, high = report_roles._pooled([[1.0], [], [2.0, 2.0, 3.0]])
    assert (low, high) == (1.0, pytest.approx(7 / 3))
