"""From verified trajectories to the examples of SFT.   trajectories, verdicts -> examples/"""

import logging
from collections import defaultdict
from typing import Any

import ray

from raml_ray import records, storage
from raml_ray.config import ConfigError
from raml_ray.records import Question, Verdict
from raml_ray.settings import PromptConfig
from raml_ray.stages.context import Context, Counts
from raml_ray.storage import Folder
from raml_ray.text import batches, support
from raml_ray.workers import policy as policies

logger = logging.getLogger(__name__)

EXAMPLES = "examples"


def write(context: Context) -> tuple[Counts, dict[str, Any]]:
    """Write the step's examples/: RaML's support set of every question, in the student's tokens, shuffled by seed.

    A row in is a judged trajectory; filtered are those of other policies, wrong ones, and correct ones beyond the
    support set; rejected are chosen ones that sft.max_length has no room for.

    Raises: ConfigError if nothing is left to train on.
    """
    settings = context.config.sft
    rows, questions = judged(context)
    mine = [row for row in rows if not settings.policies or row["policy_id"].partition("@")[0] in settings.policies]
    by_question: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in mine:
        by_question[row["question_id"]].append(row)
    groups = [sorted(group, key=lambda row: int(row["sample_index"])) for group in by_question.values()]
    labels = [[Verdict(row["verdict"]) is Verdict.CORRECT for row in group] for group in groups]
    seed = records.seed_of(context.config.seed, "sft", "support")
    chosen = support.choose(labels, settings.num_trajectories, settings.pad_to, seed)
    if not chosen:
        names = sorted({row["policy_id"] for row in rows})
        raise ConfigError(
            f"step {context.step.name!r}: none of {len(rows)} judged trajectories is correct and of sft.policies={settings.policies}"
            f" (there are: {', '.join(names) or 'none'}); generate more, or set sft.policies"
        )
    wanted = {groups[q][t]["trajectory_id"]: groups[q][t] for q, t in chosen}
    encoded, num_long = _encoded(context, list(wanted.values()), questions)
    table = batches.table(
        encoded[groups[q][t]["trajectory_id"]] for q, t in chosen if groups[q][t]["trajectory_id"] in encoded
    )
    if not table.num_rows:
        raise ConfigError(
            f"sft.max_length={settings.max_length} has room for none of {len(wanted)} trajectories: raise it"
        )
    (context.folder / EXAMPLES).write_table("shard-000000.parquet", table)
    there = (context.folder / EXAMPLES).read_table("shard-000000.parquet")
    if not there.equals(table):
        raise RuntimeError(
            f"{context.folder.path}: {table.num_rows} examples were written, {there.num_rows} can be read"
        )
    counts = Counts(_num_trajectories(context), len(encoded), num_long, len(rows) - len(wanted))
    return counts, {
        "examples": table.num_rows,
        "distinct_trajectories": len(encoded),
        "questions": sum(map(any, labels)),
    }


def judged(context: Context) -> tuple[list[dict[str, Any]], dict[str, Question]]:
    """Every judged trajectory that the step takes, and every question, by id.

    Raises: ConfigError if a trajectory is there twice, or two questions share an id.
    """
    rows: list[dict[str, Any]] = []
    questions: dict[str, Question] = {}
    paths: list[str] = []
    for folder, sources in judged_folders(context):
        rows += storage.verified(folder, sources)
        paths += [source.path for source in sources]
        for source in sources:
            for key, question in storage.questions(source).items():
                other = questions.setdefault(key, question)
                if (other.problem, other.answer) != (question.problem, question.answer):
                    raise ConfigError(
                        f"question {key!r} of {source.path} is another one than that of an earlier step in"
                        f" {', '.join(paths)}: give the question sets distinct ids"
                    )
    storage.check_distinct([row["trajectory_id"] for row in rows], paths)
    return rows, questions


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


def _encoded(
    context: Context, rows: list[dict[str, Any]], questions: dict[str, Question]
) -> tuple[dict[str, batches.Example], int]:
    """The trajectories in the student's own tokens, and how many were too long; those are kept under rejected/."""
    limit = context.config.sft.max_length
    encode = ray.remote(_encode).options(num_cpus=1)
    examples = ray.get(
        encode.remote(
            [(questions[row["question_id"]].problem, row["text"]) for row in rows],
            context.policy_path,
            context.config.prompt,
        )
    )
    fitting, rejected = {}, []
    for row, example in zip(rows, examples, strict=True):
        if len(example) <= limit:
            fitting[row["trajectory_id"]] = example
        else:
            reason = f"too_long:{len(example)} tokens, sft.max_length={limit}"
            rejected.append(records.rejected(row["trajectory_id"], "sft", reason, row))
    context.reject(rejected, "trajectories")
    return fitting, len(rejected)


def _encode(pairs: list[tuple[str, str]], policy_path: str, prompt: PromptConfig) -> list[batches.Example]:
    tokenizer = policies.load_tokenizer(policy_path)
    return [batches.encode(tokenizer, problem, text, prompt) for problem, text in pairs]
