"""Doctor: each finding with its remedy."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from raml_ray import doctor, ui
from raml_ray.config import Config, ConfigError, override

ROOT = Path(__file__).parents[1]


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
    if level == "warn":
        assert finding.remedy.startswith("nothing to install: compare times and figures with runs on this processor")


def test_a_machine_that_is_no_linux_is_told_what_to_do(tmp_path: Path) -> None:
    assert "Linux" in doctor._cpu(tmp_path / "none").remedy
    assert doctor._memory(tmp_path / "none").level == "warn"


@pytest.mark.parametrize(
    ("name", "release", "machine", "level", "works", "to_do"),
    [
        ("Darwin", "25.1.0", "arm64", "fail", "formulas, text and reports", "Linux"),
        ("Windows", "11", "AMD64", "fail", "nothing here was made for it", "wsl --install"),
        ("Linux", "6.12.0", "aarch64", "fail", "formulas, text and reports", "x86-64 and AVX2"),
        ("Linux", "6.6.87.2-microsoft-standard-WSL2", "x86_64", "warn", "all that runs on Linux runs", "inside WSL"),
    ],
)
def test_other_systems_are_told_what_works_on_them_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, name: str, release: str, machine: str, level: str, works: str, to_do: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: name)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "release", lambda: release)
    first = next(doctor.of_host())
    assert (first.level, works in first.found, to_do in first.remedy) == (level, True, True)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
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


def test_findings_are_told_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    def findings() -> Iterator[doctor.Finding]:
        yield doctor.Finding("fail", "disk", "full", "free some")
        assert capsys.readouterr().out == "fail disk: full\n     -> free some\n", "before the next is looked for"
        yield doctor.Finding("ok", "memory", "enough")

    assert doctor.main(findings()) == 1
    assert capsys.readouterr().out == "ok   memory: enough\n"
    assert doctor.main(iter([doctor.Finding("warn", "memory", "little", "close something")])) == 0


def test_what_cannot_be_imported_is_a_finding_and_all_else_is_looked_at() -> None:
    code = "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'ray', 'pyarrow'])\n"
    code += "from raml_ray.__main__ import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    for what, package in {"GPU and attention": "torch", "Ray": "ray", "MLflow": "pyarrow"}.items():
        halted = f"fail {what}: not looked at: import of {package} halted; None in sys.modules\n     -> make setup"
        assert halted in done.stdout
    assert "\nok   DeepSpeed: " in done.stdout


@pytest.mark.parametrize(
    ("system", "machine", "stack", "told"),
    [
        ("Darwin", "arm64", "cpu", "raml_ray: macOS: formulas, text and reports ask for no more than"),
        ("Linux", "aarch64", "cpu", "raml_ray: Linux on aarch64: formulas, text and reports ask for no more than"),
        ("MINGW64_NT-10.0", "x86_64", "cpu", "raml_ray: MINGW64_NT-10.0: nothing here was made for it"),
        ("Linux", "x86_64", "none", "raml_ray: no lock for the stack 'none'"),
    ],
)
def test_installation_begins_with_the_system_and_installs_nothing_where_nothing_would_run(
    tmp_path: Path, system: str, machine: str, stack: str, told: str
) -> None:
    uname = tmp_path / "uname"
    uname.write_text(f'#!/bin/sh\n[ "$1" = -s ] && echo {system} || echo {machine}\n')
    uname.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "deploy" / "install.sh"), stack, str(tmp_path / "venv")],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(told)
    assert "apt-get" not in done.stderr, "a line that cannot be typed there"
    assert not (tmp_path / "venv").exists()


def test_what_learners_find_here_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, attention = doctor._devices()
    assert (gpu.level, attention.level, doctor._deepspeed().level) == ("ok", "ok", "ok")
    assert attention.found == "train.attention=auto takes sdpa, because training runs on cpu"
    monkeypatch.setattr(doctor, "DEEPSPEED", "0.0.0")
    assert "make setup" in doctor._deepspeed().remedy
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _, attention = doctor._devices()
    assert attention.level == "warn"
    assert "flash-attn is not installed here" in attention.found
    assert "deploy/install.sh gpu" in attention.remedy


def test_a_tracking_server_that_is_down_is_found_and_its_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    (finding,) = doctor._tracking()
    assert finding.level == "warn"
    assert "hunter2" not in finding.found + finding.remedy
    with pytest.raises(ConfigError) as error:
        ui.serve(Config(), 5000)
    assert "hunter2" not in str(error.value)


def test_pages_are_served_only_where_something_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="no tracking store"):
        ui.serve(override(Config(), {"tracking.enabled": False}), 5000)


def test_a_ray_that_does_not_start_is_a_finding_whatever_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*words: object, **named: object) -> None:
        raise Exception("The current node timed out during startup.\nmore")  # as ray._private.node does

    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever Ray other tests have begun
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    finding = list(doctor._ray())[-1]
    assert (finding.level, finding.what) == ("fail", "Ray")
    assert finding.found == "does not start: The current node timed out during startup."
    assert "/tmp/ray/session_latest/logs" in finding.remedy


@pytest.mark.ray
@pytest.mark.slow
def test_ray_is_really_started() -> None:
    code = "from raml_ray import doctor; print([tuple(f) for f in doctor._ray()])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert "('ok', 'Ray', 'starts and answers', '')" in done.stdout
