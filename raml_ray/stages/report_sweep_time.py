"""Where a sweep's time went: how much of it learners learned, and what the rest was."""

from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_tables import row, seconds, table
from raml_ray.stages.sweep import ATTEMPTS
from raml_ray.storage import Folder

LEARNING = ("sft", "grpo")


def spent(run: Run, folder: Folder) -> str:
    """A table of seconds by what they were spent on, and the whole over the learners' training steps, as HTML."""
    steps = sum(_training_steps(step) for step in run.steps if step.stage in LEARNING)
    parts = {
        "training steps of learners (GRPO's wait for trajectories included)": steps,
        "starting and ending learners and engines of sft and grpo": _of(run, *LEARNING) - steps,
        "base policies": _of(run, "base"),
        "trajectories and verdicts": _of(run, "generate", "verify"),
        "evaluation": _of(run, "evaluate"),
        "instruments": _of(run, "analyze"),
    }
    in_steps = sum(step.seconds for step in run.steps)
    attempts = folder.read_json(ATTEMPTS) if folder.exists(ATTEMPTS) else []
    whole = sum(attempt["seconds"] for attempt in attempts)
    rows = [row([name, seconds(value)]) for name, value in parts.items() if value]
    if whole > in_steps:
        rows.append(row(["between steps (Tune, processes of trials)", f"{whole - in_steps:.1f} s"]))
    if whole:
        rows.append(row(["the sweep by the clock, attempts that were killed not counted", seconds(whole)]))
    at_once = f", {in_steps / whole:.2f} at once on average" if whole else ""
    over = f"; by the clock {(whole or in_steps) / steps:.2f} times the learners' training steps" if steps else ""
    told = f'<p class="note">{seconds(in_steps)} in finished steps{at_once}{over}.</p>\n'
    return table(["spent on", "time"], rows) + told


def _of(run: Run, *stages: str) -> float:
    return sum(step.seconds for step in run.steps if step.stage in stages)


def _training_steps(step: StepResult) -> float:
    """Seconds of the step's training steps, those that were repeated after a restart once."""
    return sum(line.get("time/step_s", 0.0) for line in step.metrics)
