"""The page's part on pseudo-updates: whether what a token writes points down the gradient of the answer's loss."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from raml_ray.config import Config
from raml_ray.stages import report_pseudo_update_figures, report_tables
from raml_ray.stages.claims import answered
from raml_ray.stages.instruments.intervals import by_question
from raml_ray.stages.instruments.pseudo_update import TOKEN, UPDATES
from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_measures import cell, interval_table
from raml_ray.stages.report_outcomes import MIN_QUESTIONS, Claim, level_for, measured
from raml_ray.stages.report_pseudo_update_figures import is_of_states

COLUMNS = {
    "num": ("trajectories", 0),
    "cosine": ("cosine with -gradient", 3),
    "cosine_shuffled": ("another token's", 3),
    "cosine_random": ("a random step's", 3),
    "cosine_excess": ("over another token's", 3),
    "mass": ("attention mass", 3),
    "transfer_error": ("transfer error", 2),
    "tau_norm_change": ("tau of |dW| and |change of L-hat|", 2),
}
Rows = Sequence[Mapping[str, Any]]


def shown(run: Run) -> Shown:
    """The section of the steps that measured pseudo-updates."""
    steps = run.of_instrument("pseudo_update")
    claims, figures, tables = [], [], [_beside(steps)] if len(steps) > 1 else []
    for step in steps:
        rows = (step.folder / UPDATES.name).read_tables("shard-", TOKEN).to_pylist()
        groups = step.figures["groups"]
        listed = [
            (f"{group}, read by the {reader}", found)
            for group, readers in groups.items()
            for reader, found in readers.items()
            if found["num"]
        ]
        errors = [found["reconstruction_error_max"] for _, found in listed]
        tables.append(interval_table(f"{step.name}: tokens of", COLUMNS, listed))
        tables.append(
            '<p class="note">Means over tokens with 95 % bootstrap intervals over trajectories; cosines are over all'
            " layers and heads together, transfer errors medians. Patched weights give what the layers gave with the token"
            f" up to a relative error of {max(errors, default=0):.1e}{_served(rows)}.</p>\n"
        )
        if rows:
            claims.append(_descends(step, rows, run.config, of=_attention(run, step)))
            figures += [
                report_pseudo_update_figures.by_layer(step, rows),
                report_pseudo_update_figures.by_head(step, rows),
            ]
    return Shown("Tokens as updates of weights", claims, "".join(tables), figures)


def _beside(steps: Sequence[StepResult]) -> str:
    """What the update that a token is for the answer's first query is to all other queries, policy by policy."""
    body = []
    for step in steps:
        found = step.figures["groups"]["correct"]["answer"]
        if found["num"]:
            shown = [cell(found[name], 3) for name in ("cosine", "cosine_excess")]
            left = f"{found['transfer_error']['mean']:.1e}"
            shown += [left, f"{found['reconstruction_error_max']:.1e}"]
            body.append(report_tables.row([escape(f"{step.name} (of {step.policy or 'policy.path'})"), *shown]))
    header = ("correct trajectories", COLUMNS["cosine"][0], COLUMNS["cosine_excess"][0])
    return report_tables.table(
        [*header, "left for other queries, share of the step", "largest reconstruction error"], body
    )


def _served(rows: Rows) -> str:
    """Whom the updates are exact for."""
    return " for every later query: they are the changes of a state" if rows and is_of_states(rows) else ""


def _attention(run: Run, step: StepResult) -> str:
    """The setting by which base policies differ, of a step on one of them."""
    made = next((each for each in run.of_stage("base") if each.name == step.policy), None)
    return f"base.attention={made.settings['base.attention']}" if made else ""


def _descends(step: StepResult, rows: Rows, config: Config, *, of: str) -> Claim:
    """Eq. 4: above zero, and above what another token of the same trajectory would give."""
    correct = [row for row in rows if (row["group"], row["reader"]) == ("correct", "answer")]
    cosine = by_question((row["question_id"], row["cosine_whole"]) for row in correct)
    excess = by_question((row["question_id"], row["cosine_whole"] - row["cosine_shuffled_whole"]) for row in correct)
    measurements = tuple(
        measured("correct trajectories", step.name, metric, values, config, unit="cosine", level=level_for(2))
        for metric, values in (
            ("cosine of a token's pseudo-update with -gradient", cosine),
            ("the same, over another token's of the trajectory", excess),
        )
    )
    num = measurements[0].num_questions
    few = f"questions: {num}, fewer than {MIN_QUESTIONS}: too few to decide"
    return answered("pseudo-update-descends", measurements, few if num < MIN_QUESTIONS else "", of=of)
