"""A root that not every node can see is refused, with the nodes and what to do."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from raml_ray import cluster as of_ray
from raml_ray.config import ConfigError
from raml_ray.storage import Folder

HOSTS = {"1f": "head", "2f": "one", "3f": "two"}
"""Node id -> host."""


class Disks:
    """Hosts that look for themselves, each at what its disk has in the place of the root."""

    def __init__(self, **folders: Path) -> None:
        self.folders, self.copied = folders, False

    def look(self, names: Mapping[str, str], probe: Folder, mark: str) -> dict[str, str]:
        found = {}
        for node_id, host in names.items():
            seen = probe
            if host in self.folders:
                seen = Folder(str(self.folders[host])) / Path(probe.path).name
                if self.copied:
                    shutil.copytree(probe.path, seen.path)
            found[node_id] = of_ray._look(seen, mark, node_id)
        return found


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    (tmp_path / "root").mkdir()
    return Folder(str(tmp_path / "root"))


def refused(root: Folder, disks: Disks) -> str:
    with pytest.raises(ConfigError) as error:
        of_ray._check_seen(root, HOSTS, disks.look)
    assert str(error.value).startswith(f"root={root.path} is not the same folder on every node:\n")
    assert "mount one file system there on all of them, or set root to a URL" in str(error.value)
    return str(error.value)


def test_a_root_that_all_nodes_share_is_taken_and_nothing_is_left_in_it(root: Folder) -> None:
    of_ray._check_seen(root, HOSTS, Disks().look)
    assert root.names() == []


def test_nodes_that_do_not_see_what_the_driver_wrote_are_named(root: Folder, tmp_path: Path) -> None:
    said = refused(root, Disks(one=tmp_path / "empty"))
    assert "\n  one: FileNotFoundError: " in said
    assert "head:" not in said and "two:" not in said
    assert root.names() == []


def test_nodes_whose_writing_stays_with_them_are_named(root: Folder, tmp_path: Path) -> None:
    """A copy of the root, made a moment ago, reads as the root does."""
    disks = Disks(two=tmp_path / "copy")
    disks.copied = True
    assert "\n  two: what it writes there is not seen by the driver\n" in refused(root, disks)


def test_nodes_that_read_otherwise_are_named(root: Folder, tmp_path: Path) -> None:
    class Stale(Disks):
        def look(self, names: Mapping[str, str], probe: Folder, mark: str) -> dict[str, str]:
            return super().look(names, probe, "of another time")

    said = refused(root, Stale())
    assert said.count("what the driver wrote there reads otherwise here") == len(HOSTS)


def test_a_root_in_the_copy_of_the_working_directory_is_refused(tmp_path: Path) -> None:
    lost = tmp_path / of_ray.UPLOADED.strip("/").partition("/")[0] / "_ray_pkg_4711" / "runs"
    with pytest.raises(ConfigError, match="which is removed after the job: name a folder that all nodes share"):
        of_ray.check_root(Folder(str(lost)))


@pytest.mark.ray
def test_a_node_that_does_not_answer_is_named_with_what_to_do(cluster: None, root: Folder) -> None:
    import ray

    here = ray.get_runtime_context().get_node_id()
    (root / "probe").write_text("driver", "mark")
    assert of_ray._each_node({here: "head"}, root / "probe", "mark") == {here: ""}
    assert (root / "probe").read_text(here) == "mark"
    gone = "0" * len(here)
    with pytest.raises(RuntimeError) as error:
        of_ray._each_node({here: "head", gone: "two"}, root / "probe", "mark")
    assert "\n  two: " in str(error.value) and "head:" not in str(error.value)
    assert "raylet's log" in str(error.value) and "`ray stop` there" in str(error.value)
