"""Sampling trajectories for questions: Ray Data over engine actors, committed shard by shard.

A shard is a fixed slice of the questions with all their samples. It counts as made when its Parquet file stands under
its name, which happens in one rename; whatever was under way before is made again, with the same ids, seeds and tokens.
"""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from raml_ray import cluster, records
from raml_ray.config import ConfigError, fingerprint
from raml_ray.records import Question, Rejected, Trajectory
from raml_ray.settings import EngineConfig, PromptConfig
from raml_ray.stages import mapping
from raml_ray.stages.context import Context, Counts
from raml_ray.storage import Folder
from raml_ray.text import prompts
from raml_ray.workers import policy as policies
from raml_ray.workers.engine import Completion, Engine, Failure, Request, Sampling
from raml_ray.workers.scripted_engine import ScriptedEngine

logger = logging.getLogger(__name__)

TRAJECTORIES = "trajectories"
QUESTIONS = "questions.parquet"


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.parquet"


def engine_class(settings: EngineConfig) -> type[Engine] | type[ScriptedEngine]:
    return Engine if settings.kind == "vllm" else ScriptedEngine


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


def sample(
    context: Context,
    questions: Sequence[Question],
    *,
    sampling: Sampling,
    num_samples: int,
    num_engines: int,
    shard_questions: int,
    questions_rejected: int,
) -> tuple[Counts, dict[str, Any]]:
    """Write `num_samples` trajectories of every question to the step's folder; what is there already stays.

    Returns the counts (a row is a question's sample, of rejected questions too) and figures: trajectories, distinct
    texts, tokens, truncated ones, and why rows were rejected.

    Raises: ConfigError if the engines do not fit the cluster, the policy cannot be used, no prompt fits the engine, or
    the shards that are there belong to other questions; RuntimeError if rows were lost.
    """
    config, folder = context.config, context.folder
    _keep_questions(context, questions)
    num_shards = math.ceil(len(questions) / shard_questions)
    done = set((folder / TRAJECTORIES).names("shard-", ".parquet"))
    missing = [index for index in range(num_shards) if shard_name(index) not in done]
    if len(missing) < num_shards:
        logger.info("%s: %d of %d shards are there", context.step.name, num_shards - len(missing), num_shards)
    if missing:
        cluster.check_fits(
            {
                f"{num_engines} engines of engine.cpus_per_engine={config.engine.cpus_per_engine}": (
                    num_engines * config.engine.cpus_per_engine,
                    num_engines * config.engine.gpus_per_engine,
                ),
                "Ray Data's own tasks": (1, 0),
            }
        )
        _check_prompts(context, questions)
        _sample_shards(context, missing, sampling, num_samples, num_engines, shard_questions)
    wanted = [sample_key(question.question_id, index) for question in questions for index in range(num_samples)]
    return _counted(folder, wanted, questions_rejected * num_samples)


def sample_key(question_id: str, index: int) -> str:
    """What names a question's sample before it has an id."""
    return f"{question_id}#{index}"


def _keep_questions(context: Context, questions: Sequence[Question]) -> None:
    """Shards count questions by their place in this table: it must not change under shards that are there."""
    folder, table = context.folder, records.table(questions, records.QUESTION)
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


def _check_prompts(context: Context, questions: Sequence[Question]) -> None:
    """Refuse, before any engine starts, a policy that ends no response and prompts of which none can be answered."""
    config = context.config
    path, tokenizer = opened_policy(context)
    stop_token_ids(path, tokenizer)
    try:
        lengths = (len(prompts.prompt_token_ids(tokenizer, question.problem, config.prompt)) for question in questions)
        if not any(length < config.engine.max_model_len for length in lengths):
            raise ConfigError(
                f"step {context.step.name!r}: engine.max_model_len={config.engine.max_model_len} leaves no room for a"
                f" response to any of {len(questions)} prompts: raise it"
            )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _sample_shards(
    context: Context, missing: list[int], sampling: Sampling, num_samples: int, num_engines: int, shard_questions: int
) -> None:
    config = context.config
    job = {
        "folder": context.folder.path,
        "policy_path": context.policy_path,
        "policy_name": context.policy_name,
        "engine": config.engine.model_dump(mode="json"),
        "prompt": config.prompt.model_dump(mode="json"),
        "sampling": sampling,
        "num_samples": num_samples,
        "shard_questions": shard_questions,
        "seed": config.seed,
        "stage": context.step.stage,
    }
    engine = config.engine
    made = mapping.over_shards(
        context.step.name,
        [{"shard": index} for index in missing],
        ShardSampler,
        {"job": job},
        mapping.Workers(num_engines, engine.cpus_per_engine, engine.gpus_per_engine),
        # A shard may have to wait for an engine that takes a dead one's place.
        mapping.Patience(
            engine.start_timeout_s + engine.request_timeout_s,
            f"engine.start_timeout_s={engine.start_timeout_s:g} + engine.request_timeout_s={engine.request_timeout_s:g}",
        ),
    )
    began = time.monotonic()
    for finished, row in enumerate(made, start=1):
        logger.info(
            "%s: shard %d of %d, %d rows, %.0f tokens/s, %.0f s left",
            context.step.name,
            finished,
            len(missing),
            row["rows"],
            row["tokens"] / max(row["seconds"], 1e-9),
            (time.monotonic() - began) / finished * (len(missing) - finished),
        )


