"""Verdicts that are there once, of what they were given of, and compared with published ones."""

from pathlib import Path

import pytest

from raml_ray import records
from raml_ray.config import ConfigError, Step
from raml_ray.records import Verdict
from raml_ray.stages import generate, judging, verify
from raml_ray.stages.context import Context
from raml_ray.storage import Folder
from tests.stages import contexts


def oracle(root: Path, name: str = "long", **settings: object) -> Context:
    """A finished step of six trajectories, three of each of two questions."""
    defaults: dict[str, object] = {
        "generate__source": "oracle",
        "generate__num_samples": 3,
        "generate__shard_questions": 1,
        "data__path": "miniature:train",
        "data__limit": 2,
    }
    context = contexts.context(root, Step(name=name, stage="generate"), **(defaults | settings))
    contexts.finish(context, generate.run(context))
    return context


def verifying(root: Path, *data: str, name: str = "verify") -> Context:
    return contexts.context(root, Step(name=name, stage="verify", data=data))


@pytest.mark.ray
def test_a_second_time_judges_only_what_is_not_judged_yet(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root)
    context = verifying(root, "long")
    first = verify.run(context)
    assert (first.counts.rows_in, first.counts.rows_out) == (6, 6)
    assert first.figures["verdicts"]["correct"] == 6
    folder = context.folder / judging.VERDICTS
    names = folder.names()
    assert len(names) == 2
    kept = Path(folder.file(names[0])).stat().st_mtime_ns
    foreign = folder.read_table(names[0])
    folder.write_table(names[1], foreign)  # verdicts of other trajectories under this shard's name
    second = verify.run(context)
    assert second == first
    assert Path(folder.file(names[0])).stat().st_mtime_ns == kept
    assert not folder.read_table(names[1]).equals(foreign)


def test_trajectories_that_two_steps_hold_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root)
    oracle(root, "again")
    with pytest.raises(ConfigError, match=r"6 trajectories of .*/long, .*/again are there more than once"):
        verify.run(verifying(root, "long", "again"))


def row(key: str, policy: str) -> records.Trajectory:
    return records.Trajectory(key, "q", 0, "text", "imported", policy, "", 0)


def test_agreement_is_counted_by_policy_and_leaves_out_what_was_not_judged(tmp_path: Path) -> None:
    source, folder = Folder(str(tmp_path / "source")), Folder(str(tmp_path / "verify"))
    verdicts = {
        "a": (Verdict.CORRECT, True, "small"),
        "b": (Verdict.WRONG, True, "small"),
        "c": (Verdict.TIMEOUT, False, "small"),
        "d": (Verdict.UNREADABLE, False, "large"),
    }
    rows = [row(key, policy) for key, (_, _, policy) in verdicts.items()]
    (source / "trajectories").write_table("shard-0.parquet", records.table(rows, records.TRAJECTORY))
    labels = [{"trajectory_id": key, "label": label} for key, (_, label, _) in verdicts.items()]
    source.write_table("labels.parquet", records.table(labels, records.LABEL))
    judged = [
        {"trajectory_id": key, "verdict": verdict.value, "reason": "", "extracted": "", "cpu_seconds": 0.0}
        for key, (verdict, _, _) in verdicts.items()
    ]
    (folder / "verdicts").write_table("shard-source-0.parquet", records.table(judged, records.VERDICT))
    found = verify._agreement(folder, [source])
    assert {name: value for name, value in found.items() if name != "by_policy"} == {
        "both_correct": 1,
        "both_wrong": 1,
        "only_ours": 0,
        "only_published": 1,
        "unjudged": 1,
        "fraction": 2 / 3,
    }
    assert found["by_policy"]["small"]["fraction"] == 0.5
    assert found["by_policy"]["small"]["unjudged"] == 1
    assert found["by_policy"]["large"]["fraction"] == 1.0
