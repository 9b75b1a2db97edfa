import errno
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from raml_ray.workers import sandbox_probe, syscalls
from raml_ray.workers.sandbox import NUM_THREADS, Limits, Sandbox, SandboxUnavailable
from tests.workers.sandboxes import needs_sandbox

LIMITS = Limits(cpu_seconds=1, wall_seconds=3, memory_mib=256, output_kib=64)
HEADERS = {
    "x86_64": pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": pathlib.Path("/usr/include/asm-generic/unistd.h"),
}
WAIT = 1.5
"""Wall limit where programs wait, seconds."""
SLACK = 2.0
"""Seconds by which a busy machine may be late."""


@pytest.fixture(scope="module")
def box():
    return sandbox_probe.checked(LIMITS)


@pytest.fixture(scope="module")
def unfiltered():
    """The sandbox without its second wall: the filter lets every call pass."""
    sandbox = Sandbox(LIMITS._replace(wall_seconds=WAIT))
    sandbox._filter = struct.pack("<HBBI", syscalls.RETURN, 0, 0, syscalls.ALLOW)
    return sandbox


def inside():
    """Processes of other process namespaces than ours: what runs in sandboxes."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found[int(folder.name)] = os.readlink(folder / "ns/pid")
            except OSError:
                continue
    return {pid for pid, namespace in found.items() if namespace != os.readlink("/proc/self/ns/pid")}


def gone(pids, seconds=5.0):
    deadline = time.monotonic() + seconds
    while pids & inside():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def timed(sandbox, program, stdin=b""):
    """The run, its wall time in seconds, and that nothing was left of it."""
    before = inside()
    started = time.monotonic()
    run = sandbox.run(program, stdin)
    seconds = time.monotonic() - started
    assert gone(inside() - before)
    return run, seconds


def attempts(sandbox, body, **given):
    """What a program prints that tries things: the names that `attempt` saw succeed."""
    start = sandbox_probe.ESCAPES.partition("\nattempt(")[0]
    run = sandbox.run(f"{start}\n{body}\nprint(json.dumps(worked))", json.dumps({"port": 0, **given}).encode())
    assert run.status == "ok", run.stderr
    return json.loads(run.stdout)


@needs_sandbox
def test_an_honest_program_reads_prints_and_recurses(box):
    program = "import sys\nsys.setrecursionlimit(9000)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(int(input())))"
    run = box.run(program, b"8000\n")
    assert (run.status, run.stdout, run.stderr, run.exit_code) == ("ok", b"8000\n", b"", 0)
    assert 0 < run.cpu_seconds < 1


@needs_sandbox
@pytest.mark.parametrize("program", ["exit()", "quit(0)", "import sys; sys.exit()", "import os; os._exit(0)"])
def test_a_program_may_end_itself_in_every_way_that_python_has(box, program):
    assert box.run(program, b"").status == "ok"


@needs_sandbox
def test_an_exit_code_and_a_signal_are_told(box):
    assert box.run("exit(7)", b"")[0::3] == ("exit", 7)
    assert box.run("import ctypes; ctypes.string_at(0)", b"")[0::3] == ("exit", 128 + signal.SIGSEGV)
    assert b"ZeroDivisionError" in box.run("1 / 0", b"").stderr


@needs_sandbox
def test_output_that_is_no_text_comes_out_as_it_is(box):
    run = box.run(r"import sys; sys.stdout.buffer.write(b'\x00\xff\xfe\x00')", b"")
    assert (run.status, run.stdout) == ("ok", b"\x00\xff\xfe\x00")


@needs_sandbox
def test_a_large_input_may_stay_unread_or_be_read_whole(box):
    given = b"7" * 3_000_000
    assert box.run("print('done')", given).stdout == b"done\n"
    assert box.run("import sys; print(len(sys.stdin.read()))", given).stdout == b"3000000\n"


@needs_sandbox
def test_runs_at_the_same_time_do_not_mix(box):
    with ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(lambda n: box.run("print(int(input()) ** 2)", str(n).encode()), range(24)))
    assert [int(run.stdout) for run in runs] == [n * n for n in range(24)]


@needs_sandbox
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import resource, signal\n"
        "for n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
        "try: resource.setrlimit(resource.RLIMIT_CPU, (9, 9))\nexcept (ValueError, OSError): pass\n"
        "while True: pass",
        "import threading\nfor _ in range(3): threading.Thread(target=lambda: all(n == 0 for n in iter(int, 1))).start()",
    ],
    ids=["endless", "ignores signals and raises its limit", "threads"],
)
def test_the_kernel_ends_a_program_that_computes_for_too_long_however_busy_the_machine(program):
    run, _ = timed(Sandbox(LIMITS._replace(wall_seconds=60)), program)
    assert run.status == "cpu"
    assert 0.9 < run.cpu_seconds < 1.5


@needs_sandbox
def test_a_limit_of_less_than_a_second_holds_for_what_the_kernel_rounds_up():
    sandbox = Sandbox(LIMITS._replace(cpu_seconds=0.3, wall_seconds=60))
    program = "import time\nwhile time.process_time() < {}: pass\nprint('done')"
    assert sandbox.run(program.format(0.5), b"").status == "cpu"
    assert sandbox.run(program.format(0.1), b"").status == "ok"


@needs_sandbox
@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(60)",
        "import os, sys, time\nsys.stdout.close(); os.closerange(0, 9)\ntime.sleep(60)",
        "import os, time\nwhile True: os.write(1, b'.'); time.sleep(0.01)",
    ],
    ids=["sleeps", "closes its output", "drips"],
)
def test_a_program_that_waits_is_ended_at_the_wall_limit(unfiltered, program):
    run, seconds = timed(unfiltered, program)
    assert run.status == "wall"
    assert WAIT <= seconds < WAIT + SLACK


@needs_sandbox
@pytest.mark.parametrize(
    "program", ["x = bytearray(10**9)", "x = []\nwhile True: x.append(bytes(10**6))", "'a' * 10**10"]
)
def test_memory_beyond_the_limit_is_not_given(box, program):
    run, _ = timed(box, program)
    assert run.status == "memory"


@needs_sandbox
@pytest.mark.parametrize("stream", [1, 2])
def test_endless_output_is_cut_and_its_writer_ended(box, stream):
    run, seconds = timed(box, f"import os\nwhile True: os.write({stream}, b'x' * 4096)")
    assert run.status == "output"
    assert 64 * 1024 < len(run.stdout) + len(run.stderr) <= (64 + 128) * 1024, "little more than the limit is held here"
    assert seconds < LIMITS.wall_seconds


@needs_sandbox
def test_no_second_process_can_be_started(box):
    body = """
