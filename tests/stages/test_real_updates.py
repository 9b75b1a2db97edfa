"""Pseudo-updates against real ones: what is held against what, and how it is summed up."""

from pathlib import Path

import pytest

from raml_ray.config import Config, ConfigError, Step, override
from raml_ray.stages import report_data
from raml_ray.stages.instruments import chosen, real_updates
from raml_ray.stages.report_outcomes import Outcome
from raml_ray.storage import Folder
from tests.stages import contexts
from tests.stages.test_analyze import row
from tests.stages.test_instruments import finished, panels, shown

QUICK: dict[str, object] = {
    f"real_updates.{name}": value for name, value in {"sgd_steps": 2, "lora_steps": 3, "num_noise": 2}.items()
}
ANSWERS = {"t": "16", "u": "16", "v": "7"}
"""Trajectory -> answer; the first two are of one question."""


def rows_of(trajectory: str) -> chosen.Row:
    answer = ANSWERS[trajectory]
    text = f"<think>\n _ 7 {answer}\n</think>\n\n**Final Answer**\n\\boxed{{{answer}}}"
    changes = {"trajectory_id": trajectory, "question_id": "a" if answer == "16" else "b", "answer": answer}
    return row(text, **changes)


def measured(tmp_path: Path, *trajectories: str) -> tuple[list[chosen.Row], list[str]]:
    config = override(Config(), {"analyze.instrument": "real_updates", **QUICK})
    measure = real_updates.RealUpdates(chosen.opened(contexts.policy(tmp_path / "policy"), config), config)
    rejected: list[str] = []
    found = list(measure([rows_of(each) for each in trajectories], lambda _, error: rejected.append(str(error))))
    return found, rejected


def test_every_change_is_held_against_every_other_and_against_noise_of_its_length(tmp_path: Path) -> None:
    found, rejected = measured(tmp_path, "t", "u", "v")
    assert rejected == []
    noisy = [name for kind in ("pseudo", "sgd", "lora") for name in (kind, f"noise_{kind}", f"noise_{kind}")]
    # two answers of two tokens, one of one
    assert [(each["trajectory_id"], each["made_for"]) for each in found if each["change"] == "none"] == [
        *(("t", "answer"), ("t", "first"), ("u", "answer"), ("u", "first"), ("v", "answer")),
    ]
    mine = [each for each in found if (each["trajectory_id"], each["made_for"]) == ("t", "answer")]
    assert [each["change"] for each in mine] == ["none", "trajectory", *noisy]
    by_name = {each["change"]: each for each in mine}
    for kind in ("pseudo", "sgd", "lora"):
        assert by_name[kind][f"cosine_{kind}"] == pytest.approx(1)
        assert abs(by_name[f"noise_{kind}"][f"cosine_{kind}"]) < 0.3
        assert by_name[f"noise_{kind}"]["norm"] == pytest.approx(by_name[kind]["norm"], rel=1e-5)
    assert by_name["pseudo"]["lhat_at_length"] == pytest.approx(by_name["pseudo"]["lhat"], abs=1e-5)
    assert by_name["sgd"]["cosine_pseudo"] == pytest.approx(by_name["pseudo"]["cosine_sgd"])
    assert by_name["sgd"]["lhat"] < by_name["none"]["lhat"]
    assert by_name["trajectory"]["kl"] == pytest.approx(0, abs=1e-6)
    # another question's change, whose own row says the same of this one's
    theirs = {each["change"]: each for each in found if each["trajectory_id"] == "v"}
    assert by_name["sgd"]["cosine_other_sgd"] == pytest.approx(theirs["sgd"]["cosine_other_sgd"], abs=1e-6)
    assert by_name["none"]["lhat_others"] == pytest.approx(theirs["none"]["lhat"], abs=1e-6)


def test_a_question_alone_has_nobody_to_be_mistaken_for(tmp_path: Path) -> None:
    found, _ = measured(tmp_path, "t", "u")
    assert all("cosine_other_sgd" not in each and each.get("lhat_others") is None for each in found)


def changes(question: str, trajectory: str, made_for: str, /, **of: tuple[float, float, float]) -> list[chosen.Row]:
    """Rows of changes, each with L-hat, cosine with SGD, and cosine with another question's."""
    head = {"trajectory_id": trajectory, "question_id": question, "made_for": made_for, "norm": 1.0, "kl": 0.5}
    return [
        head
        | {"change": name, "lhat": lhat, "lhat_first": lhat, "lhat_rest": 2 * lhat, "lhat_others": lhat + 1}
        | {"lhat_at_length": None if name.startswith("noise") else lhat}
        | {f"cosine_{kind}": own for kind in ("pseudo", "sgd", "lora")}
        | {f"cosine_other_{kind}": other for kind in ("pseudo", "sgd", "lora")}
        for name, (lhat, own, other) in of.items()
    ]


