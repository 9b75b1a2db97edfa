"""Rows of the paper's sets: found in a mirror whose checksums hold, as many as there have to be, in the shape that is asked."""

import hashlib
from collections.abc import Iterator
from itertools import tee

import fsspec

from raml_ray.config import ConfigError
from raml_ray.settings import DataConfig
from raml_ray.text import known_sets
from raml_ray.text.questions import Row

CHECKSUMS = "SHA256SUMS"
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.bz2", ".jsonl.xz", ".parquet", "")
CHUNK = 1 << 22


def resolved(data: DataConfig) -> DataConfig:
    """The settings with what a known set's name stands for.

    Raises: ConfigError with the nearest name, or what is to be set for it to be found.
    """
    try:
        known = known_sets.resolved(data)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    is_mirrored = data.mirror and known.path != data.path
    return known.model_copy(update={"path": mirrored(known.path)}) if is_mirrored else known


def parts_of(data: DataConfig) -> list[DataConfig]:
    """The settings of every set that is read one after the other. Raises: ConfigError with the nearest name."""
    try:
        return known_sets.parts_of(data)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def mirrored(place: str) -> str:
    """The file or folder of that name in a mirror, whichever ending it has, with the checksums of all its files held.

    Raises: ConfigError if it is not there, or a checksum is missing or another one.
    """
    fs, bare = fsspec.core.url_to_fs(place)
    found = next((bare + ending for ending in ENDINGS if fs.exists(bare + ending)), None)
    if found is None:
        folder, _, name = place.rpartition("/")
        raise ConfigError(f"data.mirror={folder!r} holds no {name}.jsonl, {name}.parquet or folder {name}")
    root = bare.rpartition("/")[0]
    sums = _checksums(fs, f"{root}/{CHECKSUMS}")
    for path in sorted(fs.find(found)):
        name = path.removeprefix(root).lstrip("/")
        with fs.open(path, "rb") as file:
            total = hashlib.sha256()
            while chunk := file.read(CHUNK):
                total.update(chunk)
        if sums.get(name) != total.hexdigest():
            why = "is not listed" if name not in sums else f"is {total.hexdigest()} now"
            raise ConfigError(
                f"{name} {why} in {root}/{CHECKSUMS}: make the file anew from its source, or the list with"
                " `sha256sum` if it is the right one"
            )
    return str(fs.unstrip_protocol(found)) if "://" in place else found


def _checksums(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, str]:
    """Name -> checksum."""
    if not fs.exists(path):
        raise ConfigError(f"{path}: no such file; write it in the mirror's folder with `sha256sum * > {CHECKSUMS}`")
    lines = [line.split(maxsplit=1) for line in fs.read_text(path).splitlines() if line.strip()]
    return {line[1].lstrip("*").removeprefix("./"): line[0].lower() for line in lines if len(line) == 2}


def as_known(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of that set in its shape; where it is known how many they are, all of them are read first.

    Raises: ConfigError if there are more or fewer.
    """
    known = known_sets.KNOWN[name]
    if known.num_rows:
        held = list(rows)
        try:
            known_sets.check_rows(name, [row.value or {} for row in held])
            answers = [(row.value or {}).get(dict(known.columns)["answer"]) for row in held]
            held = [held[place] for place in known_sets.picked(name, answers)]
        except ValueError as error:
            raise ConfigError(str(error)) from None
        rows = iter(held)
    if known.shape == "as_is":
        return rows
    ours, theirs = tee(rows)
    shaped = known_sets.shaped(name, (row.value or {} for row in theirs))
    return (Row(row.place, value) for row, value in zip(ours, shaped, strict=True))
