"""Sampling trajectories for questions: Ray Data over engine actors, committed shard by shard.

A shard is a fixed slice of the questions with all their samples. It counts as made when its Parquet file stands under
its name, which happens in one rename; whatever was under way before is made again, with the same ids, seeds and tokens.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray
from transformers import PreTrainedTokenizerBase

from raml_ray import cluster, records
from raml_ray.config import ConfigError
from raml_ray.records import Question
from raml_ray.settings import EvaluateConfig, GenerateConfig
from raml_ray.stages import ledger, mapping, needs
from raml_ray.stages.context import Context, Counts
from raml_ray.stages.progress import Progress
from raml_ray.stages.shard_sampler import ShardSampler
from raml_ray.stages.shards import QUESTIONS, TRAJECTORIES, rejected_of, sample_key, shard_name
from raml_ray.stages.sources import Found
from raml_ray.storage import Folder
from raml_ray.text import prompts
from raml_ray.workers import policy as policies
from raml_ray.workers import responses
from raml_ray.workers.sampling import Sampling

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 64
"""Shards that one engine makes at once: a thread each."""
LONGEST_PER_MEAN = 8
"""How much longer than the mean a response of a shard may be before the engine is short of others meanwhile."""


def stop_token_ids(policy_path: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a response: the tokenizer's end of sequence and those of generation_config.json."""
    found = {int(tokenizer.eos_token_id)} if tokenizer.eos_token_id is not None else set()
    file = Path(policy_path) / "generation_config.json"
    if file.is_file():
        named = json.loads(file.read_text()).get("eos_token_id")
        found |= set(named if isinstance(named, list) else [named]) - {None}
    if not found:
        raise ConfigError(
            f"policy {policy_path} names no end-of-sequence token: set eos_token in its tokenizer_config.json"
        )
    return tuple(sorted(found))


def sampling_of(settings: GenerateConfig | EvaluateConfig) -> Sampling:
    """How the settings say that tokens are drawn; what they do not name is off."""
    named = {field.name for field in fields(Sampling)} & type(settings).model_fields.keys()
    return Sampling(**{name: getattr(settings, name) for name in named})


def sample(
    context: Context, found: Found, settings: GenerateConfig | EvaluateConfig, *, shard_questions: int
) -> tuple[Counts, dict[str, Any]]:
    """Write settings.num_samples trajectories of every question to the step's folder; what is there already stays.

    Returns the counts (a row is a question's sample, of rejected and filtered questions too) and figures:
    trajectories, distinct texts, tokens, truncated ones, why rows were rejected, and what this attempt survived.

    Raises: ConfigError if the engines do not fit the cluster, the policy cannot be used, no prompt fits the engine, or
    the shards that are there belong to other questions, or more than data.max_rejected_fraction of the rows had to be
    set aside (which is said when all is written); RuntimeError if rows were lost or more engines died than
    engine.max_failures.
    """
    questions, num_samples = found.questions, settings.num_samples
    _keep_questions(context, questions)
    num_shards = math.ceil(len(questions) / shard_questions)
    done = set((context.folder / TRAJECTORIES).names("shard-", ".parquet"))
    missing = [index for index in range(num_shards) if shard_name(index) not in done]
    if len(missing) < num_shards:
        logger.info("%s: %d of %d shards are there", context.step.name, num_shards - len(missing), num_shards)
    survived: dict[str, Any] = {"engine_failures": 0, "nodes_lost": 0, "engine_nodes": []}
    if missing:
        node = "answers" if context.step.stage == "analyze" else context.step.stage
        engines = needs.of_engines(context.config, settings.num_engines, node)
        cluster.check_fits(engines | needs.DATA_TASKS, context.config.cluster.wait_for_resources_s)
        job = _job(context, questions, settings, shard_questions)
        in_missing = sum(min(shard_questions, len(questions) - index * shard_questions) for index in missing)
        total = len(questions) * num_samples
        with Progress(
            context.step_folder,
            context.step.name,
            context.step.stage,
            unit=context.part or "trajectories",
            total=total,
            done=total - in_missing * num_samples,
        ) as progress:
            survived = _sample_shards(context, missing, job, settings.num_engines, progress)
    counts, figures = _counted(context.folder, questions, num_samples, shard_questions)
    _check_share(context, counts, figures["rejected_reasons"])
    counts = Counts(
        rows_in=found.num_rows * num_samples,
        rows_out=counts.rows_out,
        rejected=counts.rejected + len(found.rejected) * num_samples,
        filtered=len(found.filtered) * num_samples,
    )
    counts.check()
    return counts, figures | survived


