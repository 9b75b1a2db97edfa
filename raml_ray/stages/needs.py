"""What a step asks of the cluster at its largest moment, before it is started."""

from raml_ray.config import Config, Stage
from raml_ray.stages import learners
from raml_ray.stages.context import samples_answers

DATA_TASKS = {"Ray Data's own tasks": (1.0, 0.0)}


def asked(config: Config, stage: Stage) -> dict[str, tuple[float, float]]:
    """Who asks for how many logical CPUs and GPUs, for `cluster.check_fits`."""
    match stage:
        case "base":
            return {f"base.num_threads={config.base.num_threads}": (float(config.base.num_threads), 0.0)}
        case "generate":
            return _engines(config, config.generate.num_engines, "generate") | DATA_TASKS
        case "evaluate":
            return _engines(config, config.evaluate.num_engines, "evaluate") | DATA_TASKS
        case "sft":
            return learners.asked(config.train) | DATA_TASKS
        case "grpo":
            return _engines(config, config.grpo.num_engines, "grpo") | learners.asked(config.train)
        case "analyze":
            num, gpus = config.analyze.num_workers, config.analyze.gpus_per_worker
            workers = {f"analyze.num_workers={num}": (float(num), float(num * gpus))}
            # Engines start when the workers are gone.
            engines = _engines(config, config.answers.num_engines, "answers") if samples_answers(config) else {}
            return max(workers, engines, key=_devices) | DATA_TASKS
        case _:
            return dict(DATA_TASKS)


def _engines(config: Config, num: int | tuple[int, int], stage: str) -> dict[str, tuple[float, float]]:
    """The fewest engines that the stage starts with."""
    engine, fewest = config.engine, num if isinstance(num, int) else num[0]
    who = f"{stage}.num_engines={fewest} of engine.cpus_per_engine={engine.cpus_per_engine}"
    return {who: (fewest * engine.cpus_per_engine, fewest * engine.gpus_per_engine)}


def _devices(asked: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """GPUs and CPUs together."""
    return sum(gpus for _, gpus in asked.values()), sum(cpus for cpus, _ in asked.values())
