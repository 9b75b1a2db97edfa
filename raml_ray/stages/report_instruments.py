"""What the page shows of the instruments: a section of each, and the claims of the paper that it decides."""

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from raml_ray.stages.report_data import Run
from raml_ray.stages.report_figures import Figure
from raml_ray.stages.report_outcomes import Claim


class Shown(NamedTuple):
    """An instrument's part of the page, from all its steps."""

    title: str
    claims: Sequence[Claim]
    tables: str
    """HTML that stands before the figures."""
    figures: Sequence[Figure]


def shown(run: Run) -> list[Shown]:
    """What `report_NAME.shown(run)` has of each instrument NAME that a finished step used, in the order of the steps."""
    names = dict.fromkeys(step.instrument for step in run.of_stage("analyze"))
    return [import_module(f"raml_ray.stages.report_{name}").shown(run) for name in names]
