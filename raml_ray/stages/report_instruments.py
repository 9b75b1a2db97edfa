"""What the page shows of the instruments: a section of each, and the claims of the paper that it decides."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from itertools import repeat
from multiprocessing import get_context
from typing import NamedTuple

from raml_ray.stages.report_data import Run
from raml_ray.stages.report_figures import Figure, styled
from raml_ray.stages.report_outcomes import Claim


class Shown(NamedTuple):
    """An instrument's part of the page, from all its steps."""

    title: str
    claims: Sequence[Claim]
    tables: str
    """HTML that stands before the figures."""
    figures: Sequence[Figure]


IN_ONE_PROCESS = 2
"""So many instruments are drawn here: a process takes as long to start as the figures of one to be drawn."""


def shown(run: Run) -> list[Shown]:
    """What `report_NAME.shown(run)` has of each instrument NAME that a finished step used, in the order of the steps.

    Of many instruments each is drawn in a process of its own, as many at once as there are cores.
    """
    names = list(dict.fromkeys(step.instrument for step in run.of_stage("analyze")))
    num = min(len(names), os.cpu_count() or 1)
    if num < 2 or len(names) <= IN_ONE_PROCESS:
        return [_shown(name, run) for name in names]
    with ProcessPoolExecutor(num, get_context("spawn")) as pool:  # a fork would take Ray's threads for its own
        return list(pool.map(_shown, names, repeat(run)))


def _shown(name: str, run: Run) -> Shown:
    with styled():
        found: Shown = import_module(f"raml_ray.stages.report_{name}").shown(run)
    return found
