"""The policy that a run starts from.   -> policy/, metrics.jsonl

The miniature's, trained from scratch; or one of random weights whose tokenizer is trained on the question set's text.
"""

from collections.abc import Mapping
from typing import Any

import ray

from raml_ray import cluster
from raml_ray.metrics_file import MetricsFile, read_metrics
from raml_ray.settings import BaseConfig, MiniatureConfig
from raml_ray.stages import known_rows, needs, sources
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.storage import Folder
from raml_ray.text import questions


def run(context: Context) -> Outcome:
    config = context.config
    if config.base.kind == "random":
        return _random(context)
    cluster.check_fits(needs.asked(config, "base"), config.cluster.wait_for_resources_s)
    train = ray.remote(_train).options(
        num_cpus=config.base.num_threads, max_retries=2, scheduling_strategy=cluster.ANYWHERE
    )
    asked = train.remote(config.miniature, config.base, config.seed, context.folder)
    figures = cluster.answer(asked, f"step {context.step.name!r}: the base policy's training", _patience(config.base))
    # What was trained is what the metrics say: the last step is always logged.
    return Outcome(Counts(config.base.num_steps, int(read_metrics(context.folder)[-1]["step"])), figures)


def _patience(base: BaseConfig) -> cluster.Patience:
    return cluster.Patience(base.timeout_s, f"base.timeout_s={base.timeout_s:g}")


def _train(miniature: MiniatureConfig, base: BaseConfig, seed: int, folder: Folder) -> dict[str, float]:
    """In a process of its own: threads and memory are given back when it ends."""
    import torch

    from raml_ray.miniature import base as recipe

    torch.set_num_threads(base.num_threads)
    (folder / "policy").remove()
    last: dict[str, float] = {}
    with MetricsFile(folder) as metrics:
        metrics.truncate_after(-1)

        def report(step: int, values: Mapping[str, float]) -> None:
            metrics.append(step, values)
            last.update(values)

        model, tokenizer = recipe.train(miniature, base, seed=seed, report=report)
    with (folder / "policy").filled() as made:
        recipe.save(model, tokenizer, made)
    return last | {"parameters": sum(p.numel() for p in model.parameters())}


def _random(context: Context) -> Outcome:
    """Of each row the text of every column that is mapped trains the tokenizer."""
    data = context.config.data
    rows = [row.value or {} for row in sources.rows(data)]
    data = known_rows.resolved(data)
    columns = {"problem": "problem", "answer": "answer", **data.columns, **data.texts}
    found = [
        [str(value) for column in sorted(set(columns.values())) if (value := _value(row, column)) is not None]
        for row in rows
    ]
    texts = [text for row in found for text in row]
    make = ray.remote(_fresh).options(scheduling_strategy=cluster.ANYWHERE)
    asked = make.remote(texts, context.config.base, context.config.seed, context.folder / "policy")
    who = f"step {context.step.name!r}: the making of a random policy"
    figures = cluster.answer(asked, who, _patience(context.config.base))
    textless = sum(1 for row in found if not row)
    return Outcome(Counts(len(rows), len(rows) - textless, textless), figures)


def _value(row: Mapping[str, Any], column: str) -> Any:
    try:
        return questions.lookup(row, column)
    except KeyError:
        return None


def _fresh(texts: list[str], base: BaseConfig, seed: int, folder: Folder) -> dict[str, float]:
    from raml_ray.miniature.base import save
    from raml_ray.workers import fresh

    tokenizer = fresh.tokenizer(texts, base.vocab_size)
    model = fresh.model(base, tokenizer, seed=seed)
    folder.remove()
    with folder.filled() as made:
        save(model, tokenizer, made)
    return {"parameters": sum(p.numel() for p in model.parameters()), "vocab_size": len(tokenizer)}
