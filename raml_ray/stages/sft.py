"""Supervised fine-tuning with Ray Train.   examples -> policy/, metrics.jsonl, checkpoints/"""

from collections.abc import Mapping
from typing import Any

from raml_ray.config import Config
from raml_ray.stages import learners
from raml_ray.storage import Folder
from raml_ray.text.batches import EXAMPLE, Examples
from raml_ray.workers import checkpoints, sft_loop


def train_policy(examples: Folder, folder: Folder, policy_path: str, config: Config) -> dict[str, float]:
    """Fine-tune the policy on a folder of EXAMPLE tables, leave it in `folder`/policy and return its figures.

    Run again after a kill, it goes on from the last checkpoint in `folder`.

    Raises: ValueError if there is nothing to train on or the policy folder lacks something.
    """
    if not any(examples.read_table(name, ["prompt_token_ids"]).num_rows for name in examples.names(suffix=".parquet")):
        sft_loop.plan(0, config.sft, config.seed)
    return learners.run(_worker, {"examples": examples.path}, config=config, folder=folder, policy_path=policy_path)


def _worker(arguments: dict[str, Any]) -> Mapping[str, float]:
    config = learners.started(arguments)
    folder, policy_path = Folder(arguments["folder"]), str(arguments["policy_path"])
    examples = Examples(Folder(arguments["examples"]).read_tables("", EXAMPLE))
    learner = learners.loaded(policy_path, config)
    origin = {"num_examples": len(examples), "seed": config.seed}
    start_step, metrics_file = learners.restored(learner, folder, origin)
    last: dict[str, float] = {}

    def report(step: int, metrics: Mapping[str, float]) -> None:
        last.update(metrics)
        if metrics_file:
            metrics_file.append(step, metrics)

    def save(step: int) -> None:
        checkpoints.save(folder.file(learners.CHECKPOINTS), step, learner.state(), origin, keep=config.train.keep_checkpoints)

    plan = sft_loop.train(
        learner, examples, config.sft, config.train, seed=config.seed, start_step=start_step, report=report, save=save
    )
    learners.save_policy(learner, folder, policy_path)
    return {"sft/steps": plan.num_steps, "sft/examples": plan.num_examples, "sft/resumed_from_step": start_step} | last
