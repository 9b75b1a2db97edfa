"""Where questions come from: the miniature, jsonl and Parquet files or folders on any store, Hugging Face data sets."""

import json
import logging
from collections.abc import Iterator
from itertools import chain, islice

import fsspec
import pyarrow.parquet as pq

from raml_ray import records
from raml_ray.config import Config, ConfigError
from raml_ray.records import Question, Rejected
from raml_ray.settings import DataConfig
from raml_ray.stages import judging
from raml_ray.text import questions as reading
from raml_ray.text.questions import Row

logger = logging.getLogger(__name__)

MINIATURE = "miniature:"
HUGGING_FACE = "hf:"
ROWS_LOOKED_AT = 1000
"""A column that none of so many first rows has is a wrong setting and not a flaw of rows."""


def rows(data: DataConfig) -> Iterator[Row]:
    """Every row of the source, with its place. Raises: ConfigError if there is no such source or it is empty."""
    if data.path.startswith(HUGGING_FACE):
        found = _hugging_face(data)
    else:
        found = chain.from_iterable(_file_rows(name) for name in _files(data.path))
    first = list(islice(found, ROWS_LOOKED_AT))
    if not first:
        raise ConfigError(f"data.path={data.path!r} holds no row: give a file with at least one question")
    try:
        reading.check_columns([row.value for row in first if row.value is not None], data)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    yield from first
    yield from found


def _files(path: str) -> list[str]:
    if not path:
        raise ConfigError(
            "data.path is empty: name a question set (miniature:train, a jsonl or Parquet path, hf:OWNER/NAME)"
        )
    fs, bare = fsspec.core.url_to_fs(path)
    if not fs.exists(bare):
        raise ConfigError(f"data.path={path!r}: no such file or folder")
    if not fs.isdir(bare):
        return [fs.unstrip_protocol(bare)]
    found = [fs.unstrip_protocol(name) for name in sorted(fs.find(bare)) if name.endswith((".jsonl", ".parquet"))]
    if not found:
        raise ConfigError(f"data.path={path!r} holds no .jsonl and no .parquet file")
    return found


def _file_rows(url: str) -> Iterator[Row]:
    name = url.rsplit("/", 1)[-1]
    if url.endswith(".parquet"):
        with fsspec.open(url, "rb") as file:
            number = 0
            for batch in pq.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    yield Row(f"{name}:{number}", row)
                    number += 1
    elif url.endswith((".jsonl", ".json")):
        with fsspec.open(url, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Row(f"{name}:{number}", _json_record(line))
    else:
        raise ConfigError(f"data.path: {url} is neither .jsonl nor .parquet; convert it to one of them")


def _json_record(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except ValueError:  # of JSON and of UTF-8 alike
        return None
    return value if isinstance(value, dict) else None


def _hugging_face(data: DataConfig) -> Iterator[Row]:
    from datasets import load_dataset

    name = data.path.removeprefix(HUGGING_FACE)
    stream = load_dataset(name, data.subset or None, split=data.split, revision=data.revision or None, streaming=True)
    for number, row in enumerate(stream):
        yield Row(f"{name}:{number}", row)


def questions(config: Config, data: DataConfig, *, stage: str) -> tuple[list[Question], list[Rejected]]:
    """The source's questions whose gold answer the judge can read, and the rows set aside.

    Raises: ConfigError if no question is left, or more rows than data.max_rejected_fraction had to be set aside.
    """
    if data.path.startswith(MINIATURE):
        from raml_ray.miniature import task

        found = task.questions(data.path.removeprefix(MINIATURE), config.miniature, seed=config.seed)
        return found[: data.limit or None], []
    found, rejected = reading.read(rows(data), data, stage=stage)
    found, bad_gold = _readable(found, config, stage)
    rejected += bad_gold
    total = len(found) + len(rejected)
    reasons = sorted({row.reason for row in rejected})
    if not found:
        raise ConfigError(
            f"data.path={data.path!r}: none of {total} rows is a question with an answer ({', '.join(reasons)})"
        )
    if len(rejected) > data.max_rejected_fraction * total:
        where = "; ".join(f"{row.row_key} {row.reason}" for row in rejected[:5])
        raise ConfigError(
            f"data.path={data.path!r}: {len(rejected)} of {total} rows cannot be used ({where}), more than"
            f" data.max_rejected_fraction={data.max_rejected_fraction} allows: mend the file or raise the setting"
        )
    if rejected:
        logger.warning("%s: %d of %d rows set aside (%s)", data.path, len(rejected), total, ", ".join(reasons))
    return found, rejected


def _readable(found: list[Question], config: Config, stage: str) -> tuple[list[Question], list[Rejected]]:
    """A gold answer that does not even equal itself would make every trajectory wrong."""
    with judging.pool(config.verify) as pool:
        judgements = pool.judge([(question.answer, f"\\boxed{{{question.answer}}}") for question in found])
    good, bad = [], []
    for question, judgement in zip(found, judgements, strict=True):
        if judgement.verdict is records.Verdict.CORRECT:
            good.append(question)
        else:
            bad.append(records.rejected(question.question_id, stage, f"bad_gold:{judgement.reason}", question))
    return good, bad
