"""Which judges a step has, on how many nodes, when their verdicts are too few to mean anything, and two side by side."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from raml_ray import records, storage
from raml_ray.config import ConfigError, Step
from raml_ray.records import Question, Trajectory, Verdict
from raml_ray.settings import DataConfig, VerifyConfig
from raml_ray.stages import judging, second_judge
from raml_ray.storage import Folder
from tests.stages import contexts

TEXTS = [
    ("5", r"\boxed{5}"),
    (r"\frac13", r"\boxed{0.333333}"),
    ("2", r"\boxed{1}. Wait, no: \boxed{2}"),
    ("7", r"\boxed{8}"),
]


def sampled(folder: Folder, texts: list[tuple[str, str]], source: str = "s") -> Folder:
    """A folder of one trajectory per question."""
    questions = [Question(f"{source}/{i}", "p", gold, source) for i, (gold, _) in enumerate(texts)]
    folder.write_table("questions.parquet", records.table(questions, records.QUESTION))
    rows = [Trajectory(f"t{i}", f"{source}/{i}", 0, text, "stop", "p", "", 0) for i, (_, text) in enumerate(texts)]
    (folder / "trajectories").write_table("shard-0.parquet", records.table(rows, records.TRAJECTORY))
    return folder


def judged(source: Folder, target: Folder, verify: VerifyConfig, data: DataConfig) -> list[str]:
    """The verdicts that a shard's judge writes, without Ray."""
    judge = judging.ShardJudge(target.path, verify.model_dump(mode="json"), data.model_dump(mode="json"))
    (shard,) = judging.shards([source])
    judge({"source": [source.path], "file": [shard.file], "shard": [shard.verdicts]})
    verdicts: list[str] = target.read_table(shard.verdicts)["verdict"].to_pylist()
    return verdicts


@pytest.mark.parametrize(
    ("verify", "verdicts"),
    [
        (VerifyConfig(), ["correct", "wrong", "correct", "wrong"]),
        (VerifyConfig(judge="paper"), ["correct", "correct", "wrong", "wrong"]),
    ],
)
def test_the_judge_of_mathematics_is_a_setting(verify: VerifyConfig, verdicts: list[str], tmp_path: Path) -> None:
    source = sampled(Folder(str(tmp_path / "source")), TEXTS)
    assert judged(source, Folder(str(tmp_path / "verdicts")), verify, DataConfig()) == verdicts


def test_choices_are_judged_as_choices_whatever_the_judge_of_mathematics(tmp_path: Path) -> None:
    texts = [("C", "Answer: C"), ("(C)", "Answer: D"), ("C", "It could be C.")]
    source = sampled(Folder(str(tmp_path / "source")), texts)
    verify = VerifyConfig(judge="paper")
    verdicts = judged(source, Folder(str(tmp_path / "verdicts")), verify, DataConfig(answers="choice"))
    assert verdicts == ["correct", "wrong", "unreadable"]


def test_a_pattern_finds_no_programs() -> None:
    with pytest.raises(ConfigError, match=r"verify\.answer_pattern.*data\.answers=code"):
        judging.pool(VerifyConfig(answer_pattern="(a)"), DataConfig(answers="code"))


def test_every_node_that_lives_and_has_a_cpu_holds_judges() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"GPU": 8.0}},
        {"Alive": False, "Resources": {"CPU": 4.0}},
    ]
    assert judging.num_nodes(nodes) == 2
    assert judging.num_nodes(nodes[2:]) == 1


def test_more_undecided_answers_than_allowed_stop_the_step() -> None:
    verify = VerifyConfig(max_failed_fraction=0.1)
    reasons = Counter({"timeout:cpu_deadline": 1, "error:oom": 1})
    judging.check_failed(Counter(correct=18, timeout=1, error=1), reasons, verify)
    with pytest.raises(RuntimeError, match=r"3 of 20 verdicts are timeouts or errors .*max_failed_fraction=0\.1"):
        judging.check_failed(Counter(correct=17, timeout=2, error=1), reasons, verify)
    with pytest.raises(RuntimeError, match="20 of 20"):
        judging.check_failed(Counter(error=20), Counter({"error:bad_gold": 20}), verify)
    judging.check_failed(Counter(), Counter(), verify)


