"""Trajectories of every question.   questions (+ policy) -> questions.parquet, trajectories/, rejected/

From an engine (`generate.source=policy`), from the miniature's oracle, or taken over from a published table. Only an
engine's are resumed where they were cut off: the others are made in minutes, and anew.
"""

from collections.abc import Iterator

from raml_ray import records
from raml_ray.config import ConfigError, fingerprint
from raml_ray.records import Rejected
from raml_ray.stages import growing, imports, mapping, rollouts, shards, sources
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.imports import Made
from raml_ray.stages.sources import Found
from raml_ray.storage import Folder
from raml_ray.text import questions as reading

LABELS = "labels.parquet"
SHOWN = 5
"""Rejected rows that an error names."""


def run(context: Context) -> Outcome:
    config = context.config
    settings = config.generate
    found = sources.questions(config, config.data, stage="generate")
    found.keep(context)
    if settings.source == "policy":
        counts, sampled = rollouts.sample(context, found, settings, shard_questions=settings.shard_questions)
        return Outcome(counts, found.figures() | sampled)
    made = _oracle(context, found) if settings.source == "oracle" else imports.texts(config.data, found)
    return _written(context, found, made)


def _oracle(context: Context, found: Found) -> Iterator[Made]:
    """The oracle's solutions of the questions; a question that was not taken counts with all that it would have had."""
    from raml_ray.miniature import task

    config = context.config
    settings = config.generate
    how = fingerprint({"seed": config.seed, "length": settings.oracle_length, "miniature": config.miniature})
    for question in found.questions:
        texts = task.oracle(
            question.problem,
            config.miniature,
            num=settings.num_samples,
            seed=records.seed_of(config.seed, "oracle", question.question_id),
            length=settings.oracle_length,
        )
        for index, text in enumerate(texts):
            yield imports.trajectory(question, f"oracle@{settings.oracle_length}", index, text, how), None
        for index in range(len(texts), settings.num_samples):
            key = shards.sample_key(question.question_id, index)
            yield records.rejected(key, "generate", "no_other_path", question)
    for row in (*found.rejected, *found.filtered):
        stage, reason = (row.stage, row.reason) if row.stage == reading.FILTER else ("generate", "question_set_aside")
        for index in range(settings.num_samples):
            yield records.rejected(shards.sample_key(row.row_key, index), stage, reason, row.payload)


def _written(context: Context, found: Found, made: Iterator[Made]) -> Outcome:
    """Write all rows anew, as they come, and count what can then be read."""
    folder = context.folder
    (folder / shards.TRAJECTORIES).remove()
    folder.write_table(shards.QUESTIONS, records.table(found.questions, records.QUESTION))
    files = growing.Shards(folder / shards.TRAJECTORIES, context.config.generate.shard_questions)
    ids: list[str] = []
    flawed: list[Rejected] = []
    rejected = filtered = labels = 0
    with (
        growing.table(folder, LABELS, records.LABEL) as add_label,
        growing.table(folder / "rejected", "trajectories.parquet", records.REJECTED) as add_rejected,
    ):
        for item in made:
            if not isinstance(item, Rejected):
                row, label = item
                files.add(row)
                ids.append(row.trajectory_id)
                if label is not None:
                    add_label({"trajectory_id": row.trajectory_id, "label": label})
                    labels += 1
            elif item.stage == reading.FILTER:  # its question is kept
                filtered += 1
            else:
                add_rejected(item)
                rejected += 1
                flawed += [item] if rejected <= SHOWN else []
        files.flush()
    counts = Counts(len(ids) + rejected + filtered, len(ids), rejected, filtered)
    _check_share(context, flawed, counts)
    mapping.check_complete(folder, ids, _ids(folder / shards.TRAJECTORIES), [])
    return Outcome(counts, found.figures() | {"trajectories": len(ids), "labels": labels})


def _ids(folder: Folder) -> Iterator[str]:
    for name in folder.names("shard-", ".parquet"):
        yield from folder.read_table(name, ["trajectory_id"])["trajectory_id"].to_pylist()


def _check_share(context: Context, flawed: list[Rejected], counts: Counts) -> None:
    """Raises: ConfigError if more published texts than data.max_rejected_fraction had to be set aside."""
    allowed = context.config.data.max_rejected_fraction
    if context.config.generate.source == "import" and counts.rejected > allowed * counts.rows_in:
        where = "; ".join(f"{row.row_key} {row.reason}" for row in flawed)
        raise ConfigError(
            f"data.texts: {counts.rejected} of {counts.rows_in} texts cannot be used ({where}), more than"
            f" data.max_rejected_fraction={allowed} allows: mend the file or raise the setting"
        )
