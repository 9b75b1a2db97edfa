"""The miniature's base policy, trained from scratch.   -> policy/, metrics.jsonl"""

import ray

from raml_ray import cluster
from raml_ray.metrics_file import MetricsFile
from raml_ray.settings import BaseConfig, MiniatureConfig
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.storage import Folder


def run(context: Context) -> Outcome:
    config = context.config
    cluster.check_fits({f"base.num_threads={config.base.num_threads}": (config.base.num_threads, 0)})
    train = ray.remote(_train).options(num_cpus=config.base.num_threads, max_retries=2)
    figures = ray.get(train.remote(config.miniature, config.base, config.seed, context.folder))
    return Outcome(Counts(config.base.num_steps, config.base.num_steps), figures)


def _train(miniature: MiniatureConfig, base: BaseConfig, seed: int, folder: Folder) -> dict[str, float]:
    """In a process of its own: threads and memory are given back when it ends."""
    import torch

    from raml_ray.miniature import base as recipe

    torch.set_num_threads(base.num_threads)
    (folder / "policy").remove()
    metrics = MetricsFile(folder)
    metrics.truncate_after(0)
    last: dict[str, float] = {}

    def report(step: int, values: dict[str, float]) -> None:
        metrics.append(step, values)
        last.update(values)

    model, tokenizer = recipe.train(miniature, base, seed=seed, report=report)
    recipe.save(model, tokenizer, folder.file("policy"))
    return last | {"parameters": sum(p.numel() for p in model.parameters())}