import subprocess, multiprocessing
attempt("fork", fork)
attempt("spawn", lambda: os.posix_spawn("/python/bin/python3", ["python3", "-c", ""], {}) > 0)
attempt("subprocess", lambda: subprocess.run(["/python/bin/python3", "-c", ""]))
attempt("system", lambda: os.system("exit 0") == 0)
attempt("clone", lambda: libc.syscall(56, 17, 0, 0, 0, 0) > 0)
attempt("clone3", lambda: libc.syscall(435, 0, 0) >= 0)
attempt("multiprocessing", lambda: multiprocessing.Process(target=print).start() or True)
"""
    assert attempts(box, body) == []


@needs_sandbox
def test_a_fork_bomb_leaves_nothing(box):
    run, seconds = timed(box, "import os\nwhile True:\n try: os.fork()\n except OSError: pass")
    assert run.status in ("cpu", "wall")
    assert seconds < LIMITS.wall_seconds + SLACK


@needs_sandbox
def test_a_fork_bomb_leaves_nothing_and_meets_the_limit_of_processes_where_no_filter_stops_it(unfiltered):
    program = "import os, time\nfor _ in range(200):\n try: os.fork()\n except OSError as e: print(e.errno, flush=True); break\ntime.sleep(9)"
    run, seconds = timed(unfiltered, program)
    assert run.status in ("wall", "output")
    assert str(errno.EAGAIN).encode() in run.stdout.split()
    assert seconds < WAIT + SLACK


@needs_sandbox
def test_a_daemon_does_not_outlive_the_program_where_no_filter_stops_it(unfiltered):
    program = (
        "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: time.sleep(60)\n os._exit(0)\nprint(1)"
    )
    run, seconds = timed(unfiltered, program)
    assert (run.status, run.stdout) == ("ok", b"1\n")
    assert seconds < WAIT


@needs_sandbox
def test_threads_are_few(box):
    program = """
