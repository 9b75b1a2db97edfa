"""A real S3 server of one process, SeaweedFS, whose objects lie on the disk: they are there again when it is."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import s3fs
from botocore.exceptions import BotoCoreError

BUCKET = "runs"
STARTS_S = 60.0


class ObjectStore:
    """The server, and the variables with which a client finds it and is let in."""

    def __init__(self, folder: Path, key: str, secret: str) -> None:
        self._folder = folder
        self._ports = [_free_port() for _ in range(7)]
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        identity = {"name": "tests", "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "objects").mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "filer.port")
        words = [f"-{name}={port}" for name, port in zip(names, self._ports, strict=False)]
        words += [f"-volume.port.grpc={self._ports[6]}", f"-filer.port.grpc={_free_port()}"]
        words += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={self._folder}/s3.json"]
        words += [f"-dir={self._folder}/objects", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
        words += ["-volume.max=50", "-master.volumePreallocate=false"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("weed")), "server", *words],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + STARTS_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, f"no answer: {(self._folder / 'server.log').read_text()[-3000:]}"
            time.sleep(0.2)

    def _answers(self) -> bool:
        """Whether it writes: it listens before it has found its disk."""
        fs = s3fs.S3FileSystem(
            key=self.environment["AWS_ACCESS_KEY_ID"],
            secret=self.environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.url,
            skip_instance_cache=True,
            config_kwargs={"retries": {"max_attempts": 1}},
        )
        fs.retries = 1
        try:
            if not fs.exists(BUCKET):
                fs.mkdir(BUCKET)
            fs.pipe_file(f"{BUCKET}/.there", b"")
        except (OSError, BotoCoreError):
            return False
        return True

    def kill(self) -> None:
        """At once, in the middle of whatever it does."""
        if self._process:
            self._process.kill()
            self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(folder: Path, key: str = "key-of-tests", secret: str = "secret-of-tests") -> Iterator[ObjectStore]:
    """A server with the bucket BUCKET, for the block."""
    store = ObjectStore(folder, key, secret)
    try:
        store.start()
        yield store
    finally:
        store.kill()
