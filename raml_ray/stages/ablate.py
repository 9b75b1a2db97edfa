"""Ablations: the trials of a sweep under Ray Tune, each its own Ray Train runs.   a preset, a search space -> a run

What several trials share is made first. Then each trial runs the steps that are its alone; a step that is finished is
never done again, so a sweep that was killed goes on where it stopped, and one that is finished ends at once. All that is
needed for this stands in the steps' folders: Tune's own state is never read back, since `Tuner.restore` unpickles it.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray import tune

from raml_ray import cluster, stopping, storage
from raml_ray.config import Config, ConfigError, dump, fingerprint, load
from raml_ray.metrics_file import MetricsTail
from raml_ray.redacted import without_secrets
from raml_ray.settings import AblateConfig
from raml_ray.stages import early_stopping, grpo, inputs, learners, pipeline
from raml_ray.stages.needs import asked as needs_of
from raml_ray.stages.sweep import ATTEMPTS, PRESET_FILE, SWEEP_FILE, Sweep, Trial, expanded
from raml_ray.stages.trial_callbacks import TrialCallbacks
from raml_ray.storage import SUMMARY, Folder
from raml_ray.tracking import Tracker
from raml_ray.tracking_commands import TrialPlace

logger = logging.getLogger(__name__)

TUNE, TRIALS, RESULT = "tune", "trials", "result.json"
TRIAL_CPUS = 0.01
"""Of the process that drives a trial: what it starts asks for CPUs itself, and would otherwise wait for them for ever."""
POLL_S = 1.0
STEP = "training_step"


def run(config: Config) -> Folder:
    """Run the sweep `ablate.space` over the steps of the configuration; its report shows every trial.

    Raises: ConfigError if the folder holds another sweep, or nothing of a trial fits the cluster; RuntimeError that
    names the trials that failed, after all others are done and reported.
    """
    sweep = expanded(config, config.ablate.space)
    early_stopping.check(sweep, config.ablate)
    storage.check_reachable(config.root)
    inputs.check(sweep.config, sweep.config.steps)
    folder = storage.run_folder(config.root, config.name)
    _keep(sweep, folder)
    folder.write_text(PRESET_FILE, without_secrets(dump(config)) + "\n")
    tracker = Tracker(sweep.config, folder)
    try:
        with cluster.connected(sweep.config), stopping.on_sigterm(config.cluster.stop_timeout_s):
            cluster.check_root(Folder(storage.absolute(config.root)))
            began = time.monotonic()
            failed = _shared(sweep, folder, tracker)
            failed |= _tuned(sweep, folder, failed)
            _note(sweep, folder, time.monotonic() - began)
            reports = [step.name for step in sweep.config.steps if step.stage == "report"]
            pipeline.run_steps(sweep.config, reports, folder, tracker)
    finally:
        tracker.close()
    if failed:
        told = "\n  ".join(f"{name}: {why}" for name, why in failed.items())
        raise RuntimeError(
            f"{len(failed)} of {len(sweep.trials)} trials failed; the same command tries them again\n  {told}"
        )
    return folder


def _keep(sweep: Sweep, folder: Folder) -> None:
    """Leave the sweep's trials in its folder. Raises: ConfigError if others are there."""
    trials = [trial._asdict() for trial in sweep.trials]
    written = json.loads(json.dumps({"trials": trials}))
    if folder.exists(SWEEP_FILE) and (was := folder.read_json(SWEEP_FILE)) != written:
        names = [[trial["name"] for trial in each["trials"]] for each in (was, written)]
        raise ConfigError(
            f"{folder.path} holds a sweep over {', '.join(names[0])}, not over {', '.join(names[1])}: give this one a name"
            " of its own (name=...)"
        )
    folder.write_json(SWEEP_FILE, written)


