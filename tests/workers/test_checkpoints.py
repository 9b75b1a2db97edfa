"""Checkpoints under everything that can happen to files: flipped bits, cut ends, a full disk, a kill in between."""

import random
import re
from pathlib import Path

import pytest
import torch

from raml_ray import faults
from raml_ray.workers import checkpoints
from tests.workers import ranks

FILES = ["__0_0.distcp", ".metadata", "manifest.json", "COMMIT"]
TRIES = 50


def tensors(value: float) -> dict[str, torch.Tensor]:
    # Two of a size: each of two ranks writes one.
    weights = {f"weight.{index}": torch.full((4000,), value) for index in range(2)}
    return weights | {"step": torch.tensor(value)}


def loaded(folder: Path) -> tuple[int, float]:
    """Step and value of what a rank alone finds."""
    into = tensors(0.0)
    found = checkpoints.load(str(folder), into)
    assert found is not None
    assert all(torch.equal(into[name], whole) for name, whole in tensors(float(into["step"])).items())
    return found.step, float(into["step"])


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_and_any_cut_end_is_noticed(tmp_path: Path, name: str) -> None:
    chance = random.Random(name)
    with ranks.alone():
        checkpoints.save(str(tmp_path), 1, tensors(1.0), {}, keep=2)
        path = tmp_path / "step-00000001"
        whole = (path / name).read_bytes()
        unnoticed = []
        for _ in range(TRIES):
            place = chance.randrange(len(whole))
            flipped = bytearray(whole)
            flipped[place] ^= 1 << chance.randrange(8)
            for content in (bytes(flipped), whole[:place]):
                (path / name).write_bytes(content)
                if not checkpoints._problems(path):
                    unnoticed.append((place, len(content)))
        (path / name).write_bytes(whole)
        assert unnoticed == [] and checkpoints._problems(path) == []


def test_a_damaged_one_among_three_is_passed_over_and_the_older_ones_are_used(tmp_path: Path) -> None:
    with ranks.alone():
        for step in (1, 2, 3):
            checkpoints.save(str(tmp_path), step, tensors(float(step)), {}, keep=3)
        assert loaded(tmp_path) == (3, 3.0)
        (tmp_path / "step-00000003" / ".metadata").unlink()
        (tmp_path / "step-00000002" / "__0_0.distcp").write_bytes(b"")
        assert loaded(tmp_path) == (1, 1.0)


def saved_until_killed(folder: str, plan: str) -> None:
    faults.arm(plan, f"{folder}/drill")
    for step in (1, 2, 3):
        checkpoints.save(folder, step, tensors(float(step)), {"from": "here"}, keep=2)


@pytest.mark.parametrize("moment", ["checkpoint", "commit"])
def test_a_rank_that_is_killed_while_a_checkpoint_is_written_costs_that_checkpoint_alone(
    tmp_path: Path, moment: str
) -> None:
    with pytest.raises(Exception, match="SIGKILL"):
        ranks.run(saved_until_killed, 2, str(tmp_path), f"{moment}:1:2:kill9")
    assert not (tmp_path / "step-00000002" / "COMMIT").exists()
    with ranks.alone():
        assert loaded(tmp_path) == (1, 1.0)
        checkpoints.save(str(tmp_path), 2, tensors(2.0), {}, keep=2)  # over what was left of it
        assert loaded(tmp_path) == (2, 2.0)


def told(folder: str) -> str:
    """What a rank has to say that could not save."""
    try:
        saved_until_killed(folder, "checkpoint:1:2:enospc")
    except checkpoints.CannotSave as error:
        return str(error)
    return ""


def test_a_disk_that_is_full_for_one_rank_is_told_by_all_and_costs_no_older_checkpoint(tmp_path: Path) -> None:
    first, second = ranks.run(told, 2, str(tmp_path))
    free = r"\d+ MiB are free there"  # which others change between two looks
    assert re.sub(free, "", first) == re.sub(free, "", second)
    assert re.match(rf"checkpoint {tmp_path}/step-00000002 cannot be written \({free}\): ", first)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001"]
    with ranks.alone():
        assert loaded(tmp_path) == (1, 1.0)
