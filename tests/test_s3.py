"""What an object store does otherwise than a disk, on a real S3 server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raml_ray.policy_source import on_this_node
from raml_ray.storage import Folder
from raml_ray.workers import checkpoints
from tests import object_store
from tests.workers import ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    with object_store.running(tmp_path_factory.mktemp("store")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield Folder(f"s3://{object_store.BUCKET}/tests")


def test_a_writer_that_fails_leaves_the_object_that_was_there(root: Folder) -> None:
    root.write_text("x", "old")
    for mode, half in (("w", "half of the new"), ("wb", b"half" * 4_000_000)):
        with pytest.raises(RuntimeError), root.writing("x", mode) as file:
            file.write(half)
            raise RuntimeError
        assert root.read_text("x") == "old"
    root.write_text("x", "new")
    assert root.read_text("x") == "new"


def test_a_policy_is_fetched_again_when_its_objects_change(
    root: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAML_CACHE", str(tmp_path))
    (root / "policy").write_text("config.json", "one")
    first = on_this_node((root / "policy").path)
    assert on_this_node((root / "policy").path) == first
    assert Path(first, "config.json").read_text() == "one"
    (root / "policy").write_text("config.json", "two")
    assert Path(on_this_node((root / "policy").path), "config.json").read_text() == "two"


def test_checkpoints_are_kept_by_number_and_a_damaged_one_is_passed_over(root: Folder) -> None:
    folder = root / "checkpoints"
    with ranks.alone():
        for step in (1, 2, 3):
            checkpoints.save(folder.path, step, {"weight": torch.full((4000,), float(step))}, {"seed": 7}, keep=2)
        assert [name for name in folder.names("step-") if (folder / name).exists("COMMIT")] == [
            "step-00000002",
            "step-00000003",
        ]
        data = bytearray((folder / "step-00000003").read_bytes("__0_0.distcp"))
        data[-9] ^= 1
        with (folder / "step-00000003").writing("__0_0.distcp") as file:
            file.write(bytes(data))
        into = {"weight": torch.zeros(4000)}
        found = checkpoints.load(folder.path, into)
    assert found == (2, {"seed": 7})
    assert torch.equal(into["weight"], torch.full((4000,), 2.0))
