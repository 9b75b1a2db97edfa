"""From verified trajectories to the examples of SFT.   trajectories, verdicts -> examples/

What is chosen is decided by key columns alone; texts are read, encoded and written shard by shard, in tasks.
"""

import logging
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raml_ray import records, storage
from raml_ray.config import ConfigError
from raml_ray.records import Question, Verdict
from raml_ray.settings import SftConfig
from raml_ray.stages import example_shards
from raml_ray.stages.context import Context, Counts
from raml_ray.storage import Folder
from raml_ray.text import diversity, support

logger = logging.getLogger(__name__)

EXAMPLES = "examples"
KEYS = ("trajectory_id", "question_id", "sample_index", "policy_id")


class Row(NamedTuple):
    """What is known of a judged trajectory without its text."""

    trajectory_id: str
    question_id: str
    sample_index: int
    policy_id: str
    is_correct: bool
    shard: tuple[Folder, str]
    num_tokens: int | None
    """Of its policy; none where only the text is known."""
    num_chars: int


def write(context: Context) -> tuple[Counts, dict[str, Any]]:
    """Write the step's examples/: the support set of every question, in the student's tokens, shuffled by seed.

    A row in is a judged trajectory; filtered are those of other policies, wrong ones, and correct ones beyond the
    support set; rejected are chosen ones that sft.max_length has no room for. After a kill the set is written anew.

    Raises: ConfigError if nothing is left to train on, or sets would not match as sft.match_length promises.
    """
    settings = context.config.sft
    rows, questions = _rows(context), _questions(context)
    groups = _grouped([row for row in rows if not settings.policies or _name(row.policy_id) in settings.policies])
    most = example_shards.num_tasks(len(rows), settings.examples_per_shard)
    labels = [[row.is_correct for row in group] for group in groups]
    lengths, unit = _lengths(groups)
    seed = records.seed_of(context.config.seed, "sft", "support")
    chosen = support.choose(
        labels, settings, seed, lengths, lambda keys: _sketches({key: groups[key[0]][key[1]] for key in keys}, most)
    )
    if not chosen:
        raise _nothing(context, rows)
    positions: dict[support.Key, list[int]] = defaultdict(list)
    for position, key in enumerate(chosen):
        positions[key].append(position)
    index, num_encoded, rejected = example_shards.write(
        context.folder,
        context.folder / EXAMPLES,
        list(_sources({groups[q][t]: places for (q, t), places in positions.items()}, questions)),
        example_shards.Encoding(
            context.policy_path, context.config.prompt, settings.max_length, settings.examples_per_shard
        ),
        most,
    )
    context.reject(rejected, "trajectories")
    _check_room(len(index.lengths), len(rejected), len(positions), settings)
    counts = Counts(_num_trajectories(context), num_encoded, len(rejected), len(rows) - len(positions))
    figures: dict[str, Any] = {
        "examples": len(index.lengths),
        "distinct_trajectories": num_encoded,
        "questions": sum(map(any, labels)),
        "questions_kept": len({question for question, _ in positions}),
        "mean_tokens": float(index.lengths.mean()),
        "median_tokens": float(np.median(index.lengths)),
    }
    if settings.length != "any" or settings.match_length:
        kept = {question for question, _ in positions}
        figures["lengths"] = {"unit": unit} | _thirds(labels, lengths, kept, settings.pad_to)
    return counts, figures


def _name(policy_id: str) -> str:
    return policy_id.partition("@")[0]


def _nothing(context: Context, rows: Sequence[Row]) -> ConfigError:
    settings, names = context.config.sft, sorted({row.policy_id for row in rows})
    start, there = f"step {context.step.name!r}: none of {len(rows)} judged trajectories", ", ".join(names) or "none"
    if settings.length != "any" or settings.match_length:
        return ConfigError(
            f"{start} is left by sft.length={settings.length}, sft.match_length={settings.match_length} and"
            f" sft.policies={settings.policies} (there are: {there}): questions with three correct trajectories have one"
            " of each length; generate more, or set these"
        )
    return ConfigError(
        f"{start} is correct and of sft.policies={settings.policies} (there are: {there}); generate more, or set"
        " sft.policies"
    )


