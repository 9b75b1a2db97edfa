"""Whether the Ray of this container can be reached: every raylet in it names the head it belongs to, which must answer.

A container in which no Ray runs (yet) is healthy. A connection is enough to see, so that no token is needed here.
"""

import re
import socket
import sys
from pathlib import Path

RAYLET = re.compile(rb"/raylet\0.*--gcs-address=(?P<host>[^\0]+):(?P<port>\d+)\0", re.DOTALL)


def heads(proc: Path) -> set[tuple[str, int]]:
    """Host and port of the head of every raylet among the processes."""
    found = set()
    for file in proc.glob("[0-9]*/cmdline"):
        try:
            raylet = RAYLET.search(file.read_bytes())
        except OSError:  # it ended meanwhile, or is another user's
            continue
        if raylet:
            found.add((raylet["host"].decode().strip("[]"), int(raylet["port"])))
    return found


def main(proc: Path = Path("/proc")) -> int:
    """0 if every head takes a connection within 3 s, else 1."""
    for host, port in heads(proc):
        try:
            socket.create_connection((host, port), timeout=3).close()
        except OSError as error:
            sys.stderr.write(f"the head at {host}:{port} does not answer: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
