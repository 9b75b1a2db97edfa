"""A sweep's trials beside each other: every metric over the varied setting, with intervals over seeds."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from raml_ray.formulas.metrics import Interval
from raml_ray.stages.report_data import METRICS, Evaluation, Run
from raml_ray.stages.report_figures import MARKERS, OTHER_COLOURS, Figure, finished, metric_names
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_seeds import seeds_interval
from raml_ray.stages.report_sweep_time import spent
from raml_ray.stages.report_tables import row, table
from raml_ray.stages.sweep import SWEEP_FILE
from raml_ray.storage import Folder

DRAWN = ("pass_at_k", "mg_pass_at_k")


class Cell(NamedTuple):
    """One policy on one set at one point of the search space, over the seeds: `Cell((4,), "evaluate", "test", ...)`."""

    point: tuple[Any, ...]
    """Values of the varied settings but the seed, in the order of the search space."""
    step: str
    """The preset's name of the evaluate step."""
    set: str
    by_seed: dict[str, list[Interval]]
    """Metric -> one interval over questions per seed."""


def swept(run: Run, folder: Folder) -> list[Shown]:
    """The sweep's part of the page, if the run is one: a section for each of its grids, and one for its time."""
    if not folder.exists(SWEEP_FILE):
        return []
    trials = folder.read_json(SWEEP_FILE)["trials"]
    grids = list(dict.fromkeys(trial["grid"] for trial in trials))
    parts = [_grid(run, folder, grid, [trial for trial in trials if trial["grid"] == grid]) for grid in grids]
    return [*parts, Shown("Where the sweep's time went", (), spent(run, folder), ())]


def _grid(run: Run, folder: Folder, grid: str, trials: Sequence[Mapping[str, Any]]) -> Shown:
    title = f"Sweep: {grid.replace('_', ' ')}" if grid else "Sweep"
    settings = [name for name in trials[0]["values"] if name != "seed"]
    cells = list(_cells(trials, settings, {one.step: one for one in run.evaluations}))
    unfinished = [
        f"{trial['name']} ({_status(folder, trial['name'])})"
        for trial in trials
        if set(trial["steps"].values()) & set(run.unfinished)
    ]
    missing = f'<p class="note">Not whole: {escape(", ".join(unfinished))}.</p>\n' if unfinished else ""
    if not cells:
        return Shown(title, (), f"<p>No trial has been evaluated.</p>\n{missing}", ())
    names = metric_names(run.evaluations)
    figure = _drawn(cells, settings, names, grid)
    num_seeds = max(len(cell.by_seed["accuracy"]) for cell in cells)
    told = (
        f"{len(trials)} trials. In %, mean over {num_seeds} seeds with its 95 % interval over seeds (Student's t)."
        if num_seeds > 1
        else f"{len(trials)} trials of one seed each. In %, with 95 % bootstrap intervals over questions: another seed may"
        " fall outside."
    )
    header = [*settings, "policy of", "set", "seeds", *(names[metric] for metric in METRICS)]
    rows = [row(list(_table_cells(cell)), numbers_from=len(settings) + 2) for cell in cells]
    tables = f'<p class="note">{told}</p>\n' + table(header, rows, len(settings) + 2) + missing
    return Shown(title, (), tables, (figure,))


def _status(folder: Folder, trial: str) -> str:
    place = folder / "trials" / trial
    status = str(place.read_json("result.json")["status"]) if place.exists("result.json") else "not run"
    return "ended early by ablate.scheduler" if status == "stopped" else status


def _cells(
    trials: Sequence[Mapping[str, Any]], settings: Sequence[str], evaluations: Mapping[str, Evaluation]
) -> Iterator[Cell]:
    """Every point, evaluate step and set, in the order of the trials; trials of other seeds are one cell."""
    found: dict[tuple[Any, ...], dict[str, Evaluation]] = {}
    for trial in trials:
        point = tuple(_value(trial["values"][name]) for name in settings)
        for preset_step, copy in trial["steps"].items():
            if copy in evaluations:  # by copy: what several trials share is one evaluation
                found.setdefault((preset_step, point), {})[copy] = evaluations[copy]
    for (step, point), copies in found.items():
        for name in next(iter(copies.values())).sets:
            by_seed = {
                metric: [
                    one.sets[name].intervals[metric] for one in copies.values() if metric in one.sets[name].intervals
                ]
                for metric in METRICS
            }
            yield Cell(point, step, name, by_seed)


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shown(intervals: Sequence[Interval]) -> Interval | None:
    """Over seeds, or of a single seed over questions."""
    if not intervals:
        return None
    return seeds_interval([one.mean for one in intervals]) if len(intervals) > 1 else intervals[0]