def _check_room(num_examples: int, num_rejected: int, num_chosen: int, settings: SftConfig) -> None:
    if not num_examples:
        raise ConfigError(
            f"sft.max_length={settings.max_length} has room for none of {num_chosen} trajectories: raise it"
        )
    if settings.match_length and num_rejected:
        raise ConfigError(
            f"sft.max_length={settings.max_length} has no room for {num_rejected} of {num_chosen} trajectories, so that"
            " sets of other sft.length would not match this one: raise it, or set sft.match_length=false"
        )


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """By question, in sample order."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.question_id].append(row)
    return [sorted(group, key=lambda row: row.sample_index) for group in groups.values()]


def _lengths(groups: Sequence[Sequence[Row]]) -> tuple[list[list[int]], str]:
    """How long trajectories are, in the tokens of their policies where all have some, else in characters."""
    if all(row.num_tokens is not None for group in groups for row in group):
        return [[row.num_tokens or 0 for row in group] for group in groups], "tokens"
    return [[row.num_chars for row in group] for group in groups], "characters"


def _thirds(
    labels: Sequence[Sequence[bool]], lengths: Sequence[Sequence[int]], kept: set[int], pad_to: int
) -> dict[str, dict[str, float]]:
    """Of the kept questions' correct trajectories, in each third: how many, their mean and their median length."""
    found: dict[str, list[int]] = {name: [] for name in support.LENGTHS}
    for question, indices in enumerate(support.correct(labels, pad_to)):
        if question in kept:
            for name, third in zip(found, support.thirds(indices, lengths[question]), strict=True):
                found[name] += [lengths[question][index] for index in third]
    return {
        name: {"trajectories": len(values), "mean": statistics.fmean(values), "median": statistics.median(values)}
        for name, values in found.items()
        if values
    }


def _rows(context: Context) -> list[Row]:
    """The keys of every judged trajectory that the step takes.

    Raises: ValueError if a trajectory has no verdict; ConfigError if one is there twice.
    """
    settings = context.config.sft
    is_measured = settings.length != "any" or settings.match_length or settings.selection in ("shortest", "longest")
    rows: list[Row] = []
    paths: list[str] = []
    for folder, sources in judged_folders(context):
        verdicts = _verdicts(folder)
        paths += [source.path for source in sources]
        shards = [
            (source / "trajectories", name)
            for source in sources
            for name in (source / "trajectories").names("shard-", ".parquet")
        ]
        most = example_shards.num_tasks(len(verdicts), settings.examples_per_shard)
        for shard, table in zip(
            shards, example_shards.over(_keys, [(*shard, is_measured) for shard in shards], most), strict=True
        ):
            for key, question, sample, policy, tokens, chars in zip(*table.to_pydict().values(), strict=True):
                if key not in verdicts:
                    raise ValueError(f"trajectory {key} of {shard[0].path} has no verdict in {folder.path}")
                names = sys.intern(question), sample, sys.intern(policy)
                rows.append(Row(key, *names, verdicts[key], shard, tokens, chars))
    storage.check_distinct([row.trajectory_id for row in rows], paths)
    return rows


def _verdicts(folder: Folder) -> dict[str, bool]:
    """Trajectory -> whether the folder's verdict of it is correct."""
    found: dict[str, bool] = {}
    for name in (folder / "verdicts").names("shard-", ".parquet"):
        table = (folder / "verdicts").read_table(name, ["trajectory_id", "verdict"])
        keys = table["trajectory_id"].to_pylist()
        storage.check_distinct([*keys, *(key for key in keys if key in found)], [folder.path])
        found |= zip(keys, (Verdict(value) is Verdict.CORRECT for value in table["verdict"].to_pylist()), strict=True)
    return found


