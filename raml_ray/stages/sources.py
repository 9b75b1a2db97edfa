"""Where questions come from: the miniature, jsonl and Parquet files or folders on any store, Hugging Face data sets."""

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from raml_ray import records
from raml_ray.config import Config, ConfigError
from raml_ray.records import Question, Rejected
from raml_ray.settings import DataConfig
from raml_ray.stages import judging, known_rows
from raml_ray.stages.context import Context
from raml_ray.text import known_sets
from raml_ray.text import questions as reading
from raml_ray.text.questions import Item, Row

logger = logging.getLogger(__name__)

MINIATURE = "miniature:"
HUGGING_FACE = "hf:"
JSONL = tuple(f".jsonl{packed}" for packed in ("", ".gz", ".bz2", ".xz"))
ROWS_LOOKED_AT = 1000
"""A column that none of so many first rows has is a wrong setting and not a flaw of rows."""
BATCH_BYTES = 32 * 2**20
"""Of a Parquet file so much is held at once, uncompressed."""
GOLDS_AT_ONCE = 1000


def rows(data: DataConfig, *, with_texts: bool = True) -> Iterator[Row]:
    """Every row of the source, with its place; without the columns of data.texts where the format can leave them out.

    Raises: ConfigError if there is no such source, it is empty, or a column that is mapped is in none of its rows.
    """
    for part in known_rows.parts_of(data):
        name, part = known_sets.name_of(part.path), known_rows.resolved(part)
        wanted = reading.columns(part, with_texts=with_texts)
        found = _rows(part, set(wanted.values()))
        yield from _seen(known_rows.as_known(name, found) if name else found, part, wanted)


def _rows(data: DataConfig, wanted: set[str]) -> Iterator[Row]:
    """The rows as they stand there, if that can be with these columns alone."""
    if data.path.startswith(HUGGING_FACE):
        return _hugging_face(data, wanted)
    return chain.from_iterable(_file_rows(url, place, wanted) for url, place in _files(data.path).items())


def _seen(found: Iterator[Row], data: DataConfig, wanted: Mapping[str, str]) -> Iterator[Row]:
    """The rows, of which each column was seen in one."""
    first, missing = _until_seen(found, wanted)
    if not first:
        raise ConfigError(f"data.path={data.path!r} holds no row: give a file with at least one question")
    there = sorted({name for row in first for name in row.value or ()})
    if missing and there:
        setting, column = next(iter(missing.items()))
        raise ConfigError(f"{setting}={column!r}: {data.path} has no such column; it has {there}")
    yield from first
    yield from found


def local_path(path: str) -> str:
    """The folder of this machine that `hf:FOLDER` reads; any other path as it is."""
    folder = path.removeprefix(HUGGING_FACE)
    return folder if path.startswith(HUGGING_FACE) and os.path.isdir(folder) else path


def _until_seen(found: Iterator[Row], wanted: Mapping[str, str]) -> tuple[list[Row], dict[str, str]]:
    """The first rows, as many as it takes to see each column (a row may hold much), and the settings of those not seen."""
    first: list[Row] = []
    missing = dict(wanted)
    for row in islice(found, ROWS_LOOKED_AT):
        first.append(row)
        missing = {name: column for name, column in missing.items() if not reading.has(row.value or {}, column)}
        if not missing:
            break
    return first, missing


def _files(path: str) -> dict[str, str]:
    """URL -> what the place of its rows begins with."""
    if not path:
        raise ConfigError(
            "data.path is empty: name a question set (miniature:train, a jsonl or Parquet path, hf:OWNER/NAME)"
        )
    fs, bare = fsspec.core.url_to_fs(path)
    if not fs.exists(bare):
        raise ConfigError(f"data.path={path!r}: no such file or folder")
    if not fs.isdir(bare):
        return {fs.unstrip_protocol(bare): bare.rsplit("/", 1)[-1]}
    found = sorted(name for name in fs.find(bare) if name.endswith((*JSONL, ".parquet")))
    if not found:
        raise ConfigError(f"data.path={path!r} holds no .jsonl and no .parquet file")
    return {fs.unstrip_protocol(name): name.removeprefix(bare).lstrip("/") for name in found}