def _table_cells(cell: Cell) -> Iterator[str]:
    yield from (escape(str(value)) for value in cell.point)
    yield escape(cell.step)
    yield escape(cell.set)
    yield str(len(cell.by_seed["accuracy"]))
    for metric in METRICS:
        value = _shown(cell.by_seed[metric])
        yield (
            "-"
            if value is None
            else f"{100 * value.mean:.1f}<small>[{100 * value.low:.1f}, {100 * value.high:.1f}]</small>"
        )


def _drawn(cells: Sequence[Cell], settings: Sequence[str], names: Mapping[str, str], grid: str) -> Figure:
    """Metrics by question sets: a line per policy (and per value of every setting but the first) over the first setting."""
    sets = list(dict.fromkeys(cell.set for cell in cells))
    ticks = list(dict.fromkeys(cell.point[:1] for cell in cells))
    series = list(dict.fromkeys((cell.step, cell.point[1:]) for cell in cells))
    rows: list[dict[str, Any]] = []
    canvas = Canvas(figsize=(10.5, 3.4 * len(DRAWN)))
    panels = canvas.subplots(len(DRAWN), len(sets), sharex=True, sharey="row", squeeze=False)
    for metric, line in zip(DRAWN, panels, strict=True):
        for name, axis in zip(sets, line, strict=True):
            for index, (step, rest) in enumerate(series):
                mine = [cell for cell in cells if (cell.step, cell.point[1:], cell.set) == (step, rest, name)]
                rows += _line(axis, mine, ticks, metric, step, rest, index)
            axis.set_title(f"{names[metric]}, {name}")
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        line[0].set_ylabel("mean over questions, %")
    for axis in panels[-1]:
        axis.set_xticks(range(len(ticks)), [str(*tick) if tick else "" for tick in ticks])
        axis.set_xlabel(settings[0] if settings else "all seeds")
    handles, labels = panels[0][0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper left", ncols=3)
    seeds = sorted({len(cell.by_seed[metric]) for cell in cells for metric in DRAWN})
    caption = (
        f"Points: single seeds ({' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} each). Lines: their mean; whiskers: its 95 % interval over seeds (Student's t), or, of one seed,"
        " over questions (bootstrap)."
    )
    name = f"sweep_{grid}" if grid else "sweep"
    return finished(name, f"Over {settings[0] if settings else 'seeds'}", caption, canvas, rows)


def _line(
    axis: Axes, cells: Sequence[Cell], ticks: Sequence[Any], metric: str, step: str, rest: Any, index: int
) -> Iterator[dict[str, Any]]:
    colour = OTHER_COLOURS[index % len(OTHER_COLOURS)]
    label = " ".join([step, *map(str, rest)])
    shown = [(ticks.index(cell.point[:1]), cell, _shown(cell.by_seed[metric])) for cell in cells]
    drawn = [(x, cell, value) for x, cell, value in shown if value is not None]
    error = [
        [max(v.mean - v.low, 0) for _, _, v in drawn],
        [max(v.high - v.mean, 0) for _, _, v in drawn],
    ]
    axis.errorbar(
        [x for x, _, _ in drawn],
        [v.mean for _, _, v in drawn],
        error,
        color=colour,
        capsize=2.5,
        marker=MARKERS[index % len(MARKERS)],
        label=label,
    )
    for x, cell, value in drawn:
        seeds = [one.mean for one in cell.by_seed[metric]]
        axis.plot([x] * len(seeds), seeds, ".", color=colour, alpha=0.5)
        yield {
            "policy": step,
            "point": str(cell.point),
            "set": cell.set,
            "metric": metric,
            "num_seeds": len(seeds),
            **value._asdict(),
        }
