"""What the pages of several instruments are made of: tables of intervals, whiskers."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.axes import Axes

from raml_ray.formulas.metrics import bootstrap_interval
from raml_ray.stages.report_tables import row, table

RESAMPLES = 1000
"""Behind the whiskers of a figure."""


def cell(value: Mapping[str, float] | None, digits: int) -> str:
    """`0.12 [0.08, 0.16]` of an interval as a summary holds it, as HTML; the first entry is its middle."""
    if value is None:
        return "-"
    middle, low, high = value.values()
    return f"{middle:.{digits}f}<small>[{low:.{digits}f}, {high:.{digits}f}]</small>"


def interval_table(
    first: str, columns: Mapping[str, tuple[str, int]], rows: Sequence[tuple[str, Mapping[str, Any]]]
) -> str:
    """A table of summaries: column -> (heading, digits); a value is an interval, a count or None."""
    body = []
    for name, figures in rows:
        cells = [
            str(figures[column]) if isinstance(figures[column], int) else cell(figures[column], digits)
            for column, (_, digits) in columns.items()
        ]
        body.append(row([escape(name), *cells]))
    return table([first, *(heading for heading, _ in columns.values())], body)


def whiskers(axis: Axes, x: float, values: Sequence[float], colour: str, label: str | None, marker: str) -> list[float]:
    """Draw the values' mean with its 95 % bootstrap interval; returns mean, low and high."""
    found = bootstrap_interval(values, num_resamples=RESAMPLES, seed=0)
    error = [[max(found.mean - found.low, 0)], [max(found.high - found.mean, 0)]]
    axis.errorbar(x, found.mean, error, color=colour, label=label, marker=marker, markersize=5, capsize=2.5, ls="none")
    return list(found)


def counted(rows: Iterable[Mapping[str, Any]]) -> str:
    """`23 correct trajectories (12 questions), 24 wrong trajectories (11 questions)`, of rows that say whose they are."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for each in rows:
        trajectories, questions = found.setdefault(each["group"], (set(), set()))
        trajectories.add(each["trajectory_id"])
        questions.add(each["question_id"])
    return ", ".join(
        f"{len(found[group][0])} {group} trajectories ({len(found[group][1])} questions)" for group in sorted(found)
    )


def point(panel: str, series: str, x: float, y: Sequence[float]) -> dict[str, Any]:
    """A row of the data behind a figure: y is a value, or mean, low and high."""
    low, high = y[1:] if len(y) == 3 else (None, None)
    return {"panel": panel, "series": series, "x": float(x), "y": float(y[0]), "low": low, "high": high}