def verdict(key: str) -> dict[str, object]:
    return {"trajectory_id": key, "verdict": "correct", "reason": "exact", "extracted": "1", "cpu_seconds": 0.0}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["t0", "t1"], r"2 are lost \(t2, t3\)"),
        (["t0", "t1", "t2", "t2"], r"1 are lost \(t3\); 1 are there twice \(t2\)"),
        (["t0", "t1", "t2", "t4"], r"1 are lost \(t3\); 1 are there that nobody asked for \(t4\)"),
        (["t1", "t0", "t2", "t3"], "not in the order"),
    ],
)
def test_verdicts_of_other_trajectories_are_not_counted(keys: list[str], message: str, tmp_path: Path) -> None:
    source, target = sampled(Folder(str(tmp_path / "source")), TEXTS), Folder(str(tmp_path / "verdicts"))
    wanted = judging.shards([source])
    target.write_table(wanted[0].verdicts, records.table([verdict(key) for key in keys], records.VERDICT))
    with pytest.raises(RuntimeError, match=message):
        judging._counted(target, wanted, [shard.trajectory_ids() for shard in wanted], VerifyConfig())


def test_a_shard_of_verdicts_that_nobody_asked_for_is_an_error(tmp_path: Path) -> None:
    target = Folder(str(tmp_path / "verdicts"))
    target.write_table("shard-other-0.parquet", records.table([verdict("t0")], records.VERDICT))
    with pytest.raises(RuntimeError, match="shard-other-0"):
        judging._counted(target, [], [], VerifyConfig())


def test_two_judges_are_compared_on_what_both_could_judge() -> None:
    pairs = Counter(
        {
            (Verdict.CORRECT, Verdict.CORRECT): 3,
            (Verdict.CORRECT, Verdict.WRONG): 2,
            (Verdict.UNREADABLE, Verdict.CORRECT): 1,
            (Verdict.WRONG, Verdict.UNREADABLE): 2,
            (Verdict.TIMEOUT, Verdict.CORRECT): 1,
            (Verdict.WRONG, Verdict.ERROR): 1,
        }
    )
    assert second_judge.figures(pairs, "strict", "paper") == {
        "accuracy": {"strict": 5 / 8, "paper": 4 / 8},
        "only_strict": 2,
        "only_paper": 1,
        "judged": 8,
        "unjudged": 2,
    }
    assert second_judge.figures(Counter(), "strict", "paper")["accuracy"] == {"strict": None, "paper": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate__compare_judge": "strict"}, r"compare_judge=strict is verify\.judge itself"),
        ({"evaluate__compare_judge": "paper", "data__answers": "choice"}, r"data\.answers is choice"),
    ],
)
def test_a_comparison_that_says_nothing_is_refused(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    context = contexts.context(tmp_path / "run", Step(name="evaluate", stage="evaluate"), **settings)
    with pytest.raises(ConfigError, match=message):
        second_judge.check(context.config)


@pytest.mark.ray
def test_a_second_judge_leaves_verdicts_of_its_own_beside_the_first_ones(cluster: None, tmp_path: Path) -> None:
    context = contexts.context(
        tmp_path / "run", Step(name="evaluate", stage="evaluate"), evaluate__compare_judge="paper"
    )
    folder = sampled(context.folder, TEXTS)
    judging.judge("evaluate", folder, [folder], context.config.verify, context.config.data)
    rows = storage.verified(folder, [folder])
    found = second_judge.compared(context, rows, ["s", "empty"])["judges"]
    assert found["s"] == {
        "accuracy": {"strict": 0.5, "paper": 0.5},
        "only_strict": 1,
        "only_paper": 1,
        "judged": 4,
        "unjudged": 0,
    }
    assert found["empty"]["judged"] == 0
    assert (folder / "verdicts_paper").names() == (folder / "verdicts").names()
    assert storage.verified(folder, [folder]) == rows


@pytest.mark.ray
@pytest.mark.slow
def test_two_judges_are_on_two_nodes_where_each_would_have_room_for_both(tmp_path: Path) -> None:
    source = Folder(str(tmp_path / "source"))
    sampled(source, TEXTS)
    table = (source / "trajectories").read_table("shard-0.parquet")
    for index in range(1, 4):
        ids = [f"{key}-{index}" for key in table["trajectory_id"].to_pylist()]
        of_shard = table.set_column(0, "trajectory_id", [ids])
        (source / "trajectories").write_table(f"shard-{index}.parquet", of_shard)
    words = [sys.executable, "-m", "tests.stages.two_nodes", source.path, str(tmp_path / "verdicts")]
    alone = os.environ | {"RAY_ENABLE_AUTO_CONNECT": "0"}  # nothing that ends late brings Ray up again
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(json.loads(done.stdout.splitlines()[-1]).values()) == [1, 1]
