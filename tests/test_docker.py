"""The image's recipe: what it copies is there, it holds what running needs and no more, and its health is told."""

import re
import runpy
import shlex
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "docker" / "Dockerfile").read_text()
HEALTH = runpy.run_path(str(ROOT / "docker" / "healthcheck.py"))


def pins(lock: str) -> dict[str, str]:
    lines = (ROOT / "deploy" / "locks" / f"{lock}.txt").read_text().splitlines()
    return dict(line.split()[0].split("==", 1) for line in lines if re.match(r"[a-z0-9]", line))


def test_what_tests_need_is_in_no_image_and_agrees_with_what_running_needs() -> None:
    cpu, gpu, dev = pins("cpu"), pins("gpu"), pins("dev")
    assert {"pytest", "ruff", "mypy", "uv"} <= dev.keys()
    assert not {"pytest", "ruff", "mypy", "uv"} & (cpu.keys() | gpu.keys())
    assert {name: version for name, version in dev.items() if version != cpu.get(name, version)} == {}
    assert {name: version for name, version in dev.items() if version != gpu.get(name, version)} == {}
    assert "--no-dev" in RECIPE


def test_the_compiler_in_the_gpu_lock_is_of_the_cuda_that_torch_runs_on() -> None:
    minors = {
        name: ".".join(pins("gpu")[name].split(".")[:2])
        for name in ("nvidia-cuda-runtime", "nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-cuda-cccl", "nvidia-nvvm")
    }
    assert set(minors.values()) == {"13.0"}, minors


def test_what_the_image_copies_is_sent_to_its_build() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for line in RECIPE.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in shlex.split(line)[1:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in sent), f"{source} is ignored"


def test_the_image_runs_as_a_user_without_rights_and_asks_for_tokens() -> None:
    last = RECIPE[RECIPE.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["1000"]
    assert "RAY_AUTH_MODE=token" in last
    assert "org.opencontainers.image.version" in last
    assert "HEALTHCHECK" in last


def process(proc: Path, pid: int, *words: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))


def test_a_container_is_healthy_while_the_head_of_its_raylet_answers(tmp_path: Path) -> None:
    process(tmp_path, 1, "raml", "--gcs-address=127.0.0.1:9")
    assert HEALTH["main"](tmp_path) == 0, "no raylet, so nothing to reach"
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        process(tmp_path, 2, "/app/ray/core/src/ray/raylet/raylet", "--x=1", f"--gcs-address=127.0.0.1:{port}", "--y=2")
        assert HEALTH["heads"](tmp_path) == {("127.0.0.1", port)}
        assert HEALTH["main"](tmp_path) == 0
    assert HEALTH["main"](tmp_path) == 1


@pytest.mark.ray
def test_the_raylet_of_a_real_ray_is_found(cluster: None) -> None:
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    assert (host, int(port)) in HEALTH["heads"](Path("/proc"))
