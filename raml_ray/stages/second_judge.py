"""A second judge of an evaluation's trajectories: its accuracy beside the first one's, and where the two disagree."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raml_ray.config import Config, ConfigError
from raml_ray.records import Verdict
from raml_ray.stages import judging
from raml_ray.stages.context import Context


def check(config: Config) -> None:
    """Refuse a comparison that says nothing. Raises: ConfigError naming evaluate.compare_judge."""
    second = config.evaluate.compare_judge
    if second and config.data.answers != "math":
        raise ConfigError(
            f"evaluate.compare_judge={second}: there are two judges of mathematics alone, and data.answers is"
            f" {config.data.answers}: leave it empty"
        )
    if second and second == config.verify.judge:
        raise ConfigError(
            f"evaluate.compare_judge={second} is verify.judge itself: name the other one, or leave it empty"
        )


def compared(context: Context, rows: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> dict[str, Any]:
    """Verdicts of the second judge under verdicts_<its name>/, and by set how the two compare; empty without one.

    `rows` are the step's trajectories with the first judge's verdicts. A trajectory that either could not decide on is
    `unjudged` and counts in no other figure.
    """
    config, folder = context.config, context.folder
    if not config.evaluate.compare_judge:
        return {}
    first, second = config.verify.judge, config.evaluate.compare_judge
    name = f"{judging.VERDICTS}_{second}"
    verify = config.verify.model_copy(update={"judge": second})
    judging.judge(context.step.name, folder, [folder], verify, config.data, name=name)
    verdicts: dict[str, Verdict] = {}
    for shard in judging.shards([folder]):
        table = (folder / name).read_table(shard.verdicts, ["trajectory_id", "verdict"])
        verdicts.update((row["trajectory_id"], Verdict(row["verdict"])) for row in table.to_pylist())
    pairs: dict[str, Counter[tuple[Verdict, Verdict]]] = {name: Counter() for name in sets}
    for row in rows:
        of_set = row["question_id"].partition("/")[0]
        pairs[of_set][Verdict(row["verdict"]), verdicts[row["trajectory_id"]]] += 1
    return {"judges": {name: figures(counts, first, second) for name, counts in pairs.items()}}


def figures(pairs: Counter[tuple[Verdict, Verdict]], first: str, second: str) -> dict[str, Any]:
    """Accuracies over the trajectories that both judged (null if there are none), and counts of disagreement."""
    correct: Counter[tuple[bool, bool]] = Counter()
    for (one, other), count in pairs.items():
        if one.is_judgement and other.is_judgement:
            correct[one is Verdict.CORRECT, other is Verdict.CORRECT] += count
    num = correct.total()
    return {
        "accuracy": {
            first: (correct[True, True] + correct[True, False]) / num if num else None,
            second: (correct[True, True] + correct[False, True]) / num if num else None,
        },
        f"only_{first}": correct[True, False],
        f"only_{second}": correct[False, True],
        "judged": num,
        "unjudged": pairs.total() - num,
    }
