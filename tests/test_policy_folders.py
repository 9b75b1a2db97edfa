"""Where a policy's files come from: this machine, a store, or the hub."""

import uuid
from pathlib import Path

import pytest

from raml_ray.config import ConfigError
from raml_ray.storage import Folder


def test_a_remote_policy_whose_files_changed_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAML_CACHE", str(tmp_path))
    remote = Folder(f"memory://{uuid.uuid4().hex}/policy")
    remote.write_text("config.json", "old")
    first = remote.localised()
    assert remote.localised() == first
    remote.write_text("config.json", "new")
    assert (Path(remote.localised()) / "config.json").read_text() == "new"


@pytest.mark.parametrize(
    "path", ["/nowhere/policy", "./policy", "../policy", "runs/mine/policy", "memory://none/policy"]
)
def test_a_path_that_is_no_folder_is_not_taken_for_a_hub_name(path: str) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Folder(path).localised()


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B"])
def test_a_hub_name_stays_as_it_is(name: str) -> None:
    assert Folder(name).localised() == name
