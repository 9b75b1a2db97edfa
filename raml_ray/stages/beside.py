"""Our figures of question sets beside those that the paper prints of the same set, metric and k."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from raml_ray.config import ConfigError
from raml_ray.published import PUBLISHED
from raml_ray.text import known_sets

logger = logging.getLogger(__name__)
NAMES = {"accuracy": "Avg", "pass_at_k": "Pass@{k}", "mg_pass_at_k": "mG-Pass@{k}"}


def check(setting: str, published: str, sets: Mapping[str, str]) -> None:
    """Raises: ConfigError, naming the setting, if the published row has no set in common with these (name -> path)."""
    if published and not _shared(published, sets):
        there = ", ".join(known_sets.PAPER + name for name in PUBLISHED[published].sets)
        raise ConfigError(f"{setting}={published} has no effect: none of evaluate.sets is one of its sets ({there})")


def _shared(published: str, sets: Mapping[str, str]) -> dict[str, str]:
    """Our name of a set -> the paper's, of those that the row has."""
    names = {name: known_sets.name_of(path) for name, path in sets.items()}
    return {name: known for name, known in names.items() if known in PUBLISHED[published].sets}


def rows(published: str, sets: Mapping[str, str], ours: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per set (name -> path) and metric that the paper prints, beside our figures by the set's name: both values,
    in percent, our interval, and whether theirs lies within it."""
    if not published:
        return
    row = PUBLISHED[published]
    for name, known in _shared(published, sets).items():
        for metric, theirs in row.sets[known].items():
            found = ours[name][metric]
            mean, low, high = (100 * found[part] if found else None for part in ("mean", "low", "high"))
            yield {
                "set": name,
                "metric": NAMES[metric].format(k=row.k),
                "num_questions": ours[name]["num_questions"],
                "ours": mean,
                "low": low,
                "high": high,
                "paper": theirs,
                "place": row.place,
                "is_within": None if low is None or high is None else low <= theirs <= high,
            }


def tell(beside: list[dict[str, Any]]) -> None:
    """Log the rows as a table."""
    for row in beside:
        ours = "-" if row["ours"] is None else f"{row['ours']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        logger.info(
            "%-22s %-10s %-24s paper %.2f (%s), %d questions",
            *(row["set"], row["metric"], ours, row["paper"], row["place"], row["num_questions"]),
        )
