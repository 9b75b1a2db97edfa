"""A verdict of every trajectory.   trajectories -> verdicts/"""

from collections import Counter
from typing import Any

from raml_ray import records, storage
from raml_ray.config import ConfigError
from raml_ray.records import Verdict
from raml_ray.stages import judging
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.storage import Folder


def run(context: Context) -> Outcome:
    sources = context.sources
    if not sources:
        raise ConfigError(f"step {context.step.name!r} takes no data: name the steps whose trajectories it judges")
    rows_in = sum(storage.trajectories(source).num_rows for source in sources)
    judged, figures = judging.judge(context.folder, sources, context.config.verify)
    agreement = _agreement(context.folder, sources)
    if agreement:
        figures["agreement"] = agreement
    return Outcome(Counts(rows_in, judged), figures)


def _agreement(folder: Folder, sources: list[Folder]) -> dict[str, Any]:
    """Our verdicts against the published ones, by policy and together; empty where none were published."""
    verdicts = dict(
        zip(
            *(
                (folder / judging.VERDICTS).read_tables("shard-", records.VERDICT)[name].to_pylist()
                for name in ("trajectory_id", "verdict")
            ),
            strict=True,
        )
    )
    pairs: Counter[tuple[bool, bool]] = Counter()
    for source in sources:
        if not source.exists("labels.parquet"):
            continue
        for row in source.read_table("labels.parquet").to_pylist():
            pairs[verdicts[row["trajectory_id"]] == Verdict.CORRECT, row["label"]] += 1
    if not pairs:
        return {}
    return {
        "both_correct": pairs[True, True],
        "both_wrong": pairs[False, False],
        "only_ours": pairs[True, False],
        "only_published": pairs[False, True],
        "fraction": (pairs[True, True] + pairs[False, False]) / pairs.total(),
    }
