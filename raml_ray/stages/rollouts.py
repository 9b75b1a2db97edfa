"""Sampling trajectories for questions: Ray Data over engine actors, committed shard by shard.

A shard is a fixed slice of the questions with all their samples. It counts as made when its Parquet file stands under
its name, which happens in one rename; whatever was under way before is made again, with the same ids, seeds and tokens.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from transformers import PreTrainedTokenizerBase

from raml_ray import cluster, records
from raml_ray.config import ConfigError, fingerprint
from raml_ray.records import Question, Rejected, Trajectory
from raml_ray.settings import EngineConfig, PromptConfig
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
) -> tuple[Counts, dict[str, Any]]:
    """Write `num_samples` trajectories of every question to the step's folder; what is there already stays.

    Returns the counts (a row is a question's sample) and figures: tokens, seconds of generation, tokens per second.

    Raises: ConfigError if the engines do not fit the cluster; RuntimeError if rows were lost.
    """
    config, folder = context.config, context.folder
    folder.write_table(QUESTIONS, records.table((asdict(question) for question in questions), records.QUESTION))
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
        _sample_shards(context, missing, sampling, num_samples, num_engines, shard_questions)
    return _counted(folder, len(questions) * num_samples)


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
    shards = ray.data.from_items([{"shard": index} for index in missing], override_num_blocks=len(missing))
    made = shards.map_batches(
        ShardSampler,
        fn_constructor_kwargs={"job": job},
        batch_size=1,
        num_cpus=config.engine.cpus_per_engine,
        num_gpus=config.engine.gpus_per_engine,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(num_engines, len(missing))),
    )
    began = time.monotonic()
    for finished, row in enumerate(made.iter_rows(), start=1):
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
        if rejected:
            (self._folder / "rejected").write_table(shard_name(shard), records.table(rejected, records.REJECTED))
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
                key = f"{question.question_id}#{index}"
                if special:
                    rejected.append(records.rejected(key, self._job["stage"], f"special_token:{special}", question))
                else:
                    row = self._unanswered(question, index, ids)
                    plan.append((row, Request(ids, row.seed)))
        answers = self._engine.generate([request for _, request in plan], self._sampling)
        rows = []
        for (row, _), answer in zip(plan, answers, strict=True):
            if isinstance(answer, Failure):
                key = f"{row.question_id}#{row.sample_index}"
                rejected.append(records.rejected(key, self._job["stage"], answer.reason, row))
            else:
                rows.append(self._answered(row, answer))
        return rows, rejected

    def _unanswered(self, question: Question, index: int, prompt_ids: list[int]) -> Trajectory:
        how = fingerprint({"prompt": self._prompt, "sampling": self._sampling.to_json(), "max_len": self._max_len})
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


def _counted(folder: Folder, rows_in: int) -> tuple[Counts, dict[str, Any]]:
    table = (folder / TRAJECTORIES).read_tables("shard-", records.TRAJECTORY)
    ids = table["trajectory_id"].to_pylist()
    if len(set(ids)) != len(ids):
        raise RuntimeError(f"{len(ids) - len(set(ids))} trajectories of {folder.path} are there twice")
    rejected = (folder / "rejected").read_tables("shard-", records.REJECTED)
    lengths = [len(tokens) for tokens in table["token_ids"].to_pylist() if tokens is not None]
    figures = {
        "trajectories": table.num_rows,
        "distinct_texts": len(set(zip(table["question_id"].to_pylist(), table["text"].to_pylist(), strict=True))),
        "tokens": sum(lengths),
        "truncated": table["finish_reason"].to_pylist().count("length"),
        "rejected_reasons": _tally(rejected, "reason"),
    }
    counts = Counts(rows_in=rows_in, rows_out=table.num_rows, rejected=rejected.num_rows)
    counts.check()
    return counts, figures


def _tally(table: pa.Table, column: str) -> dict[str, int]:
    names: list[str] = table[column].to_pylist()
    return {name: names.count(name) for name in sorted(set(names))}