def _keep_questions(context: Context, questions: Sequence[Question]) -> None:
    """Shards count questions by their place in this table: it must not change under shards that are there."""
    folder, table = context.folder, records.table(questions, records.question_schema(questions))
    if not (folder / TRAJECTORIES).names("shard-", ".parquet"):
        folder.write_table(QUESTIONS, table)
    elif not (folder.exists(QUESTIONS) and folder.read_table(QUESTIONS).equals(table)):
        raise ConfigError(
            f"step {context.step.name!r}: {folder.path} holds trajectories of other questions than its question set has"
            f" now: start it anew with --redo {context.step.name}"
        )


def opened_policy(context: Context) -> tuple[str, PreTrainedTokenizerBase]:
    """The policy's local folder and its tokenizer, looked at before any worker starts.

    Raises: ConfigError if the folder lacks something.
    """
    path = context.policy_path
    try:
        policies.check_folder(path, weights=True)
        return path, policies.load_tokenizer(path)
    except (ValueError, OSError) as error:  # OSError: of a hub name that is none
        raise ConfigError(f"step {context.step.name!r}: {error}") from None


def _job(
    context: Context, questions: Sequence[Question], settings: GenerateConfig | EvaluateConfig, shard_questions: int
) -> dict[str, Any]:
    """What every engine is told.

    Raises: ConfigError, before any engine starts, for a policy that ends no response, prompts of which none can be
    answered, and a thinking budget that cannot be kept.
    """
    config = context.config
    path, tokenizer = opened_policy(context)
    sampling = replace(sampling_of(settings), stop_token_ids=stop_token_ids(path, tokenizer))
    try:
        lengths = (len(prompts.request_token_ids(tokenizer, question, config.prompt)) for question in questions)
        if not any(length < config.engine.max_model_len for length in lengths):
            raise ConfigError(
                f"step {context.step.name!r}: engine.max_model_len={config.engine.max_model_len} leaves no room for a"
                f" response to any of {len(questions)} prompts: raise it"
            )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return {
        "folder": context.folder.path,
        "policy_path": context.policy_source,
        "policy_name": context.policy_name,
        "engine": config.engine.model_dump(mode="json"),
        "prompt": config.prompt.model_dump(mode="json"),
        "sampling": sampling,
        "budget": responses.budget_of(settings, sampling, config.prompt, config.engine, tokenizer),
        "num_samples": settings.num_samples,
        "shard_questions": shard_questions,
        "seed": config.seed,
        "drill": (config.drill.faults, config.drill.folder),
        "stage": context.step.stage,
    }


def shards_at_once(max_num_seqs: int, shard_rows: int, num_shards: int, num_engines: int) -> int:
    """Shards that one engine makes at once, so that it is never short of requests at a shard's end.

    While a shard's longest response is still on its way, the engine may answer LONGEST_PER_MEAN x max_num_seqs others:
    as many are there, in two shards at least. But no more shards than the engine's share of all.
    """
    wanted = 1 + math.ceil(LONGEST_PER_MEAN * max_num_seqs / shard_rows)
    return min(wanted, math.ceil(num_shards / num_engines), MOST_AT_ONCE)


