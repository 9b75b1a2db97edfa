"""What instruments share: which trajectories they look at, as which tokens, and a map over them that can be resumed.

chosen/ holds the rows of each shard as the workers read them; a shard is done when its file stands in the instrument's
table.
"""

import json
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from raml_ray import cluster, records
from raml_ray.config import Config, ConfigError, dump, load
from raml_ray.policy_source import on_this_node
from raml_ray.records import Question, Verdict
from raml_ray.settings import PromptConfig
from raml_ray.stages import mapping, needs, rollouts, training_set
from raml_ray.stages.context import Context
from raml_ray.stages.progress import Progress
from raml_ray.storage import Folder
from raml_ray.text import batches, prompts
from raml_ray.workers import policy as policies

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS_PER_SHARD = 8
CHOSEN = pa.schema([*records.TRAJECTORY, *list(records.VERDICT)[1:], ("problem", pa.string()), ("answer", pa.string())])
"""A chosen trajectory with its verdict and its question."""

Row = Mapping[str, Any]
"""Of CHOSEN, and whatever columns an instrument adds."""
Reject = Callable[[Row, ValueError], None]
"""Sets a row aside for this reason."""
Measure = Callable[[Sequence[Row], Reject], Iterable[Row]]
"""What an instrument does to the rows of one shard: rows of its table, each with its `trajectory_id`."""


Policy = TypeVar("Policy")
"""What an instrument needs of a policy: all of it (`Opened`), or its tokenizer alone."""


class Opened(NamedTuple):
    """A policy ready to be measured, in evaluation mode on its device."""

    model: "PreTrainedModel"
    tokenizer: PreTrainedTokenizerBase


class Table(NamedTuple):
    """Where an instrument keeps what it measures: `Table("curves", records.ANSWER_CURVE)`."""

    name: str
    schema: pa.Schema
    key: str = "trajectory_id"
    """The column that names a row of what is measured, and is in the table: each is there, or was set aside."""
    rows_per_shard: int = ROWS_PER_SHARD
    inside: str = ""
    """Folder in the step's where this table lies, with what was chosen for it and set aside: for an instrument's second
    table."""


class Measured(NamedTuple):
    """All rows of the instrument's table, and how many of what was to be measured were set aside."""

    rows: list[dict[str, Any]]
    num_rejected: int


def trajectories(context: Context, domain_of: Callable[[Question], str] = lambda question: "") -> list[dict[str, Any]]:
    """Of each question the first correct and the first wrong trajectories, in the order of their samples, as CHOSEN.

    analyze.num_questions are taken of each domain, which rows have as a further entry `domain`, as they have `source`.

    Raises: ConfigError if there is none.
    """
    settings = context.config.analyze
    wanted = {Verdict.CORRECT: settings.num_correct, Verdict.WRONG: settings.num_wrong}
    by_domain: dict[str, dict[str, dict[Verdict, int]]] = defaultdict(dict)
    chosen = []
    rows, questions = training_set.judged(context)
    for row in rows:
        verdict, question = Verdict(row["verdict"]), questions[row["question_id"]]
        domain = domain_of(question)
        taken = by_domain[domain]
        if verdict not in wanted or (question.question_id not in taken and len(taken) == settings.num_questions):
            continue
        counts = taken.setdefault(question.question_id, dict.fromkeys(wanted, 0))
        if counts[verdict] == wanted[verdict]:
            continue
        counts[verdict] += 1
        asked = {"problem": question.problem, "answer": question.answer, "source": question.source}
        chosen.append(row | asked | {"domain": domain})
    if not chosen:
        raise _nothing(context)
    return chosen


def first_trajectories(context: Context, num: int) -> list[dict[str, Any]]:
    """Of each question the first `num` trajectories, in the order of their samples and whatever their verdict, as CHOSEN.

    Raises: ConfigError if there is none.
    """
    taken: Counter[str] = Counter()
    found = []
    rows, questions = training_set.judged(context)
    for row in rows:
        question = row["question_id"]
        if (question in taken or len(taken) < context.config.analyze.num_questions) and taken[question] < num:
            taken[question] += 1
            found.append(row | {"problem": questions[question].problem, "answer": questions[question].answer})
    if not found:
        raise _nothing(context)
    return found


def _nothing(context: Context) -> ConfigError:
    return ConfigError(
        f"step {context.step.name!r}: its data ({', '.join(context.step.data)}) holds no judged trajectory"
    )


def token_ids(tokenizer: PreTrainedTokenizerBase, row: Row, prompt: PromptConfig) -> tuple[list[int], list[int]]:
    """Prompt and response, without its end of sequence.

    The ids that an engine sampled, where they are this policy's tokens of that prompt and text; else its tokens of the
    text. Raises: ValueError if the text lacks the prefix that the prompt forces.
    """
    sampled, stops = row["token_ids"], json.loads(row["sampling"] or "{}").get("stop_token_ids", [])
    prompt_ids = prompts.prompt_token_ids(tokenizer, row["problem"], prompt)
    if (
        sampled is not None
        and row["prompt_token_ids"] == prompt_ids
        and prompts.response_text(tokenizer, sampled, prompt, stops) == row["text"]
    ):
        response_ids = list(sampled)
    else:
        response_ids = list(batches.encode(tokenizer, row["problem"], row["text"], prompt).response_token_ids)
    if response_ids and response_ids[-1] in (tokenizer.eos_token_id, *stops):
        response_ids = response_ids[:-1]
    return prompt_ids, response_ids


