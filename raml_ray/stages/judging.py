"""Judging trajectories: Ray Data over killable judges, one verdict shard per trajectory shard."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from raml_ray import records, storage
from raml_ray.records import Verdict
from raml_ray.settings import VerifyConfig
from raml_ray.stages import mapping
from raml_ray.storage import Folder
from raml_ray.workers.judge import JudgePool

logger = logging.getLogger(__name__)

VERDICTS = "verdicts"
START_SECONDS = 300
"""A judge has started, and its first shard been read, by then."""


def judge(step: str, folder: Folder, sources: Sequence[Folder], settings: VerifyConfig) -> tuple[int, dict[str, Any]]:
    """Write a verdict of every trajectory of the sources to `folder`; what is there already and speaks of them stays.

    Returns how many there are, and figures: verdicts and reasons, by count.

    Raises: ConfigError if two trajectories have the same id; RuntimeError if rows were lost, or more than
    verify.max_failed_fraction of the verdicts say nothing about the answer.
    """
    done = set((folder / VERDICTS).names("shard-", ".parquet"))
    wanted: list[str] = []
    missing = []
    most = 0
    for source in sources:
        for name in (source / "trajectories").names("shard-", ".parquet"):
            ids = _ids(source / "trajectories", name)
            wanted += ids
            most = max(most, len(ids))
            verdicts = f"shard-{source.name}-{name.removeprefix('shard-')}"
            if verdicts not in done or _ids(folder / VERDICTS, verdicts) != ids:
                missing.append({"source": source.path, "file": name, "shard": verdicts})
    storage.check_distinct(wanted, [source.path for source in sources])
    if missing:
        # Twice what the judges may take if every answer makes them wait to the end.
        seconds = START_SECONDS + 2 * settings.wall_seconds * most / settings.num_workers
        judged = mapping.over_shards(
            step,
            missing,
            ShardJudge,
            {"folder": folder.path, "settings": settings.model_dump(mode="json")},
            mapping.Workers(1),
            mapping.Patience(seconds, f"verify.wall_seconds={settings.wall_seconds:g}, of {most} answers a shard,"),
        )
        for row in judged:
            logger.debug("judged %s", row["shard"])
    return _counted(folder, wanted, settings)


def _ids(folder: Folder, name: str) -> list[str]:
    ids: list[str] = folder.read_table(name, ["trajectory_id"])["trajectory_id"].to_pylist()
    return ids


class ShardJudge:
    """A pool of killable judges that gives whole shards their verdicts: the class that Ray Data maps over shards."""

    def __init__(self, folder: str, settings: dict[str, Any]) -> None:
        self._folder = Folder(folder)
        self._settings = VerifyConfig.model_validate(settings)
        self._pool = pool(self._settings)
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
            pattern=self._settings.answer_pattern,
        )
        table = records.table(
            (
                {"trajectory_id": row["trajectory_id"], **judgement._asdict()}
                for row, judgement in zip(rows, judgements, strict=True)
            ),
            records.VERDICT,
        )
        (self._folder / VERDICTS).write_table(verdicts, table)


def pool(settings: VerifyConfig) -> JudgePool:
    """Judges as the settings have them."""
    return JudgePool(
        num_workers=settings.num_workers,
        cpu_seconds=settings.cpu_seconds,
        wall_seconds=settings.wall_seconds,
        max_answer_chars=settings.max_answer_chars,
    )


def _counted(folder: Folder, wanted: list[str], settings: VerifyConfig) -> tuple[int, dict[str, Any]]:
    table = (folder / VERDICTS).read_tables("shard-", records.VERDICT)
    mapping.check_complete(folder, wanted, table["trajectory_id"].to_pylist(), [])
    verdicts = Counter(table["verdict"].to_pylist())
    reasons = Counter(
        f"{v}:{r}" for v, r in zip(table["verdict"].to_pylist(), table["reason"].to_pylist(), strict=True)
    )
    failed = sum(count for name, count in verdicts.items() if not Verdict(name).is_judgement)
    if failed > settings.max_failed_fraction * max(table.num_rows, 1):
        raise RuntimeError(
            f"{failed} of {table.num_rows} verdicts are timeouts or errors ({dict(reasons)}), more than"
            f" verify.max_failed_fraction={settings.max_failed_fraction} allows: look at verify.cpu_seconds and the gold answers"
        )
    return table.num_rows, {
        "verdicts": {verdict.value: verdicts.get(verdict.value, 0) for verdict in Verdict},
        "reasons": dict(sorted(reasons.items())),
    }
