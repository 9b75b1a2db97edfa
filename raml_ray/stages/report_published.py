"""The part of the report's page that holds steps beside the numbers that the paper prints."""

from collections.abc import Sequence
from html import escape

from raml_ray.stages.report_data import StepResult
from raml_ray.stages.report_tables import row, section, table

NOTE = (
    "In %, with 95 % bootstrap intervals over questions. The paper gives no seeds and no intervals, so a number of its"
    " outside of ours is a difference, and one inside is no proof of sameness."
)


def beside(steps: Sequence[StepResult]) -> str:
    """A table of every step that was held against the paper; nothing if none was."""
    rows = [
        row(
            [
                escape(f"{step.name}: {entry['set']}"),
                escape(entry["metric"]),
                "-"
                if entry["ours"] is None
                else f"{entry['ours']:.2f}<small>[{entry['low']:.2f}, {entry['high']:.2f}]</small>",
                f"{entry['paper']:.2f}<small>{escape(entry['place'])}</small>",
                str(entry["num_questions"]),
            ],
            numbers_from=2,
        )
        for step in steps
        for entry in step.figures.get("published") or ()
    ]
    if not rows:
        return ""
    header = ["step and set", "metric", "here", "in the paper", "questions"]
    return section("Beside the paper's numbers", f'<p class="note">{escape(NOTE)}</p>\n', table(header, rows, 2))
