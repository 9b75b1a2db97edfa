"""The engine actor that Ray Data maps over shards: many shards at once in one engine, each committed by one rename."""

import contextlib
import faulthandler
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.actor import ActorHandle

from raml_ray import faults, records
from raml_ray.config import fingerprint
from raml_ray.policy_source import on_this_node
from raml_ray.records import Question, Rejected, Trajectory
from raml_ray.settings import EngineConfig, PromptConfig
from raml_ray.stages import meters
from raml_ray.stages.ledger import ANSWERS_S, Batch, Order, Part
from raml_ray.stages.shards import QUESTIONS, TRAJECTORIES, sample_key, shard_name, with_rejected
from raml_ray.storage import Folder
from raml_ray.text import prompts
from raml_ray.workers import policy as policies
from raml_ray.workers.engine import CannotServe, Engine
from raml_ray.workers.engine_loop import EngineFailure, EngineLoop
from raml_ray.workers.responses import Response, respond
from raml_ray.workers.sampling import Failure, Request
from raml_ray.workers.scripted_engine import ScriptedEngine

BEAT_S = 5.0
"""Between two words of an engine to the ledger."""


class Asked(NamedTuple):
    """A sample that an engine is to make: its row with no more of a response than was given, and what the engine is asked."""

    row: Trajectory
    request: Request


def engine_class(settings: EngineConfig) -> type[Engine] | type[ScriptedEngine]:
    return Engine if settings.kind == "vllm" else ScriptedEngine


