"""Doctor: each finding with its remedy."""

import platform
from pathlib import Path

import pytest
import torch

from raml_ray import doctor, ui
from raml_ray.config import Config, ConfigError, override


def test_this_machine_has_what_the_tests_need() -> None:
    findings = [*doctor._python(), *doctor._packages(), doctor._engine()]
    assert [finding for finding in findings if finding.level != "ok"] == []


@pytest.mark.parametrize(
    ("flags", "level"), [("sse avx2 avx512f", "ok"), ("sse avx2", "warn"), ("sse", "fail"), ("", "fail")]
)
def test_the_processor_is_judged_by_its_vector_units(tmp_path: Path, flags: str, level: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    finding = doctor._cpu(tmp_path / "cpuinfo")
    assert finding.level == level
    assert bool(finding.remedy) == (level != "ok")


def test_a_machine_that_is_no_linux_is_told_what_to_do(tmp_path: Path) -> None:
    assert "Linux" in doctor._cpu(tmp_path / "none").remedy
    assert doctor._memory(tmp_path / "none").level == "warn"


@pytest.mark.parametrize(
    ("name", "release", "level", "works", "to_do"),
    [
        ("Darwin", "25.1.0", "fail", "formulas, text and reports work", "Linux"),
        ("Windows", "11", "fail", "nothing here was made for it", "wsl --install"),
        ("Linux", "6.6.87.2-microsoft-standard-WSL2", "warn", "all that runs on Linux runs", "inside WSL"),
    ],
)
def test_other_systems_are_told_what_works_on_them_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, name: str, release: str, level: str, works: str, to_do: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: name)
    monkeypatch.setattr(platform, "release", lambda: release)
    first = next(doctor.of_host())
    assert (first.level, works in first.found, to_do in first.remedy) == (level, True, True)
    monkeypatch.setattr(platform, "release", lambda: "6.12.0-amd64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert next(doctor.of_host()).what == "Python", "of ordinary Linux there is nothing to say"


def test_little_memory_and_little_space_are_found(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  1048576 kB\n")
    assert doctor._memory(tmp_path / "meminfo").level == "warn"
    assert doctor._space("disk", str(tmp_path), 1e9, "free some") == doctor.Finding(
        "fail", "disk", doctor._space("disk", str(tmp_path), 1e9, "").found, "free some"
    )
    assert doctor._space("disk", str(tmp_path), 0.0, "").level == "ok"


def test_a_missing_tool_is_answered_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert doctor._compiler().remedy == "sudo apt-get install g++"
    finding = doctor._sandbox()
    assert finding.level == "warn", "only programs as answers need it"
    assert "bwrap" in finding.found
    assert "sudo apt-get install bubblewrap" in finding.remedy


def test_what_learners_find_here_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, deepspeed = doctor._learners()
    assert (deepspeed.level, attention.level) == ("ok", "ok")
    assert attention.found == "train.attention=auto takes sdpa, because training runs on cpu"
    monkeypatch.setattr(doctor, "DEEPSPEED", "0.0.0")
    assert "make setup" in list(doctor._learners())[1].remedy
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    attention = next(doctor._learners())
    assert attention.level == "warn"
    assert "flash-attn is not installed here" in attention.found
    assert "deploy/install.sh gpu" in attention.remedy


def test_a_tracking_server_that_is_down_is_found_and_its_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    finding = doctor._tracking()
    assert finding.level == "warn"
    assert "hunter2" not in finding.found + finding.remedy
    with pytest.raises(ConfigError) as error:
        ui.serve(Config(), 5000)
    assert "hunter2" not in str(error.value)


def test_pages_are_served_only_where_something_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="no tracking store"):
        ui.serve(override(Config(), {"tracking.enabled": False}), 5000)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_is_really_started() -> None:
    import subprocess
    import sys

    code = "from raml_ray import doctor; print([tuple(f) for f in doctor._ray()])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert "('ok', 'Ray', 'starts and answers', '')" in done.stdout
