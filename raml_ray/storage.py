"""Folders of runs and steps, on a local disk or any fsspec URL: what is written, and when it counts as written.

Every file appears whole or not at all. A step's `summary.json` is written last: a folder without it is unfinished.
"""

import contextlib
import io
import json
import os
import posixpath
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from raml_ray import records
from raml_ray.config import ConfigError

SUMMARY = "summary.json"
# An S3 server that is restarted is asked again for about a minute; botocore's own patience is two seconds. Read when a
# process makes its first client.
os.environ.setdefault("AWS_RETRY_MODE", "standard")
os.environ.setdefault("AWS_MAX_ATTEMPTS", "10")


def is_url(path: str) -> bool:
    """Whether the path names a remote store (`s3://…`) and not a folder of this machine."""
    return "://" in path and not path.startswith("file://")


def absolute(root: str) -> str:
    """The root as every process sees it: a URL as it is, a local path absolute."""
    return root if is_url(root) else str(Path(root.removeprefix("file://")).expanduser().resolve())


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of a store. Cheap to make and to send to another process."""

    path: str

    def _fs(self) -> fsspec.AbstractFileSystem:
        # Listings are asked for while other processes write: never answer them from a cache.
        return (
            fsspec.core.url_to_fs(self.path, use_listings_cache=False)[0]
            if is_url(self.path)
            else fsspec.filesystem("file")
        )

    def __truediv__(self, name: str) -> "Folder":
        return Folder(posixpath.join(self.path, name))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path.rstrip("/"))

    def file(self, name: str) -> str:
        return posixpath.join(self.path, name)

    def exists(self, name: str = "") -> bool:
        return bool(self._fs().exists(self.file(name) if name else self.path))

    def state(self) -> list[tuple[str, str]]:
        """Of each file below what the store says of it (size, and checksum or time), as one word."""
        fs = self._fs()
        return [(name, fs.ukey(name)) for name in sorted(fs.find(self.path))]

    def names(self, prefix: str = "", suffix: str = "") -> list[str]:
        """Names of the files directly inside, sorted."""
        fs = self._fs()
        if not fs.exists(self.path):
            return []
        found = (posixpath.basename(str(entry).rstrip("/")) for entry in fs.ls(self.path, detail=False))
        return sorted(name for name in found if name.startswith(prefix) and name.endswith(suffix))

    @contextlib.contextmanager
    def writing(self, name: str, mode: str = "wb") -> Iterator[IO[Any]]:
        """A file that appears under its name when the block ends well, and not at all when it does not."""
        fs, target = self._fs(), self.file(name)
        fs.makedirs(posixpath.dirname(target), exist_ok=True)
        if is_url(self.path):  # an object appears when its upload is committed
            upload = fs.open(target, "wb", autocommit=False)
            file = io.TextIOWrapper(upload, "utf-8") if mode == "w" else upload
            try:
                yield file
                file.close()
            except BaseException:
                upload.discard()
                raise
            upload.commit()
            return
        partial = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(partial, mode) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)

    def write_text(self, name: str, text: str) -> None:
        with self.writing(name, "w") as file:
            file.write(text)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_table(self, name: str, table: pa.Table) -> None:
        with self.writing(name) as file:
            pq.write_table(table, file, compression="zstd")

    def open(self, name: str) -> IO[bytes]:
        """The file, to be read in parts and closed."""
        file: IO[bytes] = self._fs().open(self.file(name), "rb")
        return file

    def read_bytes(self, name: str) -> bytes:
        return bytes(self._fs().cat_file(self.file(name)))

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_text(name))

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole file, or some of its columns without reading the others."""
        if columns is None:
            return pq.read_table(pa.BufferReader(self.read_bytes(name)))
        with self.open(name) as file:
            return pq.read_table(file, columns=list(columns))

    def read_tables(self, prefix: str, schema: pa.Schema) -> pa.Table:
        """All Parquet files inside whose names start so, one after the other; an empty table if there are none."""
        tables = [self.read_table(name) for name in self.names(prefix, ".parquet")]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def remove(self) -> None:
        fs = self._fs()
        if fs.exists(self.path):
            fs.rm(self.path, recursive=True)

    @contextlib.contextmanager
    def filled(self) -> Iterator[str]:
        """A local folder to write into. What it then holds is added to this folder, or is this folder."""
        if not is_url(self.path):
            yield self.path
            return
        fs = self._fs()
        with tempfile.TemporaryDirectory(prefix="raml-") as scratch:
            inside = str(Path(scratch) / self.name)
            yield inside
            for file in sorted(path for path in Path(inside).rglob("*") if path.is_file()):
                fs.put_file(str(file), self.file(str(file.relative_to(inside))))

    @contextlib.contextmanager
    def at_hand(self) -> Iterator[str]:
        """A local folder with the files of this one, for the block."""
        if not is_url(self.path):
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="raml-") as scratch:
            self.download(scratch)
            yield scratch

    def download(self, target: str) -> None:
        """Copy all files below into a local folder."""
        fs = self._fs()
        root = str(fs._strip_protocol(self.path))
        for name in sorted(fs.find(self.path)):
            local = Path(target, posixpath.relpath(name, root))
            local.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(name, str(local))