def opened(policy_path: str, config: Config) -> Opened:
    """The policy in analyze.dtype, on a GPU where analyze.gpus_per_worker gives one, or over analyze.gpus_per_policy."""
    from raml_ray.workers import spread
    from raml_ray.workers.sharding import DTYPES  # only a worker needs what learners are made of

    settings, dtype = config.analyze, DTYPES[config.analyze.dtype]
    if settings.gpus_per_policy > 1:
        places = spread.device_map(policies.load_model(policy_path, without_weights=True), settings.gpus_per_policy)
        model = policies.load_model(policy_path, dtype=dtype, device_map=places).eval()
    else:
        device = "cuda" if settings.gpus_per_worker else "cpu"
        model = policies.load_model(policy_path, dtype=dtype).eval().to(device)
    return Opened(model, policies.load_tokenizer(policy_path))


def tokenizer_alone(policy_path: str, config: Config) -> PreTrainedTokenizerBase:
    """For instruments that work on what another one measured."""
    return policies.load_tokenizer(policy_path)


class RowByRow(ABC):
    """A measure of one row after the other: those over which it raises a ValueError are set aside."""

    def __call__(self, rows: Sequence[Row], reject: Reject) -> Iterator[Row]:
        for row in rows:
            try:
                measured = list(self.of(row))
            except ValueError as error:
                reject(row, error)
            else:
                yield from measured

    @abstractmethod
    def of(self, row: Row) -> Iterable[Row]:
        """What is said of a row. Raises: ValueError if it cannot be measured."""


def mapped(
    context: Context,
    rows: Sequence[Row],
    make: Callable[[Policy, Config], Measure],
    table: Table,
    columns: pa.Schema = CHOSEN,
    open_policy: Callable[[str, Config], Policy] = opened,  # type: ignore[assignment]
) -> Measured:
    """The instrument's table over all chosen rows, shard by shard; shards that are there already stay.

    `open_policy` and `make` are called once per worker process, `columns` are those of `rows`.

    Raises: ConfigError if all were set aside; RuntimeError if a trajectory has no row in the table and was not set aside
    either; what a worker raised.
    """
    settings, step = context.config.analyze, context.step.name
    folder = context.folder / table.inside if table.inside else context.folder
    unit = "trajectories" if table.key == "trajectory_id" else table.name
    cluster.check_fits(needs.asked(context.config, "analyze"), context.config.cluster.wait_for_resources_s)
    shards = [rows[start : start + table.rows_per_shard] for start in range(0, len(rows), table.rows_per_shard)]
    done = set((folder / table.name).names("shard-", ".parquet"))
    missing = [{"shard": index} for index in range(len(shards)) if _name(index) not in done]
    for shard in missing:
        chosen = pa.Table.from_pylist(list(shards[shard["shard"]]), schema=columns)
        (folder / "chosen").write_table(_name(shard["shard"]), chosen)
    if missing:
        rollouts.opened_policy(context)
        job = {"folder": folder.path, "policy": context.policy_source, "config": dump(context.config)}
        arguments = {"job": job, "open_policy": open_policy, "make": make, "table": table}
        workers = mapping.Workers(settings.num_workers, gpus=settings.gpus_per_worker)
        patience = cluster.Patience(settings.shard_timeout_s, f"analyze.shard_timeout_s={settings.shard_timeout_s:g}")
        there = len(rows) - sum(len(shards[shard["shard"]]) for shard in missing)
        with Progress(context.folder, step, "analyze", unit=unit, total=len(rows), done=there) as progress:
            for report in mapping.over_shards(step, missing, ShardWorker, arguments, workers, patience):
                progress.add(int(report["rows"]))
    return _complete(folder, rows, table, step)


def _complete(folder: Folder, rows: Sequence[Row], table: Table, step: str) -> Measured:
    """What all shards hold. A trajectory may have several rows, all in one shard."""
    names = (folder / table.name).names("shard-", ".parquet")
    measured = [(folder / table.name).read_table(name).to_pylist() for name in names]
    found = [key for shard in measured for key in dict.fromkeys(row[table.key] for row in shard)]
    rejected = (folder / "rejected").read_tables("shard-", records.REJECTED)
    mapping.check_complete(folder, [row[table.key] for row in rows], found, rejected["row_key"].to_pylist())
    if rows and not found:
        raise ConfigError(
            f"step {step!r} has measured nothing: all {len(rows)} rows were set aside, the first because"
            f" {rejected['reason'][0]}; the others' reasons are in {folder.path}/rejected"
        )
    return Measured([row for shard in measured for row in shard], len(rejected))


def _name(shard: int) -> str:
    return f"shard-{shard:06d}.parquet"


class ShardWorker:
    """An open policy with an instrument: the class that Ray Data maps over shards."""

    def __init__(
        self,
        job: dict[str, str],
        open_policy: Callable[[str, Config], Policy],
        make: Callable[[Policy, Config], Measure],
        table: Table,
    ) -> None:
        import torch

        torch.set_num_threads(1)
        config = load(job["config"], "the instrument's configuration")
        self._folder, self._table = Folder(job["folder"]), table
        self._measure = make(open_policy(on_this_node(job["policy"]), config), config)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        reports = [self._shard(int(shard)) for shard in batch["shard"]]
        return {name: [report[name] for report in reports] for name in reports[0]}

    def _shard(self, shard: int) -> dict[str, int]:
        rows = (self._folder / "chosen").read_table(_name(shard)).to_pylist()
        rejected: list[records.Rejected] = []

        def reject(row: Row, reason: ValueError) -> None:
            rejected.append(records.rejected(row[self._table.key], "analyze", str(reason)[:200], row))

        measured = list(self._measure(rows, reject))
        mapping.write_rejected(self._folder, _name(shard), rejected)
        (self._folder / self._table.name).write_table(_name(shard), records.table(measured, self._table.schema))
        return {"shard": shard, "rows": len(rows)}
