"""What runs inside the sandbox, before and around a program: limits on itself, then the program, in the same process.

It is handed to the sandbox's Python as text and imports the standard library alone. Once the program runs, nothing in
here is trusted: it may be rewritten by the program, and it knows no expected output.
Arguments: kind (`stdin` or `function`), CPU time in seconds, memory in bytes, descriptors, threads, path of the program.
"""

import _sitebuiltins  # type: ignore[import-not-found]
import builtins
import os
import resource
import sys

STACK_BYTES = 64 * 2**20
RECURSION = 50_000
PRELUDE = """
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string
from typing import *
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from builtins import *
"""
"""What solutions of LeetCode's form take for granted."""


def limit(cpu_seconds: int, memory_bytes: int, descriptors: int, threads: int) -> None:
    """Set this process' limits, which it cannot raise again."""
    for name, value in (
        ("CPU", cpu_seconds),
        ("AS", memory_bytes),
        ("FSIZE", 0),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("NOFILE", descriptors),
        ("NPROC", threads),
        ("STACK", STACK_BYTES),
    ):
        number = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(number)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def load(path: str, name: str, prelude: str = "") -> dict[str, object]:
    """Run the program as a module of that name, and return its names."""
    with open(path, "rb") as file:
        source = file.read()
    module = type(sys)(name)
    module.__file__ = path
    sys.modules[name] = module
    exec(prelude, module.__dict__)
    exec(compile(source, path, "exec"), module.__dict__)
    return module.__dict__


def call(path: str) -> None:
    """Call the function that standard input names, and write what it returns as JSON; the program's prints go astray."""
    import json

    replies = os.dup(1)
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    sys.setrecursionlimit(RECURSION)
    names = load(path, "solution", PRELUDE)
    name = request["name"]
    function = names[name] if name in names else getattr(names["Solution"](), name)  # type: ignore[operator]
    reply = json.dumps(function(*request["args"]), allow_nan=False)  # type: ignore[operator]
    with open(replies, "w") as file:
        file.write(reply)


def main() -> None:
    kind, *numbers, path = sys.argv[1:]
    limit(*map(int, numbers))
    sys.argv = [path]
    for name in ("exit", "quit"):  # `site` would have set them
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))
    if kind == "function":
        call(path)
    else:
        load(path, "__main__")


if __name__ == "__main__":
    main()