def _sample_shards(
    context: Context,
    missing: Sequence[int],
    job: dict[str, Any],
    num_engines: int | tuple[int, int],
    progress: Progress,
) -> dict[str, Any]:
    """Make the missing shards; what the engines went through meanwhile."""
    engine = context.config.engine
    fewest, most = (num_engines, num_engines) if isinstance(num_engines, int) else num_engines
    rows = job["num_samples"] * job["shard_questions"]
    placement: dict[str, Any] = {"scheduling_strategy": "SPREAD" if engine.placement == "spread" else "DEFAULT"}
    if engine.node_labels:
        placement["label_selector"] = dict(engine.node_labels)
    book = ledger.beside_driver(ledger.Limits(engine.max_failures, engine.max_attempts, engine.start_timeout_s))
    num_told = 0

    def report() -> ledger.Report:
        nonlocal num_told
        said: ledger.Report = ray.get(book.report.remote(), timeout=ledger.ANSWERS_S)
        if said.engine_failures > num_told:
            num_told = said.engine_failures
            logger.warning("%s: %d engines have died, the last of: %s", context.step.name, num_told, said.last_reason)
        if said.stop:
            raise RuntimeError(f"step {context.step.name!r}: {said.stop}")
        return said

    made = mapping.over_shards(
        context.step.name,
        [{"shard": index} for index in missing],
        ShardSampler,
        {"job": job, "ledger": book},
        mapping.Workers(
            (fewest, most),
            engine.cpus_per_engine,
            engine.gpus_per_engine,
            # A pool that may grow hands every engine as many again to wait for: those are part of its share.
            shards_at_once(engine.max_num_seqs, rows, len(missing), most if fewest == most else 2 * most),
            placement,
        ),
        # A shard may have to wait for an engine that takes a dead one's place.
        cluster.Patience(
            engine.start_timeout_s + engine.stall_timeout_s,
            f"engine.start_timeout_s={engine.start_timeout_s:g} + engine.stall_timeout_s={engine.stall_timeout_s:g}",
        ),
        watch=report,
    )
    nodes = set()
    for row in made:
        progress.add(row["rows"], row["tokens"])
        nodes.add(row["node"])
    last = report()
    return {"engine_failures": last.engine_failures, "nodes_lost": last.nodes_lost, "engine_nodes": sorted(nodes)}


def _check_share(context: Context, counts: Counts, reasons: Mapping[str, int]) -> None:
    """Raises: ConfigError if more samples than data.max_rejected_fraction had to be set aside."""
    allowed = context.config.data.max_rejected_fraction
    if counts.rejected > allowed * counts.rows_in:
        why = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
        raise ConfigError(
            f"step {context.step.name!r}: {counts.rejected} of {counts.rows_in} trajectories had to be set aside ({why}),"
            f" more than data.max_rejected_fraction={allowed} allows: all others are there; look into"
            f" {(context.folder / 'rejected').path}, and raise the setting to go on with them"
        )


def _counted(
    folder: Folder, questions: Sequence[Question], num_samples: int, shard_questions: int
) -> tuple[Counts, dict[str, Any]]:
    """Counts and figures of what the folder holds, read shard by shard: all rows need not fit into memory.

    Puts the rows that shards set aside into files of their own.
    """
    reasons: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    num_shards = math.ceil(len(questions) / shard_questions)
    wanted_names = {shard_name(index): index for index in range(num_shards)}
    columns = ["question_id", "sample_index", "text", "finish_reason", "token_ids"]
    for name in sorted(wanted_names.keys() | (folder / TRAJECTORIES).names("shard-", ".parquet")):
        place = wanted_names.get(name, num_shards) * shard_questions
        wanted = [
            sample_key(question.question_id, index)
            for question in questions[place : place + shard_questions]
            for index in range(num_samples)
        ]
        table = (folder / TRAJECTORIES).read_table(name, columns)
        rejected = rejected_of(table)
        mapping.write_rejected(folder, name, rejected)
        question_ids = table["question_id"].to_pylist()
        samples = zip(question_ids, table["sample_index"].to_pylist(), strict=True)
        mapping.check_complete(
            folder, wanted, [sample_key(*sample) for sample in samples], [row.row_key for row in rejected]
        )
        reasons.update(row.reason for row in rejected)
        totals["trajectories"] += table.num_rows
        totals["distinct_texts"] += len(set(zip(question_ids, table["text"].to_pylist(), strict=True)))
        totals["tokens"] += pc.sum(pc.list_value_length(table["token_ids"])).as_py() or 0
        totals["truncated"] += table["finish_reason"].to_pylist().count("length")
    rows_in = len(questions) * num_samples
    names = ("trajectories", "distinct_texts", "tokens", "truncated")
    figures = {name: totals[name] for name in names} | {"rejected_reasons": dict(sorted(reasons.items()))}
    return Counts(rows_in, totals["trajectories"], sum(reasons.values())), figures