def _keys(folder: Folder, name: str, is_measured: bool) -> pa.Table:
    """A shard's key columns and, if they are to be measured, its trajectories' tokens and characters."""
    if not is_measured:
        table = folder.read_table(name, list(KEYS))
        return table.append_column("tokens", pa.nulls(table.num_rows, pa.int32())).append_column(
            "chars", pa.array(np.zeros(table.num_rows, np.int32))
        )
    table = folder.read_table(name, [*KEYS, "token_ids", "text"])
    tokens, chars = pc.list_value_length(table["token_ids"]), pc.utf8_length(table["text"])
    return table.select(list(KEYS)).append_column("tokens", tokens).append_column("chars", chars)


def _sources(chosen: Mapping[Row, list[int]], questions: Mapping[str, Question]) -> Iterator[example_shards.Source]:
    """The chosen trajectories, shard by shard, in the order of the shards' paths."""
    by_shard: dict[tuple[Folder, str], list[Row]] = defaultdict(list)
    for row in chosen:
        by_shard[row.shard].append(row)
    for (folder, name), rows in sorted(by_shard.items(), key=lambda entry: entry[0][0].file(entry[0][1])):
        yield example_shards.Source(
            folder,
            name,
            {row.trajectory_id: chosen[row] for row in rows},
            {row.question_id: questions[row.question_id].problem for row in rows},
        )


def _sketches(rows: Mapping[support.Key, Row], most: int) -> dict[support.Key, np.ndarray]:
    """What `diversity` keeps of these trajectories' texts: 1 KiB of each."""
    by_shard: dict[tuple[Folder, str], list[str]] = defaultdict(list)
    for row in rows.values():
        by_shard[row.shard].append(row.trajectory_id)
    found: dict[str, np.ndarray] = {}
    for part in example_shards.over(_sketch, [(*shard, keys) for shard, keys in by_shard.items()], most):
        found |= part
    return {key: found[row.trajectory_id] for key, row in rows.items()}


def _sketch(folder: Folder, name: str, trajectory_ids: Sequence[str]) -> dict[str, np.ndarray]:
    table = folder.read_table(name, ["trajectory_id", "text"])
    wanted = table.filter(pc.is_in(table["trajectory_id"], pa.array(trajectory_ids, pa.string())))
    return {
        key.as_py(): diversity.sketch(text.as_py())
        for key, text in zip(wanted["trajectory_id"], wanted["text"], strict=True)
    }


def judged(context: Context) -> tuple[list[dict[str, Any]], dict[str, Question]]:
    """Every judged trajectory that the step takes, with its text, and every question, by id.

    Raises: ConfigError if a trajectory is there twice, or two questions share an id.
    """
    rows: list[dict[str, Any]] = []
    paths: list[str] = []
    for folder, sources in judged_folders(context):
        rows += storage.verified(folder, sources)
        paths += [source.path for source in sources]
    storage.check_distinct([row["trajectory_id"] for row in rows], paths)
    return rows, _questions(context)


def _questions(context: Context) -> dict[str, Question]:
    """Every question of the step's data, by id. Raises: ConfigError if two share one."""
    questions: dict[str, Question] = {}
    paths: list[str] = []
    for source in (source for _, sources in judged_folders(context) for source in sources):
        paths.append(source.path)
        for key, question in storage.questions(source).items():
            other = questions.setdefault(key, question)
            if (other.problem, other.answer) != (question.problem, question.answer):
                raise ConfigError(
                    f"question {key!r} of {source.path} is another one than that of an earlier step in"
                    f" {', '.join(paths)}: give the question sets distinct ids"
                )
    return questions


def _num_trajectories(context: Context) -> int:
    """Of all sources, as their own summaries count them."""
    sources = [source for _, folders in judged_folders(context) for source in folders]
    return sum(int(storage.summary(source)["counts"]["rows_out"]) for source in sources)


def judged_folders(context: Context) -> list[tuple[Folder, list[Folder]]]:
    """(folder of the verdicts, folders of their trajectories) of every step that this one takes."""
    found = []
    for folder in context.sources:
        judged_steps = storage.summary(folder)["data"]
        found.append((folder, [context.run / name for name in judged_steps] if judged_steps else [folder]))
    return found