def _note(sweep: Sweep, folder: Folder, seconds: float) -> None:
    """Say which trials are whole, whichever attempt finished them, and what this attempt took."""
    for trial in sweep.trials:
        if _is_whole(trial, folder):
            (folder / TRIALS / trial.name).write_json(RESULT, {"status": "finished", "error": None})
    before = folder.read_json(ATTEMPTS) if folder.exists(ATTEMPTS) else []
    folder.write_json(ATTEMPTS, [*before, {"seconds": round(seconds, 2)}])


def _shared(sweep: Sweep, folder: Folder, tracker: Tracker) -> dict[str, str]:
    """Make what several trials need; the trials that a failure costs, with the last line of what they died of."""
    broken: dict[str, str] = {}
    at_once = sweep.config.cluster.steps_at_once
    pipeline.run_steps(sweep.config, sweep.shared(), folder, tracker, at_once=at_once, failed=broken)
    failed = {}
    for trial in sweep.trials:
        if causes := [broken[name] for name in trial.steps.values() if name in broken]:
            failed[trial.name] = causes[0]
            (folder / TRIALS / trial.name).write_json(RESULT, {"status": "failed", "error": causes[0]})
    return failed


def _tuned(sweep: Sweep, folder: Folder, lost: Collection[str]) -> dict[str, str]:
    """Run every trial that is not lost; the failed ones, with the last line of what they died of."""
    settings = sweep.config.ablate
    left = [trial for trial in sweep.trials if trial.name not in lost and not _is_done(trial, folder)]
    if not left:
        return {}
    # Trials are compared with all others: of those that have ended, Tune is told again what their metrics.jsonl hold.
    compared = [trial for trial in sweep.trials if trial.name not in lost]
    trials = {trial.name: trial for trial in (left if settings.scheduler == "none" else compared)}
    at_once = trials_at_once(sweep)
    logger.info("%d of %d trials to do, %d at once", len(left), len(sweep.trials), at_once)
    own = {name: sweep.own(trial) for name, trial in trials.items()}
    payload = {
        "config": dump(sweep.config),
        "folder": folder.path,
        "steps": own,
        "shown": {name: trial.steps for name, trial in trials.items()},
        "values": {name: trial.values for name, trial in trials.items()},
        "compared": "" if settings.scheduler == "none" else settings.metric,
    }
    reserved = {name: [grpo.place_name(folder / step) for step in steps] for name, steps in own.items()}
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose `verbose=0` still prints a table, and where Tune's own files lie
    # On Ctrl-C Tune's own handler returns, as if its scheduler had ended all trials that are not through.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    results = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, payload=payload), {"CPU": TRIAL_CPUS}),
        param_space={"trial": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once,
            scheduler=_scheduler(settings),
            # A process that has ended its trial takes the next one; one that was stopped amid its steps cannot.
            reuse_actors=settings.scheduler == "none",
        ),
        run_config=tune.RunConfig(
            # A name per set of trials that are left: what is finished stands in the steps' folders, nowhere else.
            name=fingerprint(sorted(trials)),
            **learners.kept_at(folder / TUNE),
            verbose=0,
            callbacks=[TrialCallbacks(reserved)],
        ),
    ).fit()
    failed = {}
    for result in results:
        name = result.config["trial"]
        if result.error:
            failed[name] = pipeline.last_line(result.error)
            logger.warning("trial %s failed: %s", name, failed[name])
        elif not _is_whole(trials[name], folder):
            logger.info("trial %s was stopped early", name)
        if result.error or not _is_whole(trials[name], folder):
            status = "failed" if result.error else "stopped"
            (folder / TRIALS / name).write_json(RESULT, {"status": status, "error": failed.get(name)})
    return failed


def _is_done(trial: Trial, folder: Folder) -> bool:
    """Whether nothing of the trial is left to do: it is whole, or was stopped early."""
    place = folder / TRIALS / trial.name
    return _is_whole(trial, folder) or (place.exists(RESULT) and place.read_json(RESULT)["status"] == "stopped")


def _is_whole(trial: Trial, folder: Folder) -> bool:
    return all((folder / name).exists(SUMMARY) for name in trial.steps.values())


