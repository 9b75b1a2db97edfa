"""L-hat on planes through a policy's weights.   judged trajectories, policy -> points/

A shard is a block of grid points of one trajectory's plane. On the plane of the gradient and the measured pseudo-update the
trajectory has a real path, and there are single points to compare: the policy with the update in the trajectory's place, with
a step of the same length down the gradient, and with a random one.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raml_ray import records
from raml_ray.config import Config
from raml_ray.formulas.landscape import Plane, Point, grid
from raml_ray.settings import LandscapeConfig
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import chosen
from raml_ray.stages.instruments.chosen import Opened, Row
from raml_ray.stages.instruments.intervals import over_trajectories
from raml_ray.text import leak, suffix
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers import landscape
from raml_ray.workers.answer_loss import answer_loss
from raml_ray.workers.landscape import UpdatePlane
from raml_ray.workers.pseudo_update import evenly
from raml_ray.workers.traced_attention import attention_modules

POINT = pa.schema(
    [
        ("block", pa.string()),
        ("trajectory_id", pa.string()),
        ("question_id", pa.string()),
        ("group", pa.string()),
        ("plane", pa.string()),
        ("radius", pa.float32()),
        ("kind", pa.string()),
        ("prefix", pa.int32()),
        ("share", pa.float32()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("lhat", pa.float32()),
        ("off_plane", pa.float32()),
    ]
)
"""L-hat (nats per answer token) at a place of a plane, behind so many response tokens (`share` of the last). Kinds: `grid`;
`path`, the pseudo-update of the prefix, what share of its length lies off the plane, and L-hat of the policy itself behind the
prefix; `update`, `gradient` and `noise`, changes of W_v as long as the whole trajectory's update, without the trajectory."""
POINTS = chosen.Table("points", POINT, key="block", rows_per_shard=1)
BLOCK = pa.schema(
    [
        *chosen.CHOSEN,
        ("block", pa.string()),
        ("plane", pa.string()),
        ("radius", pa.float64()),
        ("start", pa.int32()),
        ("is_first", pa.bool_()),
    ]
)
CHANGES = ("update", "gradient", "noise")


def run(context: Context) -> Outcome:
    rows = blocks(chosen.trajectories(context), context.config.landscape)
    found = chosen.mapped(context, rows, Landscape, POINTS, BLOCK)
    summary = {
        "groups": {
            group: figures([row for row in found.rows if row["group"] == group], context.config.seed)
            for group in ("correct", "wrong")
        }
    }
    return Outcome(Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected), summary)


def blocks(trajectories: Sequence[Row], settings: LandscapeConfig) -> list[Row]:
    """Every trajectory's blocks of grid points; the first of each plane also has what the plane holds once."""
    found: list[Row] = []
    for row in trajectories:
        for plane in settings.planes:
            radii = settings.update_radii if plane == "update" else settings.radii
            for index, radius in enumerate(radii):
                for start in range(0, settings.num_points**2, settings.points_per_shard):
                    block = f"{row['trajectory_id']}/{plane}/{radius:g}/{start}"
                    place = {"block": block, "plane": plane, "radius": radius, "start": start}
                    found.append({**row, **place, "is_first": index == start == 0})
    return found