class Gate:
    """Many threads at once, or one alone. Who wants to be alone is let in before those who come after."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._wanting = 0
        self._taken = False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not self._wanting)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._wanting += 1
            self._changed.wait_for(lambda: not self._taken and not self._inside)
            self._wanting -= 1
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


class ShardSampler:
    """An engine that makes whole shards, several at once: the class that Ray Data maps over shard numbers."""

    def __init__(self, job: dict[str, Any], ledger: ActorHandle) -> None:
        """Raises: RuntimeError if the step is to end, or the policy cannot be served with these settings."""
        self._job, self._ledger, self._name = dict(job), ledger, uuid.uuid4().hex
        here = ray.get_runtime_context()
        self._node = here.get_node_id()
        if stop := self._tell("starting", here.get_actor_id(), self._node):
            raise RuntimeError(stop)
        # Only another process can end one that hangs in the start of its engine: Ray then makes a fresh one.
        self._settings = EngineConfig.model_validate(job["engine"])
        faulthandler.dump_traceback_later(self._settings.start_timeout_s, exit=True)
        self._folder = Folder(job["folder"])
        self._job["policy_path"] = on_this_node(job["policy_path"])
        faults.arm(*job["drill"])
        self._prompt = PromptConfig.model_validate(job["prompt"])
        self._sampling, self._budget = job["sampling"], job["budget"]
        self._questions = self._folder.read_table(QUESTIONS)
        self._tokenizer = policies.load_tokenizer(self._job["policy_path"])
        self._policy_id = policies.policy_id(self._job["policy_path"], job["policy_name"])
        self._how = self._fingerprint()
        self._gate = Gate()
        self._loop = EngineLoop(self._engine, stall_timeout_s=self._settings.stall_timeout_s, on_failure=self._end)
        if not self._tell("started"):
            os._exit(1)
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def _engine(self) -> Engine | ScriptedEngine:
        try:
            return engine_class(self._settings)(
                self._job["policy_path"],
                self._settings,
                seed=self._job["seed"],
                needs_text=self._sampling.needs_text,
            )
        except CannotServe as error:  # another attempt would end alike
            self._ledger.stop.remote(f"the engine cannot serve this policy with these settings: {error}")
            raise
        except Exception as error:
            self._end(f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}")

    def _tell(self, what: str, *arguments: object) -> Any:
        """Waits for the ledger's answer: what it does not know it cannot blame."""
        return ray.get(getattr(self._ledger, what).remote(self._name, *arguments), timeout=ANSWERS_S)

    def _end(self, reason: str) -> NoReturn:
        """The engine has failed: a process that holds it is of no more use, and Ray starts another."""
        with contextlib.suppress(Exception):
            self._tell("failed", reason)
        os._exit(1)

    def _beat(self) -> None:
        """Says that the engine is alive, and ends a process that is too stuck to run a single thread."""
        while True:
            faulthandler.dump_traceback_later(self._settings.stall_timeout_s + 2 * BEAT_S, exit=True)
            self._ledger.works.remote(self._name)
            time.sleep(BEAT_S)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        reports = [self._make(int(shard)) for shard in batch["shard"]]
        return {name: [report[name] for report in reports] for name in reports[0]}

    def _make(self, shard: int) -> dict[str, int | str]:
        folder, name = self._folder / TRAJECTORIES, shard_name(shard)
        size = self._job["shard_questions"]
        questions = records.asked(self._questions.slice(shard * size, size))
        rows_asked = len(questions) * self._job["num_samples"]
        report: dict[str, int | str] = {"shard": shard, "node": self._node, "rows": rows_asked, "tokens": 0}
        if folder.exists(name):  # what was lost is Ray's note of it
            return report
        asked, rejected = self._asked(questions)
        try:
            parts = self._parts(shard, asked)
        except EngineFailure as error:
            self._end(str(error))
        rows = pa.concat_tables([records.TRAJECTORY.empty_table(), *(part.rows for part in parts)])
        rejected += [row for part in parts for row in part.rejected]
        if not folder.exists(name):  # an engine that was believed dead may have made it meanwhile
            folder.write_table(name, with_rejected(rows, rejected))
        ray.get(self._ledger.done.remote(shard), timeout=ANSWERS_S)
        tokens = pc.sum(pc.list_value_length(rows["token_ids"])).as_py() or 0
        meters.count("raml_engine_responses", rows.num_rows)
        meters.count("raml_engine_tokens", tokens)
        return report | {"tokens": tokens}

    def _asked(self, questions: Sequence[Question]) -> tuple[dict[str, Asked], list[Rejected]]:
        """Every sample of these questions by its key, but for those that no engine is asked for."""
        asked: dict[str, Asked] = {}
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
                    asked[key] = Asked(row, Request([*ids, *(row.token_ids or ())], row.seed))
        return asked, rejected

    def _parts(self, shard: int, asked: Mapping[str, Asked]) -> list[Part]:
        """What becomes of all rows of a shard. Raises: EngineFailure."""
        order: Order = ray.get(self._ledger.order.remote(shard, list(asked)), timeout=ANSWERS_S)
        if order.batches is None:
            with self._gate.together():
                return [self._sampled(shard, None, list(asked.values()))]
        stage = self._job["stage"]
        guilty = [
            records.rejected(key, stage, f"engine_died:{why}", asked[key].row) for key, why in order.set_aside.items()
        ]
        parts = [Part(records.TRAJECTORY.empty_table(), guilty), *order.kept]
        for batch in order.batches:
            with self._gate.alone():
                parts.append(self._sampled(shard, batch, [asked[key] for key in batch]))
        return parts

    def _sampled(self, shard: int, batch: Batch | None, asked: Sequence[Asked]) -> Part:
        """What becomes of rows that enter the engine together: of one batch, or (None) of the whole shard."""
        self._tell("entered", shard, batch)
        faults.reach("engine", 0, shard)
        answers = respond(self._loop, [one.request for one in asked], self._sampling, self._budget)
        part = self._answered([one.row for one in asked], answers)
        self._tell("left", shard, part if batch else None)
        return part

    def _fingerprint(self) -> str:
        """Of what decides a trajectory besides its question and its policy."""
        values = {
            "prompt": self._prompt,
            "sampling": self._sampling.to_json(),
            "max_len": self._settings.max_model_len,
            "seed": self._job["seed"],
        }
        return fingerprint(values | ({"budget": self._budget.to_json()} if self._budget else {}))

    def _unanswered(self, question: Question, index: int, prompt_ids: list[int]) -> Trajectory:
        identity = records.trajectory_id(question.question_id, self._policy_id, self._how, index)
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
            token_ids=records.begun_token_ids(question) or None,
        )

    def _answered(self, rows: Sequence[Trajectory], answers: Sequence[Response | Failure]) -> Part:
        """The rows with their answers, and those that have none."""
        answered, rejected = [], []
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, Failure):
                key = sample_key(row.question_id, row.sample_index)
                rejected.append(records.rejected(key, self._job["stage"], answer.reason, row))
                continue
            begun = row.token_ids or []
            token_ids, num_begun = [*begun, *answer.token_ids], len(begun)
            spans = [{"start": num_begun + start, "end": num_begun + end} for start, end in answer.forced]
            spans = [{"start": 0, "end": num_begun}, *spans] if begun else spans
            text = prompts.response_text(self._tokenizer, token_ids, self._prompt, self._sampling.stop_token_ids)
            answered.append(
                asdict(row)
                | {
                    "text": text,
                    "finish_reason": answer.finish_reason,
                    "token_ids": token_ids,
                    "logprobs": [0.0] * num_begun + answer.logprobs,
                    "weight_versions": [{"version": answer.version, "start": 0, "end": len(token_ids)}],
                    "forced": spans or None,
                }
            )
        return Part(records.table(answered, records.TRAJECTORY), rejected)