import threading, time
threading.stack_size(65536)
count = 0
try:
    for count in range(1000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError:
    print(count)
"""
    run, _ = timed(box, program)
    assert run.status == "ok"
    assert 8 <= int(run.stdout) < NUM_THREADS


@needs_sandbox
def test_a_thread_bomb_beside_it_does_not_disturb_an_honest_program(box):
    bomb = "import threading\ndef f():\n while True:\n  try: threading.Thread(target=f).start()\n  except RuntimeError: pass\nf()"
    honest = "import threading\nt = threading.Thread(target=print, args=(1,)); t.start(); t.join()"
    with ThreadPoolExecutor(2) as threads:
        bombed = threads.submit(box.run, bomb, b"")
        runs = [box.run(honest, b"") for _ in range(5)]
    assert [run.stdout for run in runs] == [b"1\n"] * 5
    assert bombed.result().status in ("cpu", "wall", "memory", "output", "exit")


@needs_sandbox
def test_nothing_of_this_machine_can_be_read(box, tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_TOKEN", "feather")
    canary = tmp_path / "canary"
    canary.write_text("feather")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o755)  # so that it is the sandbox that hides it
    body = """
for path in (given["file"], "/etc/passwd", "/etc/hostname", "/proc/1/environ", "/proc/self/environ", "/proc/self/maps",
             "/sys/kernel/version", "/dev/mem", "/dev/shm/x", __file__ + "/../etc/passwd"):
    attempt(path, lambda: open(path, "rb").read(1) or True)
for path in given["folders"]:
    attempt(path, lambda: os.listdir(path) or True)
worked += [name for name in os.environ if name not in ("PWD", "LC_CTYPE", "LD_LIBRARY_PATH")]
worked += sorted(set(os.listdir("/")) - {"lib", "lib32", "lib64"})
"""
    folders = ["/home", "/root", "/tmp", "/var", "/proc", "/opt", str(pathlib.Path.home()), os.getcwd(), sys.prefix]
    found = attempts(box, body, file=str(canary), folders=folders)
    assert set(found) <= {"dev", "etc", "program.py", "python", "usr"}, found


@needs_sandbox
def test_installed_packages_are_hidden_and_the_system_s_libraries_are_all_that_can_be_read(box):
    body = """
for folder in ("/usr/lib/python3", os.__file__.rpartition("/")[0]):
    for path in (folder, folder + "/site-packages", folder + "/dist-packages"):
        attempt("writes in " + path, lambda: open(path + "/x", "w"))
        if path.endswith("-packages") and os.path.isdir(path) and os.listdir(path):
            worked.append(path)
worked += sorted(set(os.listdir("/usr")) - {"lib", "lib32", "lib64"})
worked += sorted(set(os.listdir("/etc")) - {"ld.so.cache"}) if os.path.isdir("/etc") else []
"""
    assert attempts(box, body) == []


@needs_sandbox
def test_the_guard_of_a_running_program_has_no_environment(box, monkeypatch):
    monkeypatch.setenv("CANARY_TOKEN", "feather")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(box.run, "import time; time.sleep(1)", b"")
        environments = []
        while not running.done():
            for path in pathlib.Path("/proc/self/task").glob("*/children"):
                for pid in path.read_text().split():
                    try:
                        environments.append(pathlib.Path(f"/proc/{pid}/environ").read_bytes())
                        is_guard = "bwrap" in pathlib.Path(f"/proc/{pid}/comm").read_text()
                    except OSError:
                        continue
                    if is_guard:
                        assert b"feather" not in environments[-1]
            time.sleep(0.05)
    assert environments, "the guard was seen"


@needs_sandbox
def test_nowhere_can_be_written(box, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    victim.chmod(0o666)
    body = """
for path in ("/x", "/tmp/x", "/program.py", "/dev/x", "/dev/shm/x", "/usr/lib/x", "/python/x", given["file"]):
    attempt(path, lambda: write(path))
attempt("memory file", lambda: os.memfd_create("x") > 0)
attempt("input", lambda: os.ftruncate(0, 10**9) or True)
attempt("input's content", lambda: os.pwrite(0, b"x", 0))
attempt("shared memory", lambda: libc.shmget(0, 1 << 30, 0o1600) >= 0)
attempt("remount", lambda: libc.mount(b"none", b"/dev", b"tmpfs", 0, 0) == 0)
"""
    assert attempts(box, body, file=str(victim)) == []
    assert victim.read_text() == "whole"


@needs_sandbox
@pytest.mark.parametrize("sandbox", ["box", "unfiltered"])
def test_the_network_is_out_of_reach_by_the_filter_and_without_it(request, sandbox):
    name = b"\0raml_ray_test_" + str(os.getpid()).encode()
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as local,
    ):
        udp.bind(("127.0.0.1", 0))
        local.bind(name)
        local.listen()
        body = """
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tried:
        tried.sendto(b"x", ("127.0.0.1", given["udp"]))
def far(address):
    with socket.socket() as tried:
        tried.settimeout(1)
        tried.connect(address)
    return True
def abstract():
    with socket.socket(socket.AF_UNIX) as tried:
        tried.connect(given["name"])
    return True
attempt("tcp", connect)
attempt("udp", udp)
attempt("far", lambda: far(("1.1.1.1", 53)))
attempt("metadata service", lambda: far(("169.254.169.254", 80)))
attempt("dns", lambda: socket.getaddrinfo("localhost.example.org", 80))
attempt("abstract socket", abstract)
"""
        given = {"port": tcp.getsockname()[1], "udp": udp.getsockname()[1], "name": name.decode()}
        assert attempts(request.getfixturevalue(sandbox), body, **given) == []
        for listener in (tcp, udp, local):
            listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            tcp.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(9)
        with pytest.raises(BlockingIOError):
            local.accept()


@needs_sandbox
@pytest.mark.parametrize("sandbox", ["box", "unfiltered"])
def test_rights_and_other_processes_are_out_of_reach_by_the_filter_and_without_it(request, sandbox):
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    body = """
import signal
attempt("user namespace", lambda: libc.unshare(0x10000000) == 0)
attempt("mount namespace", lambda: libc.unshare(0x20000) == 0)
attempt("mount", lambda: libc.mount(b"none", b"/usr", b"tmpfs", 0, 0) == 0)
attempt("unmount", lambda: libc.umount2(b"/usr/lib", 2) == 0)
attempt("chroot", lambda: os.chroot("/usr") or True)
attempt("setuid", lambda: os.setuid(0) or True)
attempt("setgroups", lambda: os.setgroups([0]) or True)
attempt("host name", lambda: socket.sethostname("x") or True)
attempt("ptrace", lambda: libc.ptrace(16, given["pid"], 0, 0) == 0)
for pid in (given["pid"], given["parent"]):
    attempt(f"kill {pid}", lambda: os.kill(pid, signal.SIGKILL) or True)
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
"""
    try:
        assert attempts(request.getfixturevalue(sandbox), body, pid=bystander.pid, parent=os.getpid()) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        bystander.stdin.close()


@needs_sandbox
def test_no_descriptor_of_ours_is_inside(box):
    program = "import os\nfor n in range(3, 64):\n try: os.fstat(n); print(n)\n except OSError: pass"
    with open("/proc/self/environ") as held:
        os.set_inheritable(held.fileno(), True)
        assert box.run(program, b"").stdout == b""


@needs_sandbox
def test_a_program_ends_with_the_process_that_runs_it_and_cannot_untie_itself():
    program = "import ctypes, os, time; ctypes.CDLL(None).prctl(1, 0); os.write(2, b'up'); time.sleep(50)"
    script = (
        "from raml_ray.workers.sandbox import *\n"
        f"box = Sandbox(Limits(1, 60, 256, 64)); print('up', flush=True); box.run({program!r}, b'')"
    )
    before = inside()
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"up\n"
        deadline = time.monotonic() + 10
        while not inside() - before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)  # the program has come to its sleep
        running = inside() - before
        assert running
        owner.kill()
    assert gone(running)


@needs_sandbox
def test_the_probe_finds_nothing_here_and_would_find_what_gets_out(box, unfiltered):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox_probe, "Sandbox", lambda limits: unfiltered)
        with pytest.raises(SandboxUnavailable, match="starts a process, outlives its guard"):
            sandbox_probe.checked(LIMITS)
    assert isinstance(sandbox_probe.checked(LIMITS), Sandbox)


def test_without_bubblewrap_nothing_runs_and_the_remedy_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"bwrap.* is not installed.*apt-get install bubblewrap.*Kubernetes"):
        sandbox_probe.checked(LIMITS)


def test_with_a_bubblewrap_that_does_not_work_nothing_runs(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SandboxUnavailable, match="no Python starts inside it"):
        sandbox_probe.checked(LIMITS)


@pytest.mark.parametrize("name", Limits._fields)
def test_a_limit_must_be_positive(name):
    with pytest.raises(ValueError, match=name):
        Sandbox(LIMITS._replace(**{name: 0}))


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_the_numbers_of_the_system_calls_are_the_kernels_own(machine):
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    numbers = dict(re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    known = syscalls.MACHINES[machine]
    named = {**known.forbidden, "clone": known.clone, "prctl": known.prctl, "clone3": syscalls.CLONE3}
    assert {name: int(numbers[name]) for name in named} == named


def test_a_processor_that_is_not_known_has_no_filter():
    with pytest.raises(ValueError, match="riscv64"):
        syscalls.filter_for("riscv64")
