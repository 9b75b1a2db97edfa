"""A sandbox for programs that models write: bubblewrap's namespaces, the kernel's limits and filter, and one process.

Each run is a launch of its own. The program has no network, no environment, no file but Python's own and the system's
libraries, nowhere to write, no second process, a user without rights, and bounded CPU time, memory, output and wall
time. It is process 1 of its own process namespace: when it ends, the kernel ends all that the namespace holds before it
reports the end here. What is not held: docs/code_sandbox.md.
"""

import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from raml_ray.workers import sandbox_driver, syscalls
from raml_ray.workers.sandbox_launch import Launch

NOBODY = 65534
NUM_DESCRIPTORS, NUM_THREADS = 64, 64
"""Of one program. The kernel counts threads per sandbox since Linux 5.14, before that per user of the machine."""
KILLED = 128 + signal.SIGKILL
INSIDE = "/python"
WALLS = (
    *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session", "--as-pid-1"),
    *("--hostname", "sandbox", "--dev-bind", "/dev/null", "/dev/null"),
)
DESCRIBE = (
    "import json, os, sys, sysconfig; print(json.dumps([os.path.realpath(sys.executable),"
    " sysconfig.get_path('stdlib'), sys.platlibdir, sysconfig.get_config_var('INSTSONAME') or '']))"
)
REMEDY = (
    "programs that a model wrote are not run without it. Install bubblewrap 0.8 or newer (sudo apt-get install"
    " bubblewrap) on every node, and python3 where the sandbox's user can read it; in Kubernetes the pod needs"
    " securityContext.seccompProfile.type=Unconfined (or a profile that allows user namespaces), procMount=Unmasked and"
    " no AppArmor profile that forbids user namespaces"
)


Kind = Literal["stdin", "function"]
Status = Literal["ok", "exit", "cpu", "wall", "memory", "output", "killed"]


class SandboxUnavailable(RuntimeError):
    """No sandbox holds here: `why`, and the message has the remedy."""

    def __init__(self, why: str) -> None:
        super().__init__(f"no sandbox: {why}; {REMEDY}")
        self.why = why


class Limits(NamedTuple):
    """Of one run: `Limits(6.0, 20.0, 1024, 1024)`."""

    cpu_seconds: float
    wall_seconds: float
    memory_mib: int
    """Address space of the program, Python included."""
    output_kib: int
    """Of standard output and standard error together."""


class Run(NamedTuple):
    """How one run ended: `Run("ok", b"3\\n", b"", 0, 0.02)`."""

    status: Status
    """`exit`: another exit code than 0; `killed`: from outside (by a machine that had no memory left, say)."""
    stdout: bytes
    stderr: bytes
    exit_code: int
    """128 and the signal's number if one ended it."""
    cpu_seconds: float


