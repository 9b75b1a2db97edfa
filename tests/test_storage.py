"""Folders: what is written appears whole or not at all, on a disk and on any other store."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from raml_ray import records, storage
from raml_ray.config import ConfigError
from raml_ray.policy_source import on_this_node
from raml_ray.storage import Folder


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_what_is_written_is_read_back(folder: Folder) -> None:
    table = records.table([records.Question("q", "p", "a", "s")], records.QUESTION)
    (folder / "deep" / "er").write_table("t-1.parquet", table)
    folder.write_json("x.json", {"a": "ä"})
    assert (folder / "deep" / "er").read_tables("t-", records.QUESTION).equals(table)
    assert folder.read_json("x.json") == {"a": "ä"}
    assert folder.names(suffix=".json") == ["x.json"]


def test_some_columns_are_read_without_the_file_as_a_whole(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"a": [1, 2], "text": ["x", "y"], "ids": [[1], [2, 3]]})
    folder.write_table("t.parquet", table)
    assert folder.read_table("t.parquet").equals(table)
    monkeypatch.delattr(Folder, "read_bytes")
    assert folder.read_table("t.parquet", ["ids", "a"]).equals(table.select(["ids", "a"]))


def test_a_missing_folder_holds_nothing(folder: Folder) -> None:
    assert (folder / "none").names() == []
    assert not (folder / "none").exists()
    assert (folder / "none").read_tables("t-", records.QUESTION).num_rows == 0


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_text("x", "old")
    with pytest.raises(RuntimeError), folder.writing("x", "w") as file:
        file.write("half of the new")
        raise RuntimeError
    assert folder.read_text("x") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_is_filled_and_read_by_way_of_a_local_one(folder: Folder) -> None:
    deep = folder / "policy"
    with deep.filled() as inside:
        Path(inside, "sub").mkdir(parents=True)
        Path(inside, "sub", "w.bin").write_bytes(b"weights")
        Path(inside, "config.json").write_text("{}")
    assert deep.read_text("config.json") == "{}"
    assert (deep / "sub").read_bytes("w.bin") == b"weights"
    with deep.at_hand() as inside:
        assert Path(inside, "sub", "w.bin").read_bytes() == b"weights"


def test_processes_of_a_node_fetch_a_policy_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAML_CACHE", str(tmp_path))
    remote = Folder(f"memory://{uuid.uuid4().hex}/policy")
    remote.write_text("config.json", "{}")
    fetched, fetch = [], Folder.download

    def counted(folder: Folder, target: str) -> None:
        fetched.append(target)
        time.sleep(0.2)  # long enough for the others to come
        fetch(folder, target)

    monkeypatch.setattr(Folder, "download", counted)
    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(on_this_node, [remote.path] * 4))
    assert len(places) == len(fetched) == 1
    remote.write_text("config.json", "{ }")
    assert on_this_node(remote.path) not in places


def test_a_store_that_does_not_answer_is_named_with_the_variables_to_set() -> None:
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL"):
        storage.check_reachable("nosuchstore://bucket/runs")


def test_a_removed_folder_is_gone(folder: Folder) -> None:
    (folder / "step").write_text("x", "y")
    (folder / "step").remove()
    assert not (folder / "step").exists("x")


def test_an_unfinished_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not finished"):
        storage.summary(Folder(str(tmp_path)))


def test_local_roots_become_absolute_and_urls_stay() -> None:
    assert storage.absolute("s3://bucket/runs") == "s3://bucket/runs"
    assert storage.absolute("runs") == str(Path("runs").resolve())


def test_a_remote_folder_is_brought_to_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAML_CACHE", str(tmp_path))
    remote = Folder(f"memory://{uuid.uuid4().hex}/policy")
    remote.write_text("config.json", "{}")
    assert (Path(on_this_node(remote.path)) / "config.json").read_text() == "{}"


def test_ids_and_seeds_depend_on_every_part() -> None:
    one = records.trajectory_id("q", "p", "s", 0)
    others = [
        records.trajectory_id(*parts)
        for parts in (("r", "p", "s", 0), ("q", "o", "s", 0), ("q", "p", "t", 0), ("q", "p", "s", 1))
    ]
    assert len({one, *others}) == 5
    assert one == records.trajectory_id("q", "p", "s", 0)
    assert records.seed_of(0, one) != records.seed_of(1, one)
    assert 0 <= records.seed_of(0, one) < 2**31