def _scheduler(settings: AblateConfig) -> tune.schedulers.TrialScheduler | None:
    if settings.scheduler == "none":
        return None
    return tune.schedulers.ASHAScheduler(
        time_attr=STEP,
        metric=settings.metric,
        mode="max",
        max_t=settings.most_steps,
        grace_period=settings.grace_steps,
        reduction_factor=settings.reduction_factor,
    )


def trials_at_once(sweep: Sweep) -> int:
    """Trials that the cluster has room for side by side, at most ablate.max_concurrent.

    Each starts worker groups that wait until they fit whole: of more trials than there is room for none would get on.

    Raises: ConfigError if not even one fits.
    """
    steps = [step for step in sweep.config.steps if step.stage != "report"]
    needs = [needs_of(sweep.config.for_step(step.name), step.stage) for step in steps]
    for need in needs:
        cluster.check_fits(need, sweep.config.cluster.wait_for_resources_s)
    room = room_for(needs, ray.cluster_resources())
    return min(room, sweep.config.ablate.max_concurrent or room)


def room_for(needs: Sequence[cluster.Asked], there: Mapping[str, float]) -> int:
    """How many trials fit side by side into these resources: each is given what its greediest step needs of each."""
    rooms = [
        int(there.get(resource, 0) // most)
        for resource in ("CPU", "GPU")
        if (most := max(sum(entry.total(resource) for entry in need.values()) for need in needs))
    ]
    return min(rooms)


def _trial(point: Mapping[str, Any], *, payload: Mapping[str, Any]) -> None:
    """One trial, in a process of Tune's: its steps in order, their training metrics told to Tune as they come."""
    logging.getLogger("raml_ray").setLevel(logging.INFO)
    config, folder, name = load(payload["config"], "the sweep"), Folder(payload["folder"]), str(point["trial"])
    steps = payload["steps"][name]
    error: list[BaseException] = []

    def work() -> None:
        tracker = Tracker(config, folder, TrialPlace(folder / TRIALS / name, payload["values"][name]))
        try:
            pipeline.run_steps(config, steps, folder, tracker)
            tracker.figures = evaluated(config, folder, payload["shown"][name])
        except BaseException as raised:  # whatever it is, the thread that waits raises it
            error.append(raised)
        finally:
            tracker.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    for row in _told(_rows_while(thread, [folder / step for step in steps]), payload["compared"]):
        tune.report(row)
    if error:
        raise error[0]
    if not payload["compared"]:
        tune.report({"done_steps": len(steps)})


def evaluated(config: Config, folder: Folder, steps: Mapping[str, str]) -> dict[str, float]:
    """What the trial's evaluations found, by the preset's name of the step, set and metric, for MLflow's comparisons: the
    report has the intervals."""
    found: dict[str, float] = {}
    for name, step in steps.items():
        if config.step(step).stage != "evaluate":
            continue
        for each, figures in storage.summary(folder / step)["figures"]["sets"].items():
            means = {metric: value["mean"] for metric, value in figures.items() if isinstance(value, Mapping)}
            found |= {f"{name}/{each}/{metric}": value for metric, value in means.items() if value is not None}
    return found


def _told(rows: Iterable[Mapping[str, float]], compared: str) -> Iterator[dict[str, float]]:
    """The lines with their numbers; where trials are compared by a metric those that hold it: Tune ends the sweep over any
    other, and a trial's evaluation writes lines too."""
    held = (row for row in rows if not compared or compared in row)
    for number, row in enumerate(held, 1):
        yield {**row, STEP: number}


def _rows_while(thread: threading.Thread, folders: Sequence[Folder]) -> Iterator[dict[str, float]]:
    """What the steps append to their metrics.jsonl, until the thread has ended."""
    tails = [MetricsTail(folder) for folder in folders]
    is_last = False
    while not is_last:
        thread.join(POLL_S)
        is_last = not thread.is_alive()
        for tail in tails:
            yield from (dict(row) for row in tail.read())
            tail.advance()