def test_figures_are_means_over_trajectories_of_a_question_then_over_questions() -> None:
    none = (4.0, 0.0, 0.0)
    rows = [
        *changes("a", "t", "answer", none=none, pseudo=(1.0, 0.5, 0.1), noise_pseudo=(3.0, 0.1, 0.0)),
        *changes("a", "u", "answer", none=none, pseudo=(3.0, 0.3, 0.1), noise_pseudo=(4.0, 0.3, 0.0)),
        *changes("b", "v", "answer", none=none, pseudo=(4.0, 0.0, 0.2), noise_pseudo=(4.0, 0.0, 0.0)),
        *changes("a", "t", "first", none=none, pseudo=(1.0, 0.5, 0.1), noise_pseudo=(3.0, 0.1, 0.0)),
    ]
    found = real_updates.figures(rows, 0)
    assert (found["num"], found["num_several_tokens"]) == (3, 1)
    cosines = found["cosines"]["pseudo_sgd"]
    # question a: 0.4 and 0.3 over the other's, question b: 0 and -0.2
    assert (cosines["own"]["mean"], cosines["excess"]["mean"]) == (pytest.approx(0.2), pytest.approx(0.05))
    assert cosines["noise"]["mean"] == pytest.approx((0.2 + 0.0) / 2)
    effects = found["effects"]["pseudo"]
    # falls of 3 and 1, and of 0; by noise of 1 and 0, and of 0
    assert (effects["fall"]["mean"], effects["fall_noise"]["mean"]) == (pytest.approx(1.0), pytest.approx(0.25))
    assert effects["fall_others"]["mean"] == pytest.approx(1.0)
    assert found["tokens"]["pseudo"]["fall_first"]["mean"] == pytest.approx(3.0)
    assert found["tokens"]["pseudo"]["fall_rest"]["mean"] == pytest.approx(6.0)
    assert found["effects"]["lora"]["lhat"] is None


def step_of(tmp_path: Path, rows: list[chosen.Row], wrong: list[chosen.Row] | None = None) -> report_data.StepResult:
    """A finished step with these rows of correct trajectories, and these of wrong ones."""
    step = Step(name="real", stage="analyze", overrides={"analyze.instrument": "real_updates"})
    context = contexts.context(tmp_path / "run", step)
    table = real_updates.CHANGES
    groups = {"correct": rows, "wrong": wrong or []}
    whole = [each | {"group": group} for group, mine in groups.items() for each in mine]
    Folder(f"{context.folder.path}/{table.name}").write_table(
        "shard-000000.parquet", chosen.records.table(whole, table.schema)
    )
    return finished(context, {"groups": {group: real_updates.figures(mine, 0) for group, mine in groups.items()}})


def test_the_page_decides_by_questions_and_shows_the_nulls(tmp_path: Path) -> None:
    rows = [
        each
        for number in range(12)
        for made_for in ("answer", "first")
        for each in changes(
            f"q{number}",
            f"t{number}",
            made_for,
            none=(4.0, 0.0, 0.0),
            trajectory=(0.5, 0.0, 0.0),
            **dict.fromkeys(("pseudo", "sgd", "lora"), (2.0, 0.4 + 0.01 * number, 0.1)),
            **{f"noise_{kind}": (4.0, 0.0, 0.0) for kind in ("pseudo", "sgd", "lora")},
        )
    ]
    found = shown(step_of(tmp_path, rows))
    (claim,) = found.claims
    assert claim.outcome is Outcome.HOLDS
    assert claim.measurements[1].difference is not None
    assert claim.measurements[1].difference.mean == pytest.approx(0.355, abs=1e-6)
    assert "L-hat is 4.00 nats without the trajectory and 0.50 with it" in found.tables
    assert "first token" in found.tables
    assert {panel.split(":")[0] for panel in panels(found)} == {"direction", "effect", "transfer"}


def test_the_figure_shows_wrong_trajectories_under_correct_ones(tmp_path: Path) -> None:
    def made(lhat: float) -> list[chosen.Row]:
        by_kind = dict.fromkeys(("pseudo", "sgd", "lora"), (lhat, 0.4, 0.1))
        noise = {f"noise_{kind}": (4.0, 0.0, 0.0) for kind in by_kind}
        return changes("q", "t", "answer", none=(4.0, 0.0, 0.0), trajectory=(0.5, 0.0, 0.0), **by_kind, **noise)

    (figure,) = shown(step_of(tmp_path, made(2.0), made(3.0))).figures
    effects = {
        row["group"]: row["y"]
        for row in figure.rows.to_pylist()
        if (row["panel"], row["series"]) == ("effect: sgd", "the change")
    }
    assert effects == {"correct": 2.0, "wrong": 3.0}
    assert "1 correct trajectories (1 questions), 1 wrong trajectories (1 questions)" in figure.caption


def test_half_precision_is_refused_for_these_updates_too() -> None:
    with pytest.raises(ConfigError, match=r"analyze\.instrument=real_updates .* set analyze\.dtype=float32"):
        override(Config(), {"analyze.instrument": "real_updates", "analyze.dtype": "bfloat16"})
