"""The report's page: one HTML file with its style, figures and configuration inside, and nothing fetched."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple

from raml_ray.config import dump
from raml_ray.formulas.metrics import Interval
from raml_ray.redacted import without_secrets
from raml_ray.stages.claims import STATEMENTS
from raml_ray.stages.report_claims import is_near_zero
from raml_ray.stages.report_data import Run
from raml_ray.stages.report_figures import Figure
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_outcomes import PRIMARY, RULE, Claim, Measurement, Outcome
from raml_ray.stages.report_published import beside
from raml_ray.stages.report_seeds import seeds
from raml_ray.stages.report_tables import (
    figure_html,
    policies,
    row,
    row_counts,
    seconds,
    section,
    syncs,
    table,
    verdicts,
)

CLASSES = {Outcome.HOLDS: "holds", Outcome.FAILS: "fails", Outcome.UNDECIDED: "undecided"}


class Facts(NamedTuple):
    """What the page says of the run as a whole, apart from its steps."""

    fingerprint: str
    revision: str
    machine: str
    command: str
    seconds: float


def page(
    run: Run,
    claims: Sequence[Claim],
    figures: Sequence[Figure],
    sweep: Sequence[Shown],
    instruments: Sequence[Shown],
    facts: Facts,
) -> str:
    """The whole page as HTML."""
    by_name = {figure.name: figure for figure in figures}
    sections = [
        _head(run, facts),
        *map(_shown, sweep),
        _what_ran(run, facts),
        _summary(run, claims),
        "" if run.is_sweep else policies(run, by_name.get("evaluation")),
        beside([*run.of_stage("evaluate"), *run.of_instrument("shorter")]),
        section("Training", figure_html(by_name["training"])) if "training" in by_name else "",
        *map(_shown, instruments),
        verdicts(run.of_stage("verify")),
        row_counts(run.steps),
        syncs(run),
        _reproduce(run, facts),
    ]
    style = files("raml_ray.stages").joinpath("report.css").read_text()
    title = escape(run.config.report.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}: {escape(run.config.name)}'
        f'</title>\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style>\n'
        f"</head>\n<body>\n{''.join(sections)}</body>\n</html>\n"
    )


def _shown(part: Shown) -> str:
    return section(part.title, part.tables, *map(figure_html, part.figures))


def _head(run: Run, facts: Facts) -> str:
    stages = ", ".join(dict.fromkeys(step.stage for step in run.steps)) or "no finished step"
    return (
        f"<header>\n<h1>{escape(run.config.report.title)}</h1>\n"
        f'<p class="lead">Run <code>{escape(run.config.name)}</code>, {_seeds(run)}: {escape(stages)}.</p>\n'
        "</header>\n"
    )


def _seeds(run: Run) -> str:
    """`seed 0`, or `seeds 1, 2, 3`."""
    numbers = seeds(run) or [run.config.seed]
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _what_ran(run: Run, facts: Facts) -> str:
    versions = {name: version for step in run.steps for name, version in step.versions.items()}
    entries = {
        "run": f"{run.config.name} ({_seeds(run)})",
        "configuration": facts.fingerprint,
        "revision": facts.revision or "not in a git checkout",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "no finished step",
        "machine": facts.machine,
        "time": f"{seconds(sum(step.seconds for step in run.steps))} in finished steps",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries.items())
    rows = [
        row(
            [
                escape(step.name),
                escape(step.stage),
                escape(", ".join(filter(None, (step.policy, *step.data)))) or "-",
                f"<code>{escape(step.fingerprint)}</code>",
                seconds(step.seconds),
                "-" if step.peak_memory_gib is None else f"{step.peak_memory_gib:.2f} GiB",
            ],
            numbers_from=4,
        )
        for step in run.steps
    ]
    steps = table(["step", "stage", "takes", "fingerprint", "time", "peak memory"], rows, 4) if rows else ""
    missing = f'<p class="note">Not finished: {escape(", ".join(run.unfinished))}.</p>\n' if run.unfinished else ""
    return section("What ran", f"<dl>{listed}</dl>\n", steps, missing)


def _summary(run: Run, claims: Sequence[Claim]) -> str:
    parts = []
    if is_near_zero(run.evaluations):
        parts.append(
            '<p class="warning">Accuracy is at or near zero for every policy on every set. Nothing was learned that'
            " these sets measure, and every comparison of policies below is empty.</p>\n"
        )
    if not claims:
        what = "no two evaluated policies to compare, and no analysis" if run.steps else "no finished step"
        return section("What came out", *parts, f"<p>The run has {what}: no claim of the paper can be checked.</p>\n")
    counts = {outcome: sum(claim.outcome is outcome for claim in claims) for outcome in Outcome}
    parts.append(f"<p>Of {len(claims)} claims of the paper that this run can speak to, {_counted(counts)}.</p>\n")
    parts.append(f'<ul class="claims">\n{"".join(map(_claim_line, claims))}</ul>\n')
    parts.append(
        f'<p class="note">{escape(RULE)} Claims about L-hat are decided on what is measured before the answer is written.'
        f" {escape(_intervals(run))}</p>\n"
    )
    parts += [_comparisons(claims), _not_asked(claims)]
    return section("What came out, and what did not come out as the paper says", *parts)


def _intervals(run: Run) -> str:
    """What the intervals are over, in words."""
    if len(seeds(run)) < 2:
        return (
            f"One training {_seeds(run)}: the intervals are over questions (bootstrap of paired differences), not over"
            " training seeds, so another seed may fall outside them."
        )
    return (
        f"Training {_seeds(run)}: each comparison is paired within a seed, and the intervals are over the seeds' differences"
        " (Student's t), where a comparison has several."
    )


def _not_asked(claims: Sequence[Claim]) -> str:
    """The claims of docs/claims.md that the run has no steps for, each with the command that has them."""
    asked = {claim.id for claim in claims}
    listed = "".join(
        f"<li>{escape(one.text)} <small>paper, {escape(one.source)}</small>: <code>{escape(one.command)}</code></li>\n"
        for one in STATEMENTS
        if one.id not in asked
    )
    return (
        f"<details><summary>claims that this run does not ask</summary>\n<ul>\n{listed}</ul></details>\n"
        if listed
        else ""
    )


def _counted(counts: Mapping[Outcome, int]) -> str:
    holds, fails, undecided = (counts[outcome] for outcome in (Outcome.HOLDS, Outcome.FAILS, Outcome.UNDECIDED))
    hold, do, are = (plural if n != 1 else one for n, one, plural in
                     ((holds, "holds", "hold"), (fails, "does", "do"), (undecided, "is", "are")))  # fmt: skip
    return f"{holds} {hold}, {fails} {do} not hold and {undecided} {are} undecided"


def _claim_line(claim: Claim) -> str:
    deciding = [one for one in claim.measurements if one.decides]
    by_set = len({one.where for one in deciding}) > 1 or PRIMARY in {one.metric for one in deciding}
    figures = "; ".join(f"{escape(one.where if by_set else one.metric)}: {_difference(one)}" for one in deciding)
    if len(deciding) > 1:
        num_holding = sum(one.outcome is Outcome.HOLDS for one in deciding)
        level = f"intervals at {100 * deciding[0].level:.3g} %"
        figures = f"holds in {num_holding} of {len(deciding)} ({level}): {figures}"
    note = f'<br><span class="note">{escape(claim.note)}</span>' if claim.note else ""
    return (
        f'<li><span class="{CLASSES[claim.outcome]}">{claim.outcome}</span><span>{escape(claim.text)}'
        f" <small>paper, {escape(claim.source)}</small><br><small>{figures}</small>{note}</span></li>\n"
    )


def _difference(measurement: Measurement) -> str:
    """`+12.3 points [8.1, 16.4]`."""
    value = measurement.difference
    if value is None:
        return "not measured"
    if measurement.unit == "points":
        return f"{100 * value.mean:+.1f} points {_bounds(value, 100, 1)}"
    digits = 3 if measurement.unit == "cosine" else 2
    return f"{value.mean:+.{digits}f} {measurement.unit} {_bounds(value, 1, digits)}"


def _bounds(value: Interval, scale: float, digits: int) -> str:
    return f"[{scale * value.low:+.{digits}f}, {scale * value.high:+.{digits}f}]"


def _comparisons(claims: Sequence[Claim]) -> str:
    names = {"accuracy": "accuracy", "pass_at_k": "Pass@k", "mg_pass_at_k": "mG-Pass@k"}
    rows = [
        row(
            [
                escape(claim.text) if index == 0 else "",
                escape(one.comparison),
                escape(one.where),
                escape(names.get(one.metric, one.metric)),
                _difference(one),
                f"{100 * one.level:.3g} %",
                str(one.num_questions),
                str(one.num_seeds),
                f'<span class="{CLASSES[one.outcome]}">{one.outcome}</span>',
            ],
            numbers_from=10,
        )
        for claim in claims
        for index, one in enumerate(claim.measurements)
    ]
    if not rows:
        return ""
    header = [
        "claim",
        "difference of",
        "on",
        "of",
        "difference, interval",
        "level",
        "questions",
        "seeds",
        "alone it says",
    ]
    listed = table(header, rows, 10)
    return f"<details><summary>all {len(rows)} comparisons</summary>\n{listed}</details>\n"


def _reproduce(run: Run, facts: Facts) -> str:
    config = escape(without_secrets(dump(run.config)))
    return section(
        "How to reproduce",
        f"<pre>{escape(facts.command)}</pre>\n",
        "<p>The configuration below lies beside this page as <code>config.json</code>; the rows behind each figure are"
        " in <code>figures/</code>, as Parquet.</p>\n",
        f"<details><summary>config.json ({escape(facts.fingerprint)})</summary>\n<pre>{config}</pre></details>\n",
        f'<p class="note">Made in {facts.seconds:.1f} s from the run\'s folder alone.</p>\n',
    )
