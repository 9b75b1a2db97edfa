"""Supervised fine-tuning with Ray Train.   examples -> policy/, metrics.jsonl, checkpoints/"""

from collections.abc import Mapping
from typing import Any

from raml_ray.config import Config
from raml_ray.stages import learners
from raml_ray.storage import Folder


def train_policy(examples: Folder, folder: Folder, policy_path: str, config: Config) -> dict[str, float]:
    """Fine-tune the policy on a folder of EXAMPLE tables, leave it in `folder`/policy and return its figures.

    Run again after a kill, it goes on from the last checkpoint in `folder`.

    Raises: ValueError if there is nothing to train on or the policy folder lacks something.
    """
    if not any(examples.read_table(name, []).num_rows for name in examples.names(suffix=".parquet")):
        raise ValueError(
            f"{examples.path} has no examples: no correct trajectory fits sft.max_length={config.sft.max_length}"
            f" and sft.policies={config.sft.policies}"
        )
    return learners.run(_worker, {"examples": examples.path}, config=config, folder=folder, policy_path=policy_path)


def _worker(arguments: dict[str, Any]) -> Mapping[str, float]:
    # Imported here: the driver and Ray's controller, which read this module too, need no models.
    from raml_ray.text.batches import EXAMPLE, Examples
    from raml_ray.workers import learner, sft_loop

    config = learner.started(arguments["config"])
    folder, policy_path = Folder(arguments["folder"]), str(arguments["policy_path"])
    examples = Examples(Folder(arguments["examples"]).read_tables("", EXAMPLE))
    sharded = learner.loaded(policy_path, config)
    origin = {"num_examples": len(examples), "seed": config.seed}
    start_step, metrics_file = learner.restored(sharded, folder, origin)
    last: dict[str, float] = {}

    def report(step: int, metrics: Mapping[str, float]) -> None:
        last.update(metrics)
        if metrics_file:
            metrics_file.append(step, metrics)

    plan = sft_loop.train(
        sharded,
        examples,
        config.sft,
        config.train,
        seed=config.seed,
        start_step=start_step,
        report=report,
        save=lambda step: learner.saved(sharded, step, folder, origin, config.train.keep_checkpoints),
    )
    learner.save_policy(sharded, folder, policy_path)
    return {"sft/steps": plan.num_steps, "sft/examples": plan.num_examples, "sft/resumed_from_step": start_step} | last
