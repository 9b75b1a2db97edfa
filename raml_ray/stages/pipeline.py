"""A run: its steps in order, each finished once, resumed when it was cut off, and refused when its settings changed."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from raml_ray import cluster, stopping, storage
from raml_ray.config import Config, ConfigError, Stage, Step, dump, fingerprint, flatten, override
from raml_ray.memory import PeakMemory
from raml_ray.provenance import version_tags, versions
from raml_ray.redacted import without_secrets
from raml_ray.stages import chosen, needs, progress, side_by_side
from raml_ray.stages import inputs as outside
from raml_ray.stages.context import Context, Outcome, changes, manifest, narrowed, probed
from raml_ray.storage import SUMMARY, Folder
from raml_ray.tracking import Tracker

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
BEFORE_ANY_RESULT = {
    MANIFEST,
    "config.json",
    "rejected",
    "failure.txt",
    "mlflow.json",
    "progress.json",
    "drill",
    "questions.parquet",
}
"""What a step's folder holds before the step has made anything that a resumed one could build on."""


def run(config: Config, *, only: str | None = None, stage: Stage | None = None, redo: tuple[str, ...] = ()) -> Folder:
    """Run the steps (all of them, the one named `only`, or those of one stage) and return the run's folder.

    Raises: ConfigError if a finished step was made with other settings, or a step's input is not finished.
    """
    steps = chosen.steps(config, only=only, stage=stage)
    storage.check_reachable(config.root)
    outside.check(config, steps)
    folder = storage.run_folder(config.root, config.name)
    _redo(config, steps, folder, redo)
    tracker = Tracker(config, folder)
    try:
        # Ray sets a handler of its own when it is connected to.
        with cluster.connected(config), stopping.on_sigterm(config.cluster.stop_timeout_s):
            cluster.check_root(Folder(storage.absolute(config.root)))
            names = [step.name for step in steps]
            run_steps(config, names, folder, tracker, at_once=config.cluster.steps_at_once)
    finally:
        tracker.close()
    return folder


def run_steps(
    config: Config,
    names: Sequence[str],
    folder: Folder,
    tracker: Tracker,
    *,
    at_once: int = 1,
    failed: dict[str, str] | None = None,
) -> None:
    """Run the steps of these names on the Ray that is connected, in this order, or `at_once` where they do not build on
    one another; those that are finished stay.

    With `failed`, a step that fails is put there with its name and the last line of what it died of, as are those that
    build on it; the others go on.

    Raises: as `run`.
    """
    left, lost = threading.Event(), {} if failed is None else failed

    def do(step: Step) -> None:
        if why := next((lost[name] for name in before(step) if name in lost), ""):
            lost[step.name] = why
            return
        try:
            _run_step(config, step, folder, tracker, left)
        except Exception as error:  # whatever it is, what does not build on the step may go on
            if failed is None:
                raise
            lost[step.name] = f"{step.name}: {last_line(error)}"
            logger.warning("%s", lost[step.name])

    def fits(steps: Sequence[Step]) -> bool:
        return cluster.fits([needs.asked(config.for_step(step.name), step.stage) for step in steps])

    def before(step: Step) -> Sequence[str]:
        return (step.policy, *step.data, probed(config, step))

    side_by_side.run([config.step(name) for name in names], at_once, fits, do, left, before)


