"""The parts of the report's page that are tables of what the steps counted, and the HTML that they are made of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from raml_ray.stages.report_data import METRICS, Run, SetResult, StepResult
from raml_ray.stages.report_figures import Figure, inline, metric_names

SYNC_ROWS = 200
"""Syncs of a step that are listed one by one."""


def section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n"


def figure_html(figure: Figure) -> str:
    return (
        f"<figure>\n<h3>{escape(figure.title)}</h3>\n{inline(figure)}<figcaption>{escape(figure.caption)}"
        f" Data: <code>figures/{escape(figure.name)}.parquet</code>.</figcaption>\n</figure>\n"
    )


def table(header: Sequence[str], rows: Iterable[str], numbers_from: int = 1) -> str:
    cells = "".join(f"<th{_number(i >= numbers_from)}>{escape(name)}</th>" for i, name in enumerate(header))
    body = "".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def row(cells: Sequence[str], numbers_from: int = 1) -> str:
    """A table row of cells that are HTML already; the first is its header."""
    rest = "".join(f"<td{_number(i >= numbers_from)}>{cell}</td>" for i, cell in enumerate(cells[1:], start=1))
    return f"<tr><th>{cells[0]}</th>{rest}</tr>\n"


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def policies(run: Run, figure: Figure | None) -> str:
    if figure is None:
        return section("Policies", "<p>No evaluate step has finished: there is no accuracy to show.</p>\n")
    names = metric_names(run.evaluations)
    protocols = sorted({(one.num_samples, one.k, one.temperature) for one in run.evaluations})
    sampling = "; ".join(f"{n} samples per question, k = {k}, temperature {t:g}" for n, k, t in protocols)
    header = ["policy", *names.values(), "tokens", "truncated", "unreadable"]
    rows = list(_policy_rows(run, tuple(names), len(header)))
    text = f'<p class="note">{escape(sampling)}. In %, with 95 % bootstrap intervals over questions.</p>\n'
    return section("Policies", text, table(header, rows), figure_html(figure))


def _policy_rows(run: Run, metrics: Sequence[str], width: int) -> Iterator[str]:
    for name in dict.fromkeys(name for one in run.evaluations for name in one.sets):
        members = [(one.label, one.sets[name]) for one in run.evaluations if name in one.sets]
        num_questions = ", ".join(sorted({str(result.num_questions) for _, result in members}))
        title = f"{escape(name)} <small>{num_questions} questions</small>"
        yield f'<tr class="group"><th colspan="{width}">{title}</th></tr>\n'
        for label, result in members:
            yield row([escape(label), *_set_cells(result, metrics)])


def _set_cells(result: SetResult, metrics: Sequence[str]) -> Iterator[str]:
    for metric in metrics:
        value = result.intervals.get(metric)
        if value is None:
            yield "-"
        elif metric in METRICS:
            yield f"{100 * value.mean:.1f}<small>[{100 * value.low:.1f}, {100 * value.high:.1f}]</small>"
        else:
            yield f"{100 * value.mean:.1f}"
    yield "-" if result.mean_tokens is None else f"{result.mean_tokens:.1f}"
    for share in (result.truncated_fraction, result.unreadable_fraction):
        yield "-" if share is None else f"{100 * share:.1f}"


def verdicts(steps: Sequence[StepResult]) -> str:
    if not steps:
        return ""
    kinds = list(dict.fromkeys(kind for step in steps for kind in step.figures["verdicts"]))
    rows = []
    for step in steps:
        verdicts = step.figures["verdicts"]
        total = sum(verdicts.values())
        shares = [f"{verdicts.get(k, 0)}<small>{100 * verdicts.get(k, 0) / max(total, 1):.1f} %</small>" for k in kinds]
        rows.append(row([escape(step.name), *shares, str(total)]))
    parts = [table(["step", *kinds, "all"], rows)]
    for step in steps:
        reasons = ", ".join(f"{name} {count}" for name, count in (step.figures.get("reasons") or {}).items())
        parts.append(f'<p class="note">{escape(step.name)}: {escape(reasons)}.</p>\n' if reasons else "")
        if agreement := step.figures.get("agreement"):
            parts.append(f"<h3>{escape(step.name)}: our verdicts against the published ones</h3>\n")
            parts.append(_agreement(agreement))
    return section("Verdicts", *parts)


AGREEMENT = {
    "both_correct": "both correct",
    "both_wrong": "both wrong",
    "only_ours": "correct only here",
    "only_published": "correct only there",
    "unjudged": "not judged",
}


def _agreement(agreement: Mapping[str, Any]) -> str:
    """The agreement of each policy's verdicts, then of all together."""
    rows = []
    for name, counts in {**agreement.get("by_policy", {}), "together": agreement}.items():
        share = "-" if counts["fraction"] is None else f"{100 * counts['fraction']:.2f} %"
        rows.append(row([escape(name), *(str(counts.get(kind, 0)) for kind in AGREEMENT), share]))
    return table(["policy", *AGREEMENT.values(), "of those judged, agree"], rows)


def row_counts(steps: Sequence[StepResult]) -> str:
    rows = []
    for step in steps:
        counts = [step.counts.get(name, 0) for name in ("rows_in", "rows_out", "rejected", "filtered")]
        rows.append(row([escape(step.name), *map(str, counts)]))
    if not rows:
        return ""
    text = '<p class="note">In = out + rejected + filtered: a step that lost or doubled a row would have failed.</p>\n'
    return section("Rows", text, table(["step", "rows in", "out", "rejected", "filtered"], rows))


def syncs(run: Run) -> str:
    rows, details = [], []
    for step in run.of_stage("grpo"):
        errors = [
            (int(row["step"]), row["grpo/sync_max_error"]) for row in step.metrics if "grpo/sync_max_error" in row
        ]
        mismatches = [row["grpo/mismatch_max"] for row in step.metrics if "grpo/mismatch_max" in row]
        if errors:
            values = [value for _, value in errors]
            mismatch = f"{max(mismatches):.1e}" if mismatches else "-"
            cells = [str(len(values)), f"{median(values):.1e}", f"{max(values):.1e}", mismatch]
            rows.append(row([escape(step.name), *cells]))
            listed = ", ".join(f"{version}: {value:.1e}" for version, value in errors[:SYNC_ROWS])
            details.append(f"<p><b>{escape(step.name)}</b> {listed}</p>\n")
    if not rows:
        return ""
    header = ["step", "syncs compared", "median difference", "largest difference", "largest mismatch in training"]
    text = (
        '<p class="note">After a weight sync, engine and learner score the same probe: largest difference of their'
        " log-probabilities, nats. A sync beyond grpo.sync_tolerance (bfloat16: grpo.sync_tolerance_k3) stops the run.</p>\n"
    )
    every = f"<details><summary>every sync (version: largest difference)</summary>\n{''.join(details)}</details>\n"
    return section("Weight syncs", text, table(header, rows), every)
