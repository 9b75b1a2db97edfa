"""Does the sandbox hold on this machine? Asked before the first program, by programs that try to get out."""

import json
import os
import socket
import tempfile
from pathlib import Path

from raml_ray.workers.sandbox import Limits, Sandbox, SandboxUnavailable

HONEST = """
import threading
found = []
thread = threading.Thread(target=lambda: found.append(sum(map(int, input().split()))))
thread.start()
thread.join()
print(found[0])
"""
ESCAPES = """
import ctypes, json, os, socket
given = json.loads(input())
libc = ctypes.CDLL(None, use_errno=True)
worked = []

def attempt(name, act):
    try:
        if act():
            worked.append(name)
    except OSError:
        pass

def connect():
    with socket.socket() as tried:
        tried.connect(("127.0.0.1", given["port"]))
    return True

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    return True

def write(path):
    with open(path, "w") as file:
        file.write("x")
    return True

attempt("is root", lambda: os.getuid() == 0)
attempt("sees the environment", lambda: set(os.environ) - {"PWD", "LC_CTYPE", "LD_LIBRARY_PATH"})
for path in ("/proc/1/environ", "/proc/self/environ", "/etc/passwd", given["file"]):
    attempt("reads " + path, lambda: open(path, "rb").read(1) or True)
for path in ("/home", "/root", "/tmp", given["home"]):
    attempt("lists " + path, lambda: os.listdir(path) or True)
for path in ("/x", "/program.py", "/dev/x", "/usr/lib/x", given["file"]):
    attempt("writes " + path, lambda: write(path))
attempt("reaches the network", connect)
attempt("starts a process", fork)
attempt("makes a user namespace", lambda: libc.unshare(0x10000000) == 0)
attempt("outlives its guard", lambda: libc.prctl(1, 0) == 0)
print(json.dumps(worked))
"""


def checked(limits: Limits) -> Sandbox:
    """A sandbox that an honest program runs in and that none of some twenty attempts got out of.

    Raises: SandboxUnavailable, with the remedy, if there is none here or it does not hold.
    """
    sandbox = Sandbox(limits)
    honest = sandbox.run(HONEST, b"19 23")
    if (honest.status, honest.stdout) != ("ok", b"42\n"):
        raise SandboxUnavailable(f"an honest program fails in it ({honest.status}: {_last_line(honest.stderr)})")
    with tempfile.NamedTemporaryFile() as file, socket.create_server(("127.0.0.1", 0)) as server:
        Path(file.name).chmod(0o644)
        given = {"file": file.name, "port": server.getsockname()[1], "home": os.path.expanduser("~")}
        run = sandbox.run(ESCAPES, json.dumps(given).encode())
    if run.status != "ok":
        raise SandboxUnavailable(f"the attempts at getting out ended with {run.status}: {_last_line(run.stderr)}")
    worked = json.loads(run.stdout)
    if worked:
        raise SandboxUnavailable(f"it does not hold here, a program in it {', '.join(worked)}")
    return sandbox


def _last_line(stderr: bytes) -> str:
    return stderr[-400:].decode(errors="replace").strip().rpartition("\n")[2]
