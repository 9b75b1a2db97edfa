"""What Prometheus is told is listed once, and told."""

import re
from pathlib import Path

from raml_ray.stages import meters

ROOT = Path(__file__).parents[2]


def test_every_meter_is_told_somewhere_and_listed_once() -> None:
    code = "".join(path.read_text() for path in (ROOT / "raml_ray/stages").glob("*.py"))
    told = set(re.findall(r'meters\.(?:count|show)\(\s*"(raml_[a-z_]+)"', code))
    listed = re.findall(r"^\| `(raml_[a-z_]+)` \|", (ROOT / "docs/metrics.md").read_text(), re.M)
    assert told == set(meters.METERS) == set(listed)
    assert len(listed) == len(meters.METERS)
