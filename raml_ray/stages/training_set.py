"""From verified trajectories to the examples of SFT.   trajectories, verdicts -> examples/

What is chosen is decided by key columns and by how long texts are for the student; texts are read, encoded and written
shard by shard, in tasks.
"""

import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from raml_ray import records, storage
from raml_ray.cluster import Patience
from raml_ray.config import ConfigError
from raml_ray.records import Question, Rejected, Verdict
from raml_ray.stages import example_shards
from raml_ray.stages.context import Context, Counts
from raml_ray.storage import Folder
from raml_ray.text import diversity, support

EXAMPLES = "examples"
KEYS = ("trajectory_id", "question_id", "sample_index", "policy_id")
QUESTIONS_PER_TASK = 16
"""Whose most different trajectories one task looks for: a second or two of its time."""


class Row(NamedTuple):
    """What is known of a judged trajectory without its text."""

    trajectory_id: str
    question_id: str
    sample_index: int
    policy_id: str
    is_correct: bool
    shard: tuple[Folder, str]


def write(context: Context) -> tuple[Counts, dict[str, Any]]:
    """Write the step's examples/: the support set of every question, in the student's tokens, shuffled by seed.

    A row in is a judged trajectory; filtered are those of other policies, wrong ones, and correct ones beyond the
    support set; rejected are those that could be chosen if sft.max_length had room for them, all their text were the
    policy's own, or (sft.outer_loss) their answer could be found. A set that is whole stays as it is; after a kill before that it is written anew.

    Raises: ConfigError if nothing is left to train on, or sft.policies names one that is not there.
    """
    examples = context.folder / EXAMPLES
    if examples.exists(example_shards.INDEX_FILE):
        there = examples.read_json(example_shards.FIGURES_FILE)
        return Counts(**there["counts"]), there["figures"]
    settings, rows = context.config.sft, _rows(context)
    groups = _grouped(_of_policies(rows, settings.policies))
    labels = [[row.is_correct for row in group] for group in groups]
    candidates = [groups[q][t] for q, indices in enumerate(support.correct(labels, settings.pad_to)) for t in indices]
    spread = _spread(context, len(rows))
    sources = list(_sources(candidates, _questions(context)))
    encoded = example_shards.encode(context.folder, sources, _encoding(context), spread)
    rejected = [row for part in encoded for row in part.rejected]
    context.reject(rejected, "trajectories")
    num_tokens = {key: count for part in encoded for key, count in part.num_tokens.items()}
    choosable = [[row.trajectory_id in num_tokens for row in group] for group in groups]
    lengths = [[num_tokens.get(row.trajectory_id, 0) for row in group] for group in groups]
    chosen = support.choose(
        [group[0].question_id for group in groups],
        choosable,
        lengths,
        settings,
        records.seed_of(context.config.seed, "sft", "support"),
        lambda asked: _farthest(asked, groups, encoded, spread),
    )
    if not chosen:
        raise _nothing(context, len(rows), len(candidates), rejected)
    positions: dict[str, list[int]] = defaultdict(list)
    for position, (question, place) in enumerate(chosen):
        positions[groups[question][place].trajectory_id].append(position)
    index = example_shards.write(context.folder, examples, encoded, positions, settings.examples_per_shard, spread)
    counts = Counts(
        _num_trajectories(context), len(positions), len(rejected), len(rows) - len(positions) - len(rejected)
    )
    kept = {question for question, _ in chosen}
    figures: dict[str, Any] = {
        "examples": len(index.lengths),
        "distinct_trajectories": len(positions),
        "questions": sum(map(any, labels)),
        "questions_kept": len(kept),
        "rejected_reasons": dict(Counter(row.reason.partition(":")[0] for row in rejected)),
        "mean_tokens": float(index.lengths.mean()),
        "median_tokens": float(np.median(index.lengths)),
    }
    if settings.length != "any" or settings.match_length:
        figures["lengths"] = _thirds(choosable, lengths, kept, settings.pad_to)
    examples.write_json(example_shards.FIGURES_FILE, {"counts": asdict(counts), "figures": figures})
    example_shards.write_index(examples, index)
    return counts, figures


def _spread(context: Context, num_rows: int) -> example_shards.Spread:
    most = example_shards.num_tasks(num_rows, context.config.sft.examples_per_shard)
    timeout_s = context.config.train.step_timeout_s
    return example_shards.Spread(most, Patience(timeout_s, f"train.step_timeout_s={timeout_s:g}"))


def _encoding(context: Context) -> example_shards.Encoding:
    settings = context.config.sft
    return example_shards.Encoding(
        context.policy_source,
        context.config.prompt,
        settings.max_length,
        with_sketches=settings.selection == "diverse",
        with_answers=settings.outer_loss != "all_tokens",
        answer_pattern=settings.answer_pattern,
    )


