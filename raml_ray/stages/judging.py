"""Judging trajectories: Ray Data over killable judges on every node, one verdict shard per trajectory shard."""

from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc
import ray

from raml_ray import cluster, records, storage
from raml_ray.config import ConfigError
from raml_ray.records import Judgement, Verdict
from raml_ray.settings import DataConfig, VerifyConfig
from raml_ray.stages import mapping, meters
from raml_ray.stages.progress import Progress
from raml_ray.storage import Folder
from raml_ray.workers.code_judge import CodeJudge
from raml_ray.workers.judge import JudgePool
from raml_ray.workers.sandbox import SandboxUnavailable

VERDICTS = "verdicts"
START_SECONDS = 300
"""A judge has started, and its first shard been read, by then."""
TESTS_OF_A_PROGRAM = 20
"""So many slow tests a program may pass, on average, before judges count as hanging."""


class Judges(Protocol):
    """Who judges (gold answer, trajectory text), whatever kind of answer it is."""

    def judge(self, items: Sequence[tuple[str, str]], pattern: str = "") -> list[Judgement]: ...

    def self_test(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def pool(verify: VerifyConfig, data: DataConfig) -> Judges:
    """Judges of what data.answers says that the gold answers are, as the settings have them.

    Raises: ConfigError if programs are to be judged and cannot be: no sandbox holds here, or a pattern is to find them.
    """
    if data.answers == "code":
        if verify.answer_pattern:
            raise ConfigError(
                "verify.answer_pattern finds final answers, and data.answers=code has programs: leave it empty"
            )
        try:
            return CodeJudge(
                num_workers=verify.num_workers,
                cpu_seconds=verify.code_cpu_seconds,
                wall_seconds=verify.wall_seconds,
                memory_mib=verify.code_memory_mib,
                output_kib=verify.code_output_kib,
            )
        except SandboxUnavailable as error:
            raise ConfigError(f"data.answers=code: {error}") from None
    return JudgePool(
        num_workers=verify.num_workers,
        cpu_seconds=verify.cpu_seconds,
        wall_seconds=verify.wall_seconds,
        max_answer_chars=verify.max_answer_chars,
        judge="choice" if data.answers == "choice" else verify.judge,
    )


class Shard(NamedTuple):
    """A shard of trajectories, and the name of the shard of their verdicts."""

    source: Folder
    file: str
    verdicts: str

    def trajectory_ids(self) -> pa.ChunkedArray:
        return _ids(self.source / "trajectories", self.file)


def judge(
    step: str,
    folder: Folder,
    sources: Sequence[Folder],
    verify: VerifyConfig,
    data: DataConfig,
    *,
    name: str = VERDICTS,
) -> tuple[int, dict[str, Any]]:
    """Write a verdict of every trajectory of the sources to `folder/name`; what is there and speaks of them stays.

    Returns how many there are, and figures: verdicts and reasons, by count. Holds ids alone, however many there are.

    Raises: ConfigError if two trajectories have the same id; RuntimeError if rows were lost, or more than
    verify.max_failed_fraction of the verdicts say nothing about the answer.
    """
    target = folder / name
    done = set(target.names("shard-", ".parquet"))
    wanted = shards(sources)
    ids = [shard.trajectory_ids() for shard in wanted]
    _check_distinct(ids, sources)
    missing = [
        {"source": shard.source.path, "file": shard.file, "shard": shard.verdicts}
        for shard, expected in zip(wanted, ids, strict=True)
        if shard.verdicts not in done or not _ids(target, shard.verdicts).equals(expected)
    ]
    if missing:
        most = max(len(expected) for expected in ids)
        # Twice what the judges may take if every answer makes them wait to the end.
        slowest = verify.wall_seconds * (TESTS_OF_A_PROGRAM if data.answers == "code" else 1)
        seconds = START_SECONDS + 2 * slowest * most / verify.num_workers
        judged = mapping.over_shards(
            step,
            missing,
            ShardJudge,
            {
                "folder": target.path,
                "verify": verify.model_dump(mode="json"),
                "data": data.model_dump(mode="json"),
            },
            mapping.Workers(num_nodes(ray.nodes()), placement={"scheduling_strategy": "SPREAD"}),
            cluster.Patience(seconds, f"verify.wall_seconds={verify.wall_seconds:g}, of {most} answers a shard,"),
        )
        sizes = {shard.verdicts: len(expected) for shard, expected in zip(wanted, ids, strict=True)}
        total, left = sum(sizes.values()), sum(sizes[row["shard"]] for row in missing)
        alone = sources != [folder]  # and not beside the sampling of what is judged
        with Progress(
            folder, step, "verify", unit="verdicts", total=total, done=total - left, in_metrics=alone
        ) as progress:
            for row in judged:
                progress.add(sizes[row["shard"]])
    return _counted(target, wanted, ids, verify)


def num_nodes(nodes: Sequence[dict[str, Any]]) -> int:
    """How many nodes, as `ray.nodes()` lists them, can hold a judge: alive, with a logical CPU. One at least."""
    return max(1, sum(1 for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1))


def shards(sources: Sequence[Folder]) -> list[Shard]:
    """The trajectory shards of the sources, in their order, with the names of their verdicts."""
    return [
        Shard(source, name, f"shard-{source.name}-{name.removeprefix('shard-')}")
        for source in sources
        for name in (source / "trajectories").names("shard-", ".parquet")
    ]


def _ids(folder: Folder, name: str) -> pa.ChunkedArray:
    return folder.read_table(name, ["trajectory_id"])["trajectory_id"]


def _check_distinct(ids: Sequence[pa.ChunkedArray], sources: Sequence[Folder]) -> None:
    together = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    if pc.count_distinct(together).as_py() < len(together):
        storage.check_distinct(together.to_pylist(), [source.path for source in sources])


class ShardJudge:
    """A pool of killable judges that gives whole shards their verdicts: the class that Ray Data maps over shards."""

    def __init__(self, folder: str, verify: dict[str, Any], data: dict[str, Any]) -> None:
        self._folder = Folder(folder)
        self._verify = VerifyConfig.model_validate(verify)
        self._pool = pool(self._verify, DataConfig.model_validate(data))
        self._pool.self_test()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        for source, shard, verdicts in zip(batch["source"], batch["file"], batch["shard"], strict=True):
            self._judge(Folder(str(source)), str(shard), str(verdicts))
        return {"shard": [str(name) for name in batch["shard"]]}

    def _judge(self, source: Folder, shard: str, verdicts: str) -> None:
        questions = storage.questions(source)
        rows = (source / "trajectories").read_table(shard, ["trajectory_id", "question_id", "text"]).to_pylist()
        judgements = self._pool.judge(
            [(questions[row["question_id"]].answer, row["text"]) for row in rows],
            pattern=self._verify.answer_pattern,
        )
        table = records.table(
            (
                {"trajectory_id": row["trajectory_id"], **judgement._asdict()}
                for row, judgement in zip(rows, judgements, strict=True)
            ),
            records.VERDICT,
        )
        self._folder.write_table(verdicts, table)
        count_verdicts(judgements)


def _counted(
    target: Folder, wanted: Sequence[Shard], ids: Sequence[pa.ChunkedArray], verify: VerifyConfig
) -> tuple[int, dict[str, Any]]:
    unasked = set(target.names("shard-", ".parquet")) - {shard.verdicts for shard in wanted}
    if unasked:
        raise RuntimeError(
            f"{target.path} holds verdicts that nobody asked for ({', '.join(sorted(unasked)[:3])}): start the step anew"
            " with --redo"
        )
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for shard, expected in zip(wanted, ids, strict=True):
        table = target.read_table(shard.verdicts, ["trajectory_id", "verdict", "reason"])
        if not table["trajectory_id"].equals(expected):
            mapping.check_complete(target, expected.to_pylist(), table["trajectory_id"].to_pylist(), [])
            raise RuntimeError(
                f"the verdicts of {target.file(shard.verdicts)} are not in the order of their trajectories"
            )
        verdicts.update(table["verdict"].to_pylist())
        reasons.update(
            f"{v}:{r}" for v, r in zip(table["verdict"].to_pylist(), table["reason"].to_pylist(), strict=True)
        )
    check_failed(verdicts, reasons, verify)
    return verdicts.total(), {
        "verdicts": {verdict.value: verdicts.get(verdict.value, 0) for verdict in Verdict},
        "reasons": dict(sorted(reasons.items())),
    }


def count_verdicts(judgements: Sequence[Judgement]) -> None:
    """Tell Prometheus of verdicts that were just given."""
    for verdict, number in Counter(judgement.verdict.value for judgement in judgements).items():
        meters.count("raml_judge_verdicts", number, verdict=verdict)


def check_failed(verdicts: Counter[str], reasons: Counter[str], verify: VerifyConfig) -> None:
    """Nothing, if few enough verdicts say nothing about the answer.

    Raises: RuntimeError if it is more than verify.max_failed_fraction of them.
    """
    failed = sum(count for name, count in verdicts.items() if not Verdict(name).is_judgement)
    if failed > verify.max_failed_fraction * verdicts.total():
        raise RuntimeError(
            f"{failed} of {verdicts.total()} verdicts are timeouts or errors ({dict(reasons)}), more than"
            f" verify.max_failed_fraction={verify.max_failed_fraction} allows: look at verify.cpu_seconds and the gold answers"
        )
