"""One launch of bubblewrap: reading what the program writes, and an end that leaves nothing behind."""

import contextlib
import json
import os
import resource
import select
import selectors
import signal
import subprocess
import time
from typing import IO, Literal

END_SECONDS = 30.0


class Launch:
    """One process of bubblewrap, the program's process below it, and what they write."""

    def __init__(self, process: subprocess.Popen[bytes], reports: int) -> None:
        assert process.stdout is not None and process.stderr is not None
        self._process = process
        self._reports = reports
        self._told = b""
        self._streams: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
        for descriptor in (reports, *(stream.fileno() for stream in self._streams)):
            os.set_blocking(descriptor, False)
        self._bubblewrap = os.pidfd_open(process.pid)
        self._program: int | None = None
        """A handle of the program's process; unlike its number, it can never come to mean another one."""

    @property
    def output(self) -> tuple[bytes, bytes]:
        """Standard output and standard error."""
        stdout, stderr = self._streams.values()
        return bytes(stdout), bytes(stderr)

    def read(self, wall_seconds: float, most_bytes: int) -> Literal["", "wall", "output"]:
        """Take in what is written until all has ended, or the limit that was passed."""
        deadline = time.monotonic() + wall_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._bubblewrap, selectors.EVENT_READ)
            selector.register(self._reports, selectors.EVENT_READ)
            for stream in self._streams:
                selector.register(stream, selectors.EVENT_READ)
            has_ended = False
            while not has_ended:
                left = deadline - time.monotonic()
                if left <= 0:
                    return "wall"
                ready = {key.fileobj for key, _ in selector.select(left)}
                has_ended = self._bubblewrap in ready
                if self._reports in ready and not self._look():
                    selector.unregister(self._reports)
                for stream in self._streams.keys() & (self._streams if has_ended else ready):
                    if not self._take(stream, most_bytes) and not has_ended:
                        selector.unregister(stream)
                if sum(map(len, self._streams.values())) > most_bytes:
                    return "output"
        return ""

    def _take(self, stream: IO[bytes], most_bytes: int) -> bool:
        """Add what the pipe holds, little more than is allowed; false at its end."""
        taken = self._streams[stream]
        with contextlib.suppress(BlockingIOError):
            while len(taken) <= most_bytes:
                chunk = os.read(stream.fileno(), 1 << 16)
                if not chunk:
                    return False
                taken += chunk
        return True

    def _look(self) -> bool:
        """Read bubblewrap's reports, and take hold of the program's process; false if there are none (any more)."""
        try:
            told = os.read(self._reports, 1 << 16)
        except BlockingIOError:
            return False
        self._told += told
        child = self._reported("child-pid")
        if self._program is None and child is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                self._program = os.pidfd_open(child)
        return bool(told)

    def _reported(self, name: str) -> int | None:
        lines = self._told.split(b"\n")[:-1]
        return next((int(report[name]) for report in map(json.loads, lines) if name in report), None)

    def end(self, kill: bool) -> tuple[int | None, resource.struct_rusage]:
        """The program's exit code (None if none is known) and what was used, once nothing is left of it.

        Process 1 of a process namespace ends only after all others in it have.
        Raises: RuntimeError if a process is left, which the kernel rules out.
        """
        try:
            self._look()
            if kill and self._program is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._program, signal.SIGKILL)
            if (kill and self._program is None) or not _has_ended(self._bubblewrap):
                self._process.kill()
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            if self._program is not None and not _has_ended(self._program):
                raise RuntimeError(f"process {self._reported('child-pid')} of a sandbox outlived it")
            while self._look():
                pass
            return self._reported("exit-code"), usage
        finally:
            os.close(self._bubblewrap)
            if self._program is not None:
                os.close(self._program)
            for stream in self._streams:
                stream.close()


def _has_ended(process: int) -> bool:
    """Whether the process of that handle ends within END_SECONDS."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(END_SECONDS * 1000))