class ShardSampler:
    """An engine that makes whole shards: the class that Ray Data maps over shard numbers."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._folder = Folder(job["folder"])
        self._prompt = PromptConfig.model_validate(job["prompt"])
        settings = EngineConfig.model_validate(job["engine"])
        self._max_len = settings.max_model_len
        self._questions = records.questions(self._folder.read_table(QUESTIONS))
        self._tokenizer = policies.load_tokenizer(job["policy_path"])
        self._sampling = replace(job["sampling"], stop_token_ids=stop_token_ids(job["policy_path"], self._tokenizer))
        self._policy_id = policies.policy_id(job["policy_path"], job["policy_name"])
        self._engine = engine_class(settings)(job["policy_path"], settings, seed=job["seed"])

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        reports = [self._make(int(shard)) for shard in batch["shard"]]
        return {name: [report[name] for report in reports] for name in reports[0]}

    def _make(self, shard: int) -> dict[str, float]:
        began = time.monotonic()
        size = self._job["shard_questions"]
        rows, rejected = self._rows(self._questions[shard * size : (shard + 1) * size])
        mapping.write_rejected(self._folder, shard_name(shard), rejected)
        # Last: the trajectories' file is what says that the shard is made.
        (self._folder / TRAJECTORIES).write_table(shard_name(shard), records.table(rows, records.TRAJECTORY))
        tokens = sum(len(row.token_ids or ()) for row in rows)
        return {"shard": shard, "rows": len(rows), "tokens": tokens, "seconds": time.monotonic() - began}

    def _rows(self, questions: Sequence[Question]) -> tuple[list[Trajectory], list[Rejected]]:
        """Every sample of these questions, as a trajectory or set aside."""
        plan: list[tuple[Trajectory, Request]] = []
        rejected: list[Rejected] = []
        for question in questions:
            ids = prompts.prompt_token_ids(self._tokenizer, question.problem, self._prompt)
            special = prompts.special_token_in(self._tokenizer, question.problem)
            for index in range(self._job["num_samples"]):
                key = sample_key(question.question_id, index)
                if special:
                    rejected.append(records.rejected(key, self._job["stage"], f"special_token:{special}", question))
                else:
                    row = self._unanswered(question, index, ids)
                    plan.append((row, Request(ids, row.seed)))
        answers = self._engine.generate([request for _, request in plan], self._sampling)
        rows = []
        for (row, _), answer in zip(plan, answers, strict=True):
            if isinstance(answer, Failure):
                key = sample_key(row.question_id, row.sample_index)
                rejected.append(records.rejected(key, self._job["stage"], answer.reason, row))
            else:
                rows.append(self._answered(row, answer))
        return rows, rejected

    def _unanswered(self, question: Question, index: int, prompt_ids: list[int]) -> Trajectory:
        how = fingerprint(
            {
                "prompt": self._prompt,
                "sampling": self._sampling.to_json(),
                "max_len": self._max_len,
                "seed": self._job["seed"],
            }
        )
        identity = records.trajectory_id(question.question_id, self._policy_id, how, index)
        return Trajectory(
            trajectory_id=identity,
            question_id=question.question_id,
            sample_index=index,
            text="",
            finish_reason="",
            policy_id=self._policy_id,
            sampling=self._sampling.to_json(),
            seed=records.seed_of(self._job["seed"], identity),
            prompt_token_ids=prompt_ids,
        )

    def _answered(self, row: Trajectory, answer: Completion) -> Trajectory:
        return Trajectory(
            **{
                **asdict(row),
                "text": prompts.response_text(self._tokenizer, answer.token_ids, self._prompt),
                "finish_reason": answer.finish_reason,
                "token_ids": answer.token_ids,
                "logprobs": answer.logprobs,
                "weight_versions": [{"version": answer.version, "start": 0, "end": len(answer.token_ids)}],
            }
        )


def _counted(folder: Folder, wanted: Sequence[str], unasked: int) -> tuple[Counts, dict[str, Any]]:
    """Counts and figures of what the folder holds; `unasked` are the rows of questions that were set aside."""
    table = (folder / TRAJECTORIES).read_tables("shard-", records.TRAJECTORY)
    rejected = (folder / "rejected").read_tables("shard-", records.REJECTED)
    question_ids = table["question_id"].to_pylist()
    samples = zip(question_ids, table["sample_index"].to_pylist(), strict=True)
    mapping.check_complete(folder, wanted, [sample_key(*sample) for sample in samples], rejected["row_key"].to_pylist())
    lengths = [len(tokens) for tokens in table["token_ids"].to_pylist() if tokens is not None]
    figures = {
        "trajectories": table.num_rows,
        "distinct_texts": len(set(zip(question_ids, table["text"].to_pylist(), strict=True))),
        "tokens": sum(lengths),
        "truncated": table["finish_reason"].to_pylist().count("length"),
        "rejected_reasons": dict(sorted(Counter(rejected["reason"].to_pylist()).items())),
    }
    counts = Counts(rows_in=len(wanted) + unasked, rows_out=table.num_rows, rejected=rejected.num_rows + unasked)
    counts.check()
    return counts, figures