class Sandbox:
    """Runs programs under those limits. Any number of threads may call `run` at once.

    Raises: SandboxUnavailable if bubblewrap or an interpreter is missing or cannot be used here. Whether it holds is
    another question, which `sandbox_probe.checked` asks.
    """

    def __init__(self, limits: Limits) -> None:
        for name, value in zip(Limits._fields, limits, strict=True):
            if value <= 0:
                raise ValueError(f"the sandbox's {name}={value} must be positive")
        self._limits = limits
        bubblewrap = shutil.which("bwrap")
        if bubblewrap is None:
            raise SandboxUnavailable("bubblewrap (bwrap) is not installed")
        self._bubblewrap = bubblewrap
        try:
            self._filter = syscalls.filter_for()
        except ValueError as error:
            raise SandboxUnavailable(str(error)) from None
        self._driver = Path(sandbox_driver.__file__).read_text()
        self._walls: list[str] = []
        failures = []
        for python in dict.fromkeys((f"{sys.base_prefix}/bin/python3", "/usr/bin/python3")):
            try:
                self._walls = [*WALLS, *_system(), *_python(python)]
                run = self.run("print(input())", b"up")
            except SandboxUnavailable as error:
                failures.append(f"{python}: {error.why}")
                continue
            if (run.status, run.stdout) == ("ok", b"up\n"):
                return
            failures.append(f"{python}: {run.status}, {run.stderr[-200:].decode(errors='replace')}")
        raise SandboxUnavailable("no Python starts inside it (" + "; ".join(failures) + ")")

    def run(self, program: str, stdin: bytes, kind: Kind = "stdin") -> Run:
        """Run the program once, with that standard input; of kind function, `sandbox_driver.call` says what it holds.

        Raises: SandboxUnavailable if the sandbox did not come up.
        """
        with contextlib.ExitStack() as stack:
            source = _sealed(stack, program.encode("utf-8", "replace"))
            calls = _sealed(stack, self._filter)
            given = _sealed(stack, stdin)
            reports, reporter = os.pipe()
            stack.callback(os.close, reports)
            try:
                process = self._launch(kind, source, calls, reporter, given)
            except OSError as error:
                raise SandboxUnavailable(f"{self._bubblewrap} does not start: {error}") from error
            finally:
                os.close(reporter)
            return self._finish(Launch(process, reports))

    def _launch(self, kind: Kind, source: int, calls: int, reporter: int, stdin: int) -> subprocess.Popen[bytes]:
        numbers = (math.ceil(self._limits.cpu_seconds), self._limits.memory_mib * 2**20, NUM_DESCRIPTORS, NUM_THREADS)
        is_root = os.geteuid() == 0  # never as root: bubblewrap would keep rights, and the kernel spares root limits
        return subprocess.Popen(
            [
                self._bubblewrap,
                *self._walls,
                *("--ro-bind-data", str(source), "/program.py", "--remount-ro", "/"),
                *("--seccomp", str(calls), "--json-status-fd", str(reporter)),
                *(f"{INSIDE}/bin/python3", "-I", "-S", "-B", "-X", "utf8", "-c", self._driver),
                *(kind, *map(str, numbers), "/program.py"),
            ],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={},  # bubblewrap's own, too: with --clearenv ours would stand in /proc/PID/environ
            cwd="/",
            pass_fds=(source, calls, reporter),
            user=NOBODY if is_root else None,
            group=NOBODY if is_root else None,
            extra_groups=[] if is_root else None,
        )

    def _finish(self, launch: Launch) -> Run:
        passed: Literal["", "wall", "output"] | None = None
        try:
            passed = launch.read(self._limits.wall_seconds, self._limits.output_kib * 1024)
        finally:
            code, usage = launch.end(kill=passed != "")
        stdout, stderr = launch.output
        cpu_seconds = usage.ru_utime + usage.ru_stime
        if code is None and not passed:
            raise SandboxUnavailable(f"bubblewrap failed: {stderr[-400:].decode(errors='replace').strip()}")
        code = KILLED if code is None else code
        return Run(passed or self._status(code, cpu_seconds, stderr), stdout, stderr, code, cpu_seconds)

    def _status(self, code: int, cpu_seconds: float, stderr: bytes) -> Status:
        most = self._limits.cpu_seconds
        # The kernel's limit and its account may differ by a tick or so.
        if cpu_seconds > most or (code == KILLED and cpu_seconds > 0.9 * most):
            return "cpu"
        if code == 0:
            return "ok"
        if stderr.rstrip().rpartition(b"\n")[2].startswith(b"MemoryError"):
            return "memory"
        return "killed" if code == KILLED else "exit"


def _sealed(stack: contextlib.ExitStack, content: bytes) -> int:
    """A file in memory that nobody can change, read from its beginning."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, descriptor)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return descriptor


def _system() -> Iterator[str]:
    """The folders that hold shared libraries, whole, read-only, links as links; without Python's packages."""
    for name in ("usr/lib", "usr/lib32", "usr/lib64", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    yield from _hidden(Path("/usr/lib/python3"), "/usr/lib/python3")
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")


def _hidden(outside: Path, inside: str) -> Iterator[str]:
    """Empty folders in the place of the installed packages, which are nobody's standard library."""
    for name in ("site-packages", "dist-packages"):
        if (outside / name).is_dir():
            yield from ("--tmpfs", f"{inside}/{name}", "--remount-ro", f"{inside}/{name}")


def _python(executable: str) -> Iterator[str]:
    """That interpreter and its standard library, read-only, at a place that tells nothing of where they lie.

    Raises: SandboxUnavailable if it does not run outside either.
    """
    try:
        done = subprocess.run([executable, "-I", "-S", "-c", DESCRIBE], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SandboxUnavailable(str(error)) from None
    real, standard_library, folder, shared_name = json.loads(done.stdout)
    shared_library = Path(standard_library).with_name(shared_name or "none")
    yield from ("--ro-bind", real, f"{INSIDE}/bin/python3")
    inside = f"{INSIDE}/{folder}/{Path(standard_library).name}"
    yield from ("--ro-bind", standard_library, inside)
    yield from _hidden(Path(standard_library), inside)
    if ".so" in shared_name and os.path.isfile(shared_library):
        yield from ("--ro-bind", str(shared_library), f"{INSIDE}/shared/{shared_name}")
        yield from ("--setenv", "LD_LIBRARY_PATH", f"{INSIDE}/shared")