def check_reachable(root: str) -> None:
    """Raises: ConfigError if a remote root cannot be asked for anything from here."""
    if not is_url(root):
        return
    try:
        Folder(root).exists("raml")
    except Exception as error:  # each store's client has its own
        raise ConfigError(
            f"root={root} does not answer here ({type(error).__name__}: {error}): are its variables set (of S3:"
            " AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), and does the bucket exist?"
        ) from None


def run_folder(root: str, name: str) -> Folder:
    """The folder of a run, as every process sees it."""
    return Folder(absolute(root)) / name


def summary(folder: Folder) -> dict[str, Any]:
    """A finished step's summary. Raises: ConfigError if the step is not finished."""
    if not folder.exists(SUMMARY):
        raise ConfigError(f"{folder.path} has no {SUMMARY}: that step is not finished; run it first")
    value = folder.read_json(SUMMARY)
    assert isinstance(value, dict)
    return value


def trajectories(folder: Folder) -> pa.Table:
    """The trajectories that a step holds, by sample."""
    return (folder / "trajectories").read_tables("shard-", records.TRAJECTORY)


def verified(folder: Folder, sources: Sequence[Folder]) -> list[dict[str, Any]]:
    """Trajectories of the sources with the judgement that `folder` holds of each, as TRAJECTORY rows plus VERDICT columns.

    Raises: ValueError if a trajectory has no verdict (the folder judges something else), or ConfigError if two have
    the same id.
    """
    judged = (folder / "verdicts").read_tables("shard-", records.VERDICT).to_pylist()
    check_distinct([row["trajectory_id"] for row in judged], [folder.path])
    verdicts: Mapping[str, dict[str, Any]] = {row["trajectory_id"]: row for row in judged}
    rows = []
    for source in sources:
        for row in trajectories(source).to_pylist():
            verdict = verdicts.get(row["trajectory_id"])
            if verdict is None:
                raise ValueError(f"trajectory {row['trajectory_id']} of {source.path} has no verdict in {folder.path}")
            rows.append(row | verdict)
    check_distinct([row["trajectory_id"] for row in rows], [source.path for source in sources])
    return rows


def check_distinct(trajectory_ids: Sequence[str], folders: Sequence[str]) -> None:
    """Refuse trajectories that are the same sample: counted twice, they would weigh twice.

    Raises: ConfigError that names the folders and the remedy.
    """
    twice = sorted(key for key, count in Counter(trajectory_ids).items() if count > 1)
    if twice:
        raise ConfigError(
            f"{len(twice)} trajectories of {', '.join(folders)} are there more than once ({', '.join(twice[:3])}):"
            " leave out one of the steps that hold them, or generate with another seed"
        )


def questions(folder: Folder) -> dict[str, records.Question]:
    """The questions of a step that made trajectories, by id."""
    return {question.question_id: question for question in records.questions(folder.read_table("questions.parquet"))}
