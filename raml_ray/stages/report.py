"""The report of a run: one page, its figures, and the rows behind them.

Reads every finished step of the run's folder; writes report.html, config.json and figures/*.{svg,png,parquet}.
"""

import logging
import os
import platform
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from raml_ray.config import Config, dump, fingerprint
from raml_ray.provenance import git_revision
from raml_ray.redacted import without_secrets
from raml_ray.stages import report_outer_gradient, report_thinking
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.report_claims import claims, is_near_zero
from raml_ray.stages.report_data import Run, read
from raml_ray.stages.report_figures import figures, styled
from raml_ray.stages.report_instruments import Shown, shown
from raml_ray.stages.report_outcomes import Claim
from raml_ray.stages.report_page import Facts, page
from raml_ray.stages.report_seeds import over_seeds
from raml_ray.stages.report_sweep import swept
from raml_ray.stages.sweep import PRESET_FILE
from raml_ray.storage import Folder

logger = logging.getLogger(__name__)

PAGE = "report.html"
COMMAND, SWEEP_COMMAND = "raml run config.json", f"raml ablate ../{PRESET_FILE}"


def run(context: Context) -> Outcome:
    command = SWEEP_COMMAND if context.run.exists(PRESET_FILE) else COMMAND
    found = build(context.run, context.whole, context.folder, command=command)
    drawn = tuple(f"figures/{name}" for name in (context.folder / "figures").names())
    return Outcome(Counts(found["num_steps"], found["num_steps"]), found, artifacts=(PAGE, *drawn))


def build(run_folder: Folder, config: Config, out: Folder, *, command: str = COMMAND) -> dict[str, Any]:
    """Write the page of the run into `out` and return its figures: the claims with their outcomes and intervals.

    A run without a finished step gives a page that says so.
    """
    began = time.monotonic()
    run = read(run_folder, config)
    with styled():
        drawn, sweep = figures(run), swept(run, run_folder)
    instruments = shown(run)
    checked = over_seeds(run, partial(_claims, instruments))
    kept = [*drawn, *(figure for part in (*sweep, *instruments) for figure in part.figures)]
    for figure in kept:
        (out / "figures").write_text(f"{figure.name}.svg", figure.svg)
        with (out / "figures").writing(f"{figure.name}.png") as file:
            file.write(figure.png)
        (out / "figures").write_table(f"{figure.name}.parquet", figure.rows)
    out.write_text("config.json", without_secrets(dump(config)) + "\n")
    facts = Facts(
        fingerprint=fingerprint(config),
        revision=git_revision().get("mlflow.source.git.commit", ""),
        machine=_machine(),
        command=command,
        seconds=time.monotonic() - began,
    )
    html = page(run, checked, drawn, sweep, instruments, facts)
    out.write_text(PAGE, html)
    logger.info(
        "report: %s, %.0f KiB, %d figures, %d claims", out.file(PAGE), len(html) / 1024, len(kept), len(checked)
    )
    return {
        "num_steps": len(run.steps),
        "num_figures": len(kept),
        "page_bytes": len(html.encode()),
        "accuracy_near_zero": is_near_zero(run.evaluations),
        "claims": [claim.as_json() for claim in checked],
    }


def _claims(instruments: Sequence[Shown], run: Run) -> list[Claim]:
    """Every claim that the run, or the part of it that is of one seed, has the steps for."""
    names = {step.name for step in run.steps}
    measured = (claim for instrument in instruments for claim in instrument.claims)
    own = [claim for claim in measured if any(one.where in names for one in claim.measurements)]
    return [*claims(run), *report_outer_gradient.claims(run), *report_thinking.claims(run), *own]


def _machine() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} logical CPUs, {memory_gib:.0f} GiB, {platform.machine()} (where this page was made)"
