"""Messages between processes through pipes: a length and JSON."""

import json
import os
import struct


def frame(message: object) -> bytes:
    """The message as it is written: its length and its JSON."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def send(descriptor: int, message: object) -> None:
    """Write one frame. Raises: BrokenPipeError if nobody reads any more."""
    rest = memoryview(frame(message))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def receive(descriptor: int) -> list[object]:
    """Read one frame. Raises: EOFError if the other end has closed."""
    (size,) = struct.unpack(">I", _exactly(descriptor, 4))
    message = json.loads(_exactly(descriptor, size))
    assert isinstance(message, list)
    return message


def _exactly(descriptor: int, size: int) -> bytes:
    chunks = []
    while size:
        chunk = os.read(descriptor, min(size, 1 << 16))
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