def _file_rows(url: str, place: str, wanted: set[str]) -> Iterator[Row]:
    if url.endswith(".parquet"):
        with fsspec.open(url, "rb") as file:
            for number, row in enumerate(_parquet_rows(file, url, wanted)):
                yield Row(f"{place}:{number}", row)
    elif url.endswith((*JSONL, ".json")):
        with fsspec.open(url, "rb", compression="infer") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Row(f"{place}:{number}", _json_record(line))
    else:
        raise ConfigError(f"data.path: {url} is neither .jsonl nor .parquet; convert it to one of them")


def _json_record(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # of JSON and of UTF-8 alike, and of brackets without end
        return None
    return value if isinstance(value, dict) else None


def _parquet_rows(file: Any, url: str, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """The wanted columns (all, if one is not there) of a few rows after the other, however large a row is."""
    try:
        # Without pre-buffering, which would keep every row group that was read.
        table = pq.ParquetFile(file, pre_buffer=False, arrow_extensions_enabled=False)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"data.path: {url} is no Parquet file: {error}") from None
    refused = [field.name for field in table.schema_arrow if _is_extension(field)]
    if refused:
        raise ConfigError(
            f"data.path: {url} holds Arrow extension types (columns {refused}), which may bring code of their own: write"
            " the file anew with plain columns (text, numbers, lists, records)"
        )
    groups = [table.metadata.row_group(index) for index in range(table.metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    size = max(1, min(GOLDS_AT_ONCE, int(BATCH_BYTES / max(largest, 1))))
    columns = _top_level(wanted, table.schema_arrow.names)
    for batch in table.iter_batches(batch_size=size, columns=columns):
        yield from batch.to_pylist()


def _is_extension(field: pa.Field) -> bool:
    """Whether the column, or one inside of it, is of an extension type, known here or not."""
    named = field.metadata and b"ARROW:extension:name" in field.metadata
    inside = (field.type.field(index) for index in range(field.type.num_fields))
    return bool(named) or isinstance(field.type, pa.BaseExtensionType) or any(map(_is_extension, inside))


def _top_level(wanted: set[str], there: list[str]) -> list[str] | None:
    """The columns that hold what is wanted (dots descend into records); None, which is all, if one is not there."""
    found = {name if name in there else name.split(".")[0] for name in wanted}
    return sorted(found) if found <= set(there) else None


def _hugging_face(data: DataConfig, wanted: set[str]) -> Iterator[Row]:
    """Rows of a data set on the hub, or of a local folder that `datasets` can read, as they stream in."""
    from datasets import load_dataset

    name = data.path.removeprefix(HUGGING_FACE)
    try:
        stream = load_dataset(
            name, data.subset or None, split=data.split, revision=data.revision or None, streaming=True
        )
        columns = _top_level(wanted, stream.column_names or [])
        found = iter(stream.select_columns(columns) if columns else stream)
        first = list(islice(found, 1))
    except Exception as error:  # of the hub, of the network, of the file's format: each has errors of its own
        raise ConfigError(
            f"data.path={data.path!r} (data.subset={data.subset!r}, data.split={data.split!r},"
            f" data.revision={data.revision!r}) cannot be read: {type(error).__name__}: {error}. Without a network, set"
            " HF_HOME to a cache that holds it, or data.path to a folder with its Parquet files"
        ) from error
    for number, row in enumerate(chain(first, found)):
        yield Row(f"{name}:{number}", row)


class Found(NamedTuple):
    """What a source gave; a row's place is the key of what was not taken."""

    questions: list[Question]
    rejected: list[Rejected]
    filtered: list[Rejected]
    """Turned down by data.filters."""

    def keep(self, context: Context) -> None:
        """Write what was not taken under the step's rejected/."""
        context.reject(self.rejected, "questions")
        context.reject(self.filtered, "filtered-questions")

    @property
    def num_rows(self) -> int:
        return len(self.questions) + len(self.rejected) + len(self.filtered)

    def figures(self) -> dict[str, Any]:
        """For the summary: how many of each, and why they were turned down."""
        reasons = Counter(row.reason for row in self.filtered)
        return {
            "questions": len(self.questions),
            "questions_rejected": len(self.rejected),
            "questions_filtered": len(self.filtered),
            "filtered_reasons": dict(sorted(reasons.items())),
        }


def questions(config: Config, data: DataConfig, *, stage: str) -> Found:
    """The source's questions whose gold answer can be judged, the rows set aside, and those that a filter turned down.

    Reading ends with question number data.limit, which counts what is left after all of that.

    Raises: ConfigError if no question is left, or more rows than data.max_rejected_fraction had to be set aside.
    """
    asked, data = data, known_rows.resolved(data)
    found = Found([], [], [])
    with contextlib.closing(_items(config, asked, data, stage)) as items:
        for _, item in items:
            if isinstance(item, Question):
                found.questions.append(item)
                if len(found.questions) == data.limit:
                    break
            else:
                (found.filtered if item.stage == reading.FILTER else found.rejected).append(item)
    _check(found, data)
    return found


def _check(found: Found, data: DataConfig) -> None:
    total, rejected = found.num_rows, found.rejected
    reasons = ", ".join(sorted({row.reason for row in (*rejected, *found.filtered)}))
    if not found.questions:
        raise ConfigError(f"data.path={data.path!r}: none of {total} rows is a question with an answer ({reasons})")
    if len(rejected) > data.max_rejected_fraction * total:
        where = "; ".join(f"{row.row_key} {row.reason}" for row in rejected[:5])
        raise ConfigError(
            f"data.path={data.path!r}: {len(rejected)} of {total} rows cannot be used ({where}), more than"
            f" data.max_rejected_fraction={data.max_rejected_fraction} allows: mend the file or raise the setting"
        )
    if reasons:
        counts = f"{len(rejected)} of {total} rows set aside, {len(found.filtered)} filtered"
        logger.warning("%s: %s (%s)", data.path, counts, reasons)


def _items(config: Config, asked: DataConfig, data: DataConfig, stage: str) -> Generator[Item, None, None]:
    if not data.path.startswith(MINIATURE):
        yield from _judged(reading.read(rows(asked, with_texts=False), data, stage=stage), config, data, stage)
        return
    from raml_ray.miniature import task

    for question in task.questions(data.path.removeprefix(MINIATURE), config.miniature, seed=config.seed):
        place = question.question_id
        yield Item(place, reading.filtered(place, question, data) or question)


def _judged(items: Iterable[Item], config: Config, data: DataConfig, stage: str) -> Iterator[Item]:
    """The items with every mathematical answer tried: one that does not even equal itself would make every trajectory wrong.

    The strict judge says so, whichever is to judge: that the paper's does not know some answers again is its known
    error, and no flaw of the answer. What the judge of the run cannot decide at all is set aside, too.
    """
    if data.answers != "math":  # what these are, was checked as they were read
        yield from items
        return
    following = iter(items)
    strict = config.verify.model_copy(update={"judge": "strict"})
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(judging.pool(strict, data))
        other = None if config.verify == strict else stack.enter_context(judging.pool(config.verify, data))
        while batch := list(islice(following, min(GOLDS_AT_ONCE, data.limit or GOLDS_AT_ONCE))):
            asked = {place: found for place, found in batch if isinstance(found, Question)}
            pairs = [(question.answer, f"\\boxed{{{question.answer}}}") for question in asked.values()]
            reasons = {
                place: judgement.reason
                for place, judgement in zip(asked, pool.judge(pairs), strict=True)
                if judgement.verdict is not records.Verdict.CORRECT
            }
            for place, judgement in zip(asked, other.judge(pairs) if other else (), strict=False):
                if not judgement.verdict.is_judgement:
                    reasons.setdefault(place, judgement.reason)
            for place, found in batch:
                if place in reasons:
                    reason = f"{reading.BAD_GOLD}{reasons[place]}"
                    yield Item(place, reading.set_aside(place, reason, found, data, stage=stage))
                else:
                    yield Item(place, found)
