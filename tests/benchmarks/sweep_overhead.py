"""What Tune adds to a trial: a sweep's trials beside the same steps called one after the other.

    python -m tests.benchmarks.sweep_overhead [--trials 4] [--rounds 3] [--json FILE]

The steps are evaluations with the scripted engine: they need Ray Data, an engine actor and judges, and no model. The ways
take turns on one Ray, the first of a round being the last of the one before; what is compared are the seconds by the clock
from the first trial's step to the last one's end. What Tune takes to start and to end is part of what it adds: of few trials
it is the larger part.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import ray

from raml_ray import storage
from raml_ray.config import Config, override
from raml_ray.stages import ablate, pipeline, sweep
from raml_ray.tracking import Tracker
from tests.stages.test_ablate import small


def sweep_of(root: Path, name: str, trials: int) -> Config:
    space = {"evaluate.temperature": [round(0.1 * (trial + 1), 1) for trial in range(trials)]}
    return override(small(root), {"name": name, "ablate.space": space, "ablate.max_concurrent": 1})


def shared_made(config: Config) -> tuple[sweep.Sweep, storage.Folder]:
    """The sweep with what its trials share made already: it is no trial's."""
    found = sweep.expanded(config, config.ablate.space)
    folder = storage.run_folder(config.root, config.name)
    tracker = Tracker(found.config, folder)
    pipeline.run_steps(found.config, found.shared(), folder, tracker)
    tracker.close()
    return found, folder


def direct(config: Config) -> float:
    """Seconds of the trials' own steps, called one after the other."""
    found, folder = shared_made(config)
    tracker = Tracker(found.config, folder)
    began = time.perf_counter()
    for trial in found.trials:
        pipeline.run_steps(found.config, found.own(trial), folder, tracker)
    seconds = time.perf_counter() - began
    tracker.close()
    return seconds


def under_tune(config: Config) -> float:
    """Seconds of the same steps as trials."""
    found, folder = shared_made(config)
    ablate._keep(found, folder)
    began = time.perf_counter()
    failed = ablate._tuned(found, folder, ())
    assert not failed, failed
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    ray.init("local", num_cpus=4, object_store_memory=300 * 2**20, log_to_driver=False)
    rows = []
    with tempfile.TemporaryDirectory(prefix="raml") as folder:
        root = Path(folder)
        ways = [("direct", direct), ("tune", under_tune)]
        for name, way in ways:  # processes, imports and files are there for both
            way(sweep_of(root, f"warm_{name}", 1))
        for number in range(options.rounds):
            took = {name: way(sweep_of(root, f"{name}_{number}", options.trials)) for name, way in ways}
            rows.append({name: round(took[name], 2) for name in ("direct", "tune")})
            ways.reverse()
    ray.shutdown()
    added = [(row["tune"] - row["direct"]) / options.trials for row in rows]
    found = {"median": statistics.median(added), "lowest": min(added), "highest": max(added)}
    per_trial = {name: round(seconds, 2) for name, seconds in found.items()}
    text = json.dumps({"trials": options.trials, "rounds": rows, "added_seconds_per_trial": per_trial}, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
