"""Where a policy's files come from: this machine, a store, or the hub."""

import uuid
from pathlib import Path

import pytest

from raml_ray.config import ConfigError
from raml_ray.policy_source import on_this_node, portable
from raml_ray.storage import Folder


def test_a_remote_policy_whose_files_changed_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAML_CACHE", str(tmp_path))
    remote = Folder(f"memory://{uuid.uuid4().hex}/policy")
    remote.write_text("config.json", "old")
    first = on_this_node(remote.path)
    assert on_this_node(remote.path) == first
    remote.write_text("config.json", "new")
    assert (Path(on_this_node(remote.path)) / "config.json").read_text() == "new"


@pytest.mark.parametrize(
    "path", ["/nowhere/policy", "./policy", "../policy", "runs/mine/policy", "memory://none/policy"]
)
def test_a_path_that_is_no_folder_is_not_taken_for_a_hub_name(path: str) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        on_this_node(portable(path))


def test_a_hub_name_that_the_hub_does_not_give_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="'nobody/no-such-policy' is no folder here, and the Hugging Face hub"):
        on_this_node(portable("nobody/no-such-policy"))


def test_a_relative_folder_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert on_this_node(portable("mine")) == str(tmp_path / "mine")
