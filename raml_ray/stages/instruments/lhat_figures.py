"""What the curves of an L-hat step come to: before the answer is written, held against the controls, and as the paper draws
it. Intervals are over trajectories.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from raml_ray import records
from raml_ray.formulas import lhat, metrics
from raml_ray.formulas.lhat import LeakSplit
from raml_ray.stages.instruments.chosen import Row
from raml_ray.stages.instruments.lhat_controls import FOIL, FOREIGN, GOLD, OWN, SHUFFLED, SPLICED

NUM_RESAMPLES = 2000
GROUPS = ("correct", "wrong")
CONTROLS = (OWN, SHUFFLED, FOREIGN, SPLICED)


def figures(curves: Sequence[Row], seed: int) -> dict[str, Any]:
    """Of correct and of wrong trajectories: what docs/metrics.md lists under `groups`."""
    return {"groups": {group: _group([c for c in curves if c["group"] == group], seed) for group in GROUPS}}


def _group(curves: Sequence[Row], seed: int) -> dict[str, Any]:
    gold = {curve["trajectory_id"]: curve for curve in curves if curve["probe"] == GOLD}
    if not gold:
        return {"num": 0}
    leaks = [split_of(curve) for curve in gold.values() if has_leaked(curve)]
    margins = [_margin(curve) for curve in gold.values() if curve["foil_margin"] is not None]
    columns = _columns(gold.values()) | {
        "share_at_leak": [split.share_near for split in leaks],
        "share_at_leak_before": [split.share_near_before for split in leaks],
        "share_at_leak_after": [split.share_near_after for split in leaks],
        "margin_start": [start for start, _ in margins],
        "margin_before_leak": [before for _, before in margins],
    }
    found: dict[str, Any] = {"num": len(gold), "leaked": sum(map(has_leaked, gold.values()))}
    found |= _intervals(columns, seed)
    found["foils"] = sum(curve["probe"] == FOIL for curve in curves) / len(gold)
    for name in CONTROLS:
        control = {curve["trajectory_id"]: curve for curve in curves if curve["probe"] == name}
        if control:
            found[name] = _control(control, gold, seed)
    return found


def _control(control: Mapping[str, Row], gold: Mapping[str, Row], seed: int) -> dict[str, Any]:
    """The control's own values, and what it has more than the trajectory's gold answer just before the leak."""
    columns = _columns(control.values())
    befores = [(split_of(curve).before, split_of(gold[key]).before) for key, curve in control.items()]
    columns["excess_before_leak"] = [mine - its for mine, its in befores if mine is not None and its is not None]
    return {"num": len(control)} | _intervals(columns, seed)


def _columns(curves: Iterable[Row]) -> dict[str, list[float | None]]:
    raw = [(split_of(curve), curve["lhat"]) for curve in curves]
    return {
        "start": [values[0] for _, values in raw],
        "end": [values[-1] for _, values in raw],
        "drop": [values[0] - values[-1] for _, values in raw],
        "before_leak": [split.before for split, _ in raw],
        "drop_before_leak": [None if split.before is None else split.drop_before for split, _ in raw],
        "tau_before_leak": [split.tau_before for split, _ in raw],
        "slope_before_leak": [split.slope_before for split, _ in raw],
        "drop_at_leak": [split.drop_at for split, _ in raw],
        "drop_after_leak": [None if split.drop_at is None else split.drop_after for split, _ in raw],
        "tau_after_leak": [split.tau_after for split, _ in raw],
        "slope_after_leak": [split.slope_after for split, _ in raw],
    }


def has_leaked(curve: Row) -> bool:
    """Whether a probed prefix holds the answer."""
    return curve["leak_position"] is not None and curve["leak_position"] <= curve["position"][-1]


def split_of(curve: Row) -> LeakSplit:
    """A leak that was not probed, or that there is none of, lies behind the last position."""
    return lhat.leak_split(curve["position"], curve["lhat"], _leak_or_end(curve))


def _leak_or_end(curve: Row) -> int:
    leak_position: int = curve["leak_position"] if has_leaked(curve) else curve["position"][-1] + 1
    return leak_position


def _margin(curve: Row) -> tuple[float, float | None]:
    """The foils' margin over the gold answer at the first prefix, and at the last one before the leak."""
    return curve["foil_margin"][0], lhat.leak_split(curve["position"], curve["foil_margin"], _leak_or_end(curve)).before


def _intervals(columns: Mapping[str, Sequence[float | None]], seed: int) -> dict[str, Any]:
    """Mean and bootstrap interval of each column's values that are there; None where there is none."""
    found: dict[str, Any] = {}
    for name, values in columns.items():
        there = [float(np.float64(value)) for value in values if value is not None]
        drawn = records.seed_of(seed, "analyze", name)
        interval = metrics.bootstrap_interval(there, num_resamples=NUM_RESAMPLES, seed=drawn) if there else None
        found[name] = interval._asdict() if interval else None
    return found
