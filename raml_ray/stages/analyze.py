"""One instrument along chosen trajectories.   judged trajectories, policy -> the instrument's tables

To add one: a file stages/instruments/NAME.py with `run(context) -> Outcome`, NAME in `settings.Instrument`, the nodes that
it reads in `context.INSTRUMENT_READS`, and a file stages/report_NAME.py with `shown(run) -> Shown` for the page.
"""

from collections.abc import Callable
from importlib import import_module

from raml_ray.stages.context import Context, Outcome


def run(context: Context) -> Outcome:
    instrument = context.config.analyze.instrument
    measure: Callable[[Context], Outcome] = import_module(f"raml_ray.stages.instruments.{instrument}").run
    return measure(context)
