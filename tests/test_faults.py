"""Faults on purpose: what a plan may say, that each befalls once, and that each does what it says."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raml_ray import faults
from raml_ray.config import Config, ConfigError, override
from raml_ray.faults import Fault
from raml_ray.storage import Folder

COMES_BY = """
import sys
from raml_ray import faults
faults.arm(sys.argv[1], sys.argv[2])
faults.reach("learner", 0, 1)
print("went on")
"""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("", "")


def comes_by(plan: str, folder: Path, timeout: float = 30) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", COMES_BY, plan, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        cwd=Path(__file__).parents[1],
    )
    return done.returncode, done.stdout.strip()


def test_a_plan_is_words_of_role_rank_step_and_how() -> None:
    assert faults.parse("learner:1:3:kill9  pool:*:5:exit") == (
        Fault("learner", 1, 3, "kill9"),
        Fault("pool", None, 5, "exit"),
    )
    assert faults.parse("") == ()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("learner:1:3", "no ROLE:RANK:STEP:HOW"),
        ("learner:one:3:exit", "no ROLE:RANK:STEP:HOW"),
        ("judge:1:3:exit", "role is one of learner, checkpoint"),
        ("learner:1:3:burn", "befalls it of kill9, exit"),
        ("pool:0:3:nan", "only a learner's gradients"),
    ],
)
def test_what_is_no_plan_is_refused_by_the_settings_name(plan: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"drill\.faults: '{plan}'.*{message}"):
        override(Config(), {"drill.faults": plan})


def test_a_fault_befalls_once_and_leaves_word_of_whom(tmp_path: Path) -> None:
    faults.arm("learner:1:3:exc commit:*:3:exc", str(tmp_path / "drill"))
    faults.reach("learner", 0, 3)
    faults.reach("learner", 1, 2)
    assert not (tmp_path / "drill").exists()
    with pytest.raises(faults.Injected, match="learner-1-3-exc"):
        faults.reach("learner", 1, 3)
    faults.reach("learner", 1, 3)
    with pytest.raises(faults.Injected):
        faults.reach("commit", 5, 3)
    faults.reach("commit", 6, 3)
    marker = json.loads((tmp_path / "drill" / "commit-any-3-exc.json").read_text())
    assert marker["rank"] == 5 and marker["pid"] > 0


def test_a_process_is_killed_or_ends_and_the_next_one_goes_on(tmp_path: Path) -> None:
    plan = "learner:0:1:kill9 learner:0:1:exit"
    assert [comes_by(plan, tmp_path) for _ in range(3)] == [(-9, ""), (1, ""), (0, "went on")]


def test_a_process_that_hangs_says_nothing_more(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        comes_by("learner:0:1:hang", tmp_path, timeout=5)
    assert (tmp_path / "learner-0-1-hang.json").exists()


def test_a_loss_is_spoilt_once(tmp_path: Path) -> None:
    faults.arm("learner:0:2:nan", str(tmp_path))
    faults.reach("learner", 0, 1)
    assert faults.factor() == 1.0
    faults.reach("learner", 0, 2)
    assert math.isnan(faults.factor())
    assert faults.factor() == 1.0


WRITES = """
import sys
from raml_ray import faults
from raml_ray.storage import Folder
faults.arm("learner:0:1:enospc", sys.argv[1] + "/drill")
faults.reach("learner", 0, 1)
Folder(sys.argv[1]).write_text("small", "x" * 100)
Folder(sys.argv[1]).write_text("big", "y" * 100_000)
"""


def test_where_no_space_is_left_the_old_file_stays_and_no_half_of_the_new_one(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write_text("big", "old")
    done = subprocess.run([sys.executable, "-c", WRITES, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "OSError: [Errno 27] File too large" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big", "drill", "small"]
    assert (tmp_path / "big").read_text() == "old"