def last_line(error: BaseException) -> str:
    """What it says at its end, or what it is where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _redo(config: Config, steps: list[Step], folder: Folder, redo: tuple[str, ...]) -> None:
    """Remove the named steps and every step that builds on one of them; a report builds on all."""
    stale = {config.step(name).name for name in redo}
    idle = stale - {step.name for step in steps}
    if idle:
        raise ConfigError(f"--redo {', '.join(sorted(idle))}: this command does not run it; give it with `raml run`")
    for step in config.steps:
        if stale & {step.policy, *step.data} or (stale and step.stage == "report"):
            stale.add(step.name)
    for name in sorted(stale):
        if (folder / name).exists():
            logger.info("%s: removed, to be done anew", name)
            (folder / name).remove()


def context_of(config: Config, step: Step, folder: Folder) -> Context:
    """The step with the settings that hold in it."""
    own = narrowed(config.for_step(step.name), step.stage)
    if own.drill.faults and not own.drill.folder:
        own = override(own, {"drill.folder": (folder / step.name).file("drill")})
    if own.drill.faults and storage.is_url(own.drill.folder):
        raise ConfigError(
            "drill.faults leave marks that only a file system can hold: set drill.folder to a shared folder"
        )
    return Context(own, step, folder, config)


def _run_step(config: Config, step: Step, folder: Folder, tracker: Tracker, left: threading.Event) -> None:
    """`left` is set when the run is over: what a step under way meets then is no failure of its own."""
    context = context_of(config, step, folder)
    inputs = {name: storage.summary(folder / name)["fingerprint"] for name in (step.policy, *step.data) if name}
    if step.stage == "report":  # it shows every step there is
        inputs |= {
            s.name: storage.summary(folder / s.name)["fingerprint"]
            for s in _finished(config, folder)
            if s.stage != "report"
        }
    wanted = manifest(context, inputs | outside.fingerprints(context))
    _check_unchanged(context, wanted)
    if context.folder.exists(SUMMARY):
        logger.info("%s: finished before", step.name)
        return
    context.folder.write_json(MANIFEST, wanted)
    context.folder.write_text("config.json", without_secrets(dump(config)) + "\n")
    (context.folder / "failure.txt").remove()  # of an earlier attempt
    logger.info("%s: %s", step.name, _describe(step))
    began = time.monotonic()
    tracked = tracker.start_step(step.name, step.stage, _params(context), _tags(context, wanted))
    try:
        with PeakMemory() as peak, progress.shown(context):
            outcome = _stage(step.stage)(context)
        outcome.counts.check()
    except (stopping.Stopped, KeyboardInterrupt):
        logger.info("%s: stopped; the same command goes on from here", step.name)
        tracked.finish("KILLED", {}, [])
        raise
    except BaseException:
        if left.is_set():
            raise
        context.folder.write_text("failure.txt", without_secrets(traceback.format_exc()))
        tracked.finish("FAILED", {}, [])
        raise
    summary = _summary(context, wanted, outcome, time.monotonic() - began, peak.gib)
    context.folder.write_json(SUMMARY, summary)
    tracked.finish("FINISHED", _floats(summary), [context.folder.file(name) for name in outcome.artifacts])
    logger.info("%s: done in %.1f s; %s", step.name, summary["seconds"]["total"], _counted(outcome))


def _finished(config: Config, folder: Folder) -> list[Step]:
    return [step for step in config.steps if (folder / step.name).exists(SUMMARY)]


def _check_unchanged(context: Context, wanted: dict[str, Any]) -> None:
    """Refuse to go on with what other settings or other inputs began; what began nothing is no hindrance."""
    folder = context.folder
    if not folder.exists(MANIFEST) or (was := folder.read_json(MANIFEST)) == wanted:
        return
    if context.step.stage == "report" or not set(folder.names()) - BEFORE_ANY_RESULT:
        folder.remove()
        return
    changed = "\n  ".join(changes(was, wanted))
    raise ConfigError(
        f"step {context.step.name!r} in {folder.path} was made with something else:\n  {changed}\n"
        f"keep it by giving the run another name (name=...), or start it anew with --redo {context.step.name}"
    )


def _stage(stage: Stage) -> Callable[[Context], Outcome]:
    function: Callable[[Context], Outcome] = import_module(f"raml_ray.stages.{stage}").run
    return function


def _describe(step: Step) -> str:
    parts: list[str] = [step.stage]
    if step.policy:
        parts.append(f"policy {step.policy}")
    if step.data:
        parts.append("data " + ", ".join(step.data))
    return "; ".join(parts)


def _counted(outcome: Outcome) -> str:
    counts = outcome.counts
    return f"{counts.rows_in} rows in, {counts.rows_out} out, {counts.rejected} rejected, {counts.filtered} filtered"


def _params(context: Context) -> dict[str, Any]:
    return flatten(context.config)


def _tags(context: Context, wanted: Mapping[str, Any]) -> dict[str, str]:
    return {"raml.fingerprint": fingerprint(wanted), "raml.stage": context.step.stage} | version_tags()


def _summary(
    context: Context, wanted: Mapping[str, Any], outcome: Outcome, seconds: float, gib: float
) -> dict[str, Any]:
    counts = outcome.counts
    return {
        "step": context.step.name,
        "stage": context.step.stage,
        "policy": context.step.policy or context.config.policy.path,
        "data": list(context.step.data),
        "fingerprint": fingerprint(wanted),
        "counts": {
            "rows_in": counts.rows_in,
            "rows_out": counts.rows_out,
            "rejected": counts.rejected,
            "filtered": counts.filtered,
        },
        "figures": outcome.figures,
        "seconds": {"total": round(seconds, 2)},
        "versions": versions(),
        "peak_memory_gib": round(gib, 2),
    }


def _floats(value: Any, name: str = "") -> dict[str, float]:
    """Every number of a nested summary, by dotted name."""
    if isinstance(value, bool) or value is None:
        return {}
    if isinstance(value, int | float):
        return {name: float(value)}
    if isinstance(value, Mapping):
        return {
            k: v
            for key, entry in value.items()
            for k, v in _floats(entry, f"{name}.{key}" if name else str(key)).items()
        }
    return {}


def plan(config: Config) -> str:
    """The run's steps, one line each."""
    return "\n".join(f"  {step.name:<18} {_describe(step)}" for step in config.steps)