class Landscape(chosen.RowByRow):
    """Computes blocks of grid points; keeps the plane of the last ones."""

    def __init__(self, policy: Opened, config: Config) -> None:
        if "update" in config.landscape.planes:
            attention_modules(policy.model)  # refuses the policy here, not over each block
        self._policy, self._config = policy, config
        self._random: Plane | None = None
        self._update: tuple[str, UpdatePlane] | None = None

    def of(self, row: Row) -> Iterable[Row]:
        """Rows of POINT. Raises: ValueError if the trajectory is empty, or its update and the gradient span no plane."""
        settings, model = self._config.landscape, self._policy.model
        prompt_ids, ids, answer = self._tokens(row)
        places = evenly(0, len(ids), settings.num_prefixes)
        update = self._update_plane(row, prompt_ids, ids, answer) if row["plane"] == "update" else None
        plane = update.plane if update else self._random_plane()
        stop = row["start"] + settings.points_per_shard
        points = grid(row["radius"], settings.num_points)[row["start"] : stop]
        head = {name: row[name] for name in ("block", "trajectory_id", "question_id", "plane", "radius")}
        head["group"] = row["verdict"]
        prefixes = [[*prompt_ids, *ids[:place]] for place in places]
        for point, values in zip(points, landscape.losses(model, plane, points, prefixes, answer), strict=True):
            for place, value in zip(places, values, strict=True):
                yield head | _at("grid", place, len(ids), point, value)
        if update and row["is_first"]:
            steps = evenly(0, len(ids), settings.num_points)
            for place, at, off in landscape.path(model, plane, prompt_ids, ids, answer, steps):
                value = float(answer_loss(model, [*prompt_ids, *ids[:place]], answer).detach())
                yield head | _at("path", place, len(ids), at, value) | {"off_plane": off}
            for kind, change in self._changes(row, update, prompt_ids, answer).items():
                value = landscape.loss_after(model, change, prompt_ids, answer)
                yield head | _at(kind, 0, len(ids), None, value)

    def _tokens(self, row: Row) -> tuple[list[int], list[int], AnswerSuffix]:
        tokenizer, settings = self._policy.tokenizer, self._config.analyze
        prompt_ids, response_ids = chosen.token_ids(tokenizer, row, self._config.prompt)
        last = leak.position_of_text(tokenizer, response_ids, settings.until) if settings.until else None
        if not response_ids[:last]:
            raise ValueError("the response has no token before its end")
        answer = suffix.answer_suffix(tokenizer, suffix.text_of(settings.suffix), row["answer"])
        return prompt_ids, response_ids[:last], answer

    def _random_plane(self) -> Plane:
        if self._random is None:
            normalisation = self._config.landscape.normalisation
            self._random = landscape.random_plane(self._policy.model, self._config.seed, normalisation)
        return self._random

    def _update_plane(self, row: Row, prompt_ids: list[int], ids: list[int], answer: AnswerSuffix) -> UpdatePlane:
        trajectory = row["trajectory_id"]
        if self._update is None or self._update[0] != trajectory:
            self._update = trajectory, landscape.update_plane(self._policy.model, prompt_ids, ids, answer)
        return self._update[1]

    def _changes(self, row: Row, update: UpdatePlane, prompt_ids: list[int], answer: AnswerSuffix) -> dict[str, Any]:
        """CHANGES, all of one length."""
        descent = landscape.descent(self._policy.model, prompt_ids, answer)
        seed = records.seed_of(self._config.seed, "landscape", row["trajectory_id"])
        return {
            "update": update.update,
            "gradient": landscape.scaled(descent, update.plane.length),
            "noise": landscape.noise_like(update.update, seed),
        }


def _at(kind: str, place: int, last: int, point: Point | None, value: float) -> dict[str, Any]:
    x, y = point or (None, None)
    return {"kind": kind, "prefix": place, "share": place / last, "x": x, "y": y, "lhat": value}


def figures(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Of one group: how L-hat rises around the policy, and what changes of W_v do in the trajectory's place."""
    planes: dict[str, Any] = {}
    by_plane: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "grid":
            by_plane[row["plane"], round(row["radius"], 6)].append(row)
    for (plane, radius), members in by_plane.items():
        name = f"{plane}_{radius:g}"
        planes[name] = {
            part: _around([row for row in members if row["share"] == share], seed, f"{name} {part}")
            for part, share in (("without", 0.0), ("with", 1.0))
        }
    single = {kind: [row["lhat"] for row in rows if row["kind"] == kind] for kind in CHANGES}
    ends = {
        name: [row["lhat"] for row in rows if row["kind"] == "path" and row["share"] == share]
        for name, share in (("without", 0.0), ("with", 1.0))
    }
    found = {name: over_trajectories(values, seed, name) for name, values in (ends | single).items()}
    off = [row["off_plane"] for row in rows if row["kind"] == "path" and 0 < row["share"] < 1]
    trajectories = {row["trajectory_id"] for row in rows}
    return {
        "num": len(trajectories),
        "planes": planes,
        "in_place": found,
        "off_plane": float(np.mean(off)) if off else None,
    }


def _around(rows: Sequence[Row], seed: int, name: str) -> dict[str, Any]:
    """Behind one prefix: L-hat in the middle, the mean rise over the grid, and the share of it that lies lower."""
    middles: dict[str, float] = {}
    others: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["x"] == row["y"] == 0:
            middles[row["trajectory_id"]] = row["lhat"]
        else:
            others[row["trajectory_id"]].append(row["lhat"])
    whole = middles.keys() & others.keys()  # a trajectory's block may have been set aside
    rises = [float(np.mean(others[each])) - middles[each] for each in sorted(whole)]
    lower = [float(np.mean(np.array(others[each]) < middles[each])) for each in sorted(whole)]
    values = {"middle": [middles[each] for each in sorted(whole)], "rise": rises, "lower": lower}
    return {measure: over_trajectories(found, seed, f"{name} {measure}") for measure, found in values.items()}
