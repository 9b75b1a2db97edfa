"""What a step asks of the cluster at its largest moment, before it is started."""

from raml_ray.cluster import Need
from raml_ray.config import Config, Stage
from raml_ray.stages.context import samples_answers

DATA_TASKS = {"Ray Data's own tasks": Need(1, 1)}


def asked(config: Config, stage: Stage) -> dict[str, Need]:
    """Who asks for what, for `cluster.check_fits`."""
    match stage:
        case "base":
            return {f"base.num_threads={config.base.num_threads}": Need(1, config.base.num_threads)}
        case "generate":
            return of_engines(config, config.generate.num_engines, "generate") | DATA_TASKS
        case "evaluate":
            return of_engines(config, config.evaluate.num_engines, "evaluate") | DATA_TASKS
        case "sft":
            return _learners(config) | DATA_TASKS
        case "grpo":
            return of_engines(config, config.grpo.num_engines, "grpo") | _learners(config)
        case "analyze":
            num, gpus = config.analyze.num_workers, config.analyze.gpus_per_worker
            workers = {f"analyze.num_workers={num}": Need(num, 1, gpus)}
            # Engines start when the workers are gone.
            engines = of_engines(config, config.answers.num_engines, "answers") if samples_answers(config) else {}
            return max(workers, engines, key=_devices) | DATA_TASKS
        case _:
            return dict(DATA_TASKS)


def _learners(config: Config) -> dict[str, Need]:
    train = config.train
    who = f"train.num_workers={train.num_workers} of train.cpus_per_worker={train.cpus_per_worker}"
    return {who: Need(train.num_workers, train.cpus_per_worker, train.gpus_per_worker, train.node_labels)}


def of_engines(config: Config, num: int | tuple[int, int], stage: str) -> dict[str, Need]:
    """The fewest engines that the stage starts with."""
    engine, fewest = config.engine, num if isinstance(num, int) else num[0]
    who = f"{stage}.num_engines={fewest} of engine.cpus_per_engine={engine.cpus_per_engine}"
    return {who: Need(fewest, engine.cpus_per_engine, engine.gpus_per_engine, engine.node_labels)}


def _devices(asked: dict[str, Need]) -> tuple[float, float]:
    """GPUs and CPUs together."""
    return sum(need.total("GPU") for need in asked.values()), sum(need.total("CPU") for need in asked.values())
