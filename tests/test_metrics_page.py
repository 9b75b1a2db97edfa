"""docs/metrics.md names every metric that the code logs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOGGED = re.compile(r'"((?:base|sft|grpo|learner|time|progress|probe)/[a-z0-9_]+)"')


def test_every_logged_metric_has_a_line_and_every_line_a_metric() -> None:
    code = "".join(path.read_text() for path in (ROOT / "raml_ray").rglob("*.py"))
    listed = re.findall(
        r"^\| `((?:base|sft|grpo|learner|time|progress|probe)/[a-z0-9_]+)` \|",
        (ROOT / "docs/metrics.md").read_text(),
        re.M,
    )
    assert len(listed) == len(set(listed))
    assert set(listed) == set(LOGGED.findall(code))
