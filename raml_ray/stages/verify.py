"""A verdict of every trajectory.   trajectories -> verdicts/"""

from collections import Counter, defaultdict
from typing import Any

from raml_ray import storage
from raml_ray.config import ConfigError
from raml_ray.records import Verdict
from raml_ray.stages import judging
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.storage import Folder


def run(context: Context) -> Outcome:
    sources = context.sources
    config = context.config
    if not sources:
        raise ConfigError(f"step {context.step.name!r} takes no data: name the steps whose trajectories it judges")
    rows_in = sum(int(storage.summary(source)["counts"]["rows_out"]) for source in sources)
    judged, figures = judging.judge(context.step.name, context.folder, sources, config.verify, config.data)
    agreement = _agreement(context.folder, sources)
    if agreement:
        figures["agreement"] = agreement
    return Outcome(Counts(rows_in, judged), figures)


def _agreement(folder: Folder, sources: list[Folder]) -> dict[str, Any]:
    """Our verdicts against the published ones, together and by policy; empty where none were published.

    A timeout or error of the judge says nothing about the answer: those are counted as `unjudged` and left out.
    """
    pairs: dict[str, Counter[tuple[Verdict, bool]]] = defaultdict(Counter)
    for source in sources:
        if not source.exists("labels.parquet"):
            continue
        published = source.read_table("labels.parquet")
        labels = dict(zip(published["trajectory_id"].to_pylist(), published["label"].to_pylist(), strict=True))
        for shard in judging.shards([source]):
            held = (source / "trajectories").read_table(shard.file, ["policy_id"])["policy_id"].to_pylist()
            judged = (folder / judging.VERDICTS).read_table(shard.verdicts, ["trajectory_id", "verdict"]).to_pylist()
            for policy, row in zip(held, judged, strict=True):
                if row["trajectory_id"] in labels:
                    pairs[policy][Verdict(row["verdict"]), labels[row["trajectory_id"]]] += 1
    if not pairs:
        return {}
    together = sum(pairs.values(), Counter[tuple[Verdict, bool]]())
    return _table(together) | {"by_policy": {policy: _table(pairs[policy]) for policy in sorted(pairs)}}


def _table(pairs: Counter[tuple[Verdict, bool]]) -> dict[str, Any]:
    """How often which of the two says correct; `fraction` is the share of judged ones in which both say the same."""
    judged: Counter[tuple[bool, bool]] = Counter()
    for (verdict, label), count in pairs.items():
        if verdict.is_judgement:
            judged[verdict is Verdict.CORRECT, label] += count
    agreed = judged[True, True] + judged[False, False]
    return {
        "both_correct": judged[True, True],
        "both_wrong": judged[False, False],
        "only_ours": judged[True, False],
        "only_published": judged[False, True],
        "unjudged": pairs.total() - judged.total(),
        "fraction": agreed / judged.total() if judged else None,
    }
