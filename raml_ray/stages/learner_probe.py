"""L-hat of fixed trajectories in the metrics of `sft` and `grpo`, every train.probe_every steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raml_ray.config import ConfigError
from raml_ray.records import Verdict
from raml_ray.stages import training_set
from raml_ray.stages.context import Context
from raml_ray.stages.instruments import chosen
from raml_ray.text.batches import Example
from raml_ray.workers import fixed_probe
from raml_ray.workers import policy as policies

if TYPE_CHECKING:
    from raml_ray.settings import TrainConfig
    from raml_ray.workers.sharding import Sharded

Report = Callable[[int, Mapping[str, float]], None]


def examples(context: Context) -> list[Example]:
    """What learners are asked, of the first correct trajectory of each of the first questions; none if it is off.

    Raises: ConfigError if train.probe_data names no finished step, or that holds no correct trajectory.
    """
    train = context.config.train
    if not train.probe_every:
        return []
    source = replace(context, step=context.step.model_copy(update={"data": (train.probe_data,)}))
    rows, questions = training_set.judged(source)
    first: dict[str, chosen.Row] = {}
    for row in rows:
        if Verdict(row["verdict"]) is Verdict.CORRECT:
            first.setdefault(row["question_id"], row)
    if not first:
        raise ConfigError(f"train.probe_data={train.probe_data!r} holds no correct trajectory: name another step")
    tokenizer = policies.load_tokenizer(context.policy_path)
    found = []
    for key, correct in list(first.items())[: train.probe_trajectories]:
        whole = {**correct, "problem": questions[key].problem}
        prompt_ids, response_ids = chosen.token_ids(tokenizer, whole, context.config.prompt)
        found += fixed_probe.examples(
            tokenizer,
            prompt_ids,
            response_ids,
            questions[key].answer,
            suffix=train.probe_suffix,
            until=train.probe_until,
        )
    return found


def reporting(
    report: Report, learner: "Sharded", asked: Sequence[Example], train: "TrainConfig", start_step: int
) -> Report:
    """The report, with the probe's metrics at every train.probe_every-th step, and at once as step 0 where training starts.

    A collective, as the report is.
    """
    if not asked:
        return report
    probe = fixed_probe.FixedProbe(learner, asked, train)
    if start_step == 0:
        report(0, probe())

    def probed(step: int, metrics: Mapping[str, float]) -> None:
        report(step, {**metrics, **probe()} if step % train.probe_every == 0 else metrics)

    return probed