def _of_policies(rows: Sequence[Row], policies: Sequence[str]) -> list[Row]:
    """The rows of the policies of these names, or all. Raises: ConfigError if a name has no rows."""
    names = {row.policy_id: row.policy_id.partition("@")[0] for row in rows}
    missing = sorted(set(policies) - set(names.values()))
    if missing:
        raise ConfigError(
            f"sft.policies: no judged trajectory is of {', '.join(missing)}; there are"
            f" {', '.join(sorted(set(names.values()))) or 'none at all'}"
        )
    return [row for row in rows if not policies or names[row.policy_id] in policies]


def _nothing(context: Context, num_rows: int, num_candidates: int, rejected: Sequence[Rejected]) -> ConfigError:
    settings, start = context.config.sft, f"step {context.step.name!r}: "
    if not num_candidates:
        return ConfigError(
            f"{start}none of {num_rows} judged trajectories is correct, of sft.policies={settings.policies}, and among"
            f" the first sft.pad_to={settings.pad_to} of its question: generate more, or set these"
        )
    if len(rejected) == num_candidates:
        if num_unread := sum(row.reason.startswith("no_answer") for row in rejected):
            return ConfigError(
                f"{start}sft.answer_pattern={settings.answer_pattern!r} (empty: the last box) finds no answer in"
                f" {num_unread} of {num_candidates} trajectories, and sft.max_length={settings.max_length} has no room for"
                f" {num_candidates - num_unread}: set these"
            )
        return ConfigError(
            f"{start}sft.max_length={settings.max_length} has room for none of {num_candidates} trajectories: raise it"
        )
    return ConfigError(
        f"{start}none of {num_candidates - len(rejected)} correct trajectories is left by sft.length={settings.length},"
        f" sft.match_length={settings.match_length}: questions with three correct trajectories have one of each length;"
        " generate more, or set these"
    )


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """By question, in sample order; among equal samples by policy."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.question_id].append(row)
    return [
        sorted(group, key=lambda row: (row.sample_index, row.policy_id, row.trajectory_id)) for group in groups.values()
    ]


def _thirds(
    labels: Sequence[Sequence[bool]], lengths: Sequence[Sequence[int]], kept: set[int], pad_to: int
) -> dict[str, dict[str, float]]:
    """Of the kept questions' choosable trajectories, in each third: how many, their mean and their median length."""
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
    """The keys of every judged trajectory that the step takes, in the order of the folders' paths.

    Raises: ValueError if a trajectory has no verdict; ConfigError if one is there twice.
    """
    rows: list[Row] = []
    paths: list[str] = []
    for folder, sources in sorted(judged_folders(context), key=lambda entry: entry[0].path):
        verdicts = _verdicts(folder)
        for source in sorted(sources, key=lambda source: source.path):
            paths.append(source.path)
            shards = source / "trajectories"
            for name in shards.names("shard-", ".parquet"):
                table = shards.read_table(name, KEYS)
                for key, question, sample, policy in zip(*(table[column].to_pylist() for column in KEYS), strict=True):
                    if key not in verdicts:
                        raise ValueError(f"trajectory {key} of {shards.path} has no verdict in {folder.path}")
                    names = sys.intern(question), sample, sys.intern(policy)
                    rows.append(Row(key, *names, verdicts[key], (shards, name)))
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


def _sources(rows: Iterable[Row], questions: Mapping[str, Question]) -> Iterator[example_shards.Source]:
    """The trajectories, shard by shard, in the order of the shards' paths."""
    by_shard: dict[tuple[Folder, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        by_shard[row.shard][row.trajectory_id] = questions[row.question_id].problem
    for (folder, name), problems in sorted(by_shard.items(), key=lambda entry: entry[0][0].file(entry[0][1])):
        yield example_shards.Source(folder, name, problems)


def _farthest(
    asked: Sequence[tuple[Sequence[support.Key], int]],
    groups: Sequence[Sequence[Row]],
    encoded: Sequence[example_shards.Encoded],
    spread: example_shards.Spread,
) -> list[list[int]]:
    """`diversity.farthest` of each group of trajectories, in tasks; the driver holds a sketch, 1 KiB, of each."""
    sketches = {key: sketch for part in encoded for key, sketch in part.sketches.items()}
    texts = [([sketches[groups[q][t].trajectory_id] for q, t in keys], count) for keys, count in asked]
    calls = [(texts[start : start + QUESTIONS_PER_TASK],) for start in range(0, len(texts), QUESTIONS_PER_TASK)]
    return [places for part in example_shards.over(_farthest_of, calls, spread) for places in part]


def _farthest_of(texts: Sequence[tuple[Sequence[np.ndarray], int]]) -> list[list[int]]:
    return [diversity.farthest(sketches, count) for sketches, count in texts]


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
