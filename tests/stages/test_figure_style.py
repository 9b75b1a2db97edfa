"""What every figure of a report keeps to: axes say what they measure, colours can be told apart by all readers.

Both are read from the figure's SVG, which is what the page shows.
"""

import base64
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from raml_ray import records
from raml_ray.config import Config, Step, override
from raml_ray.formulas.metrics import Interval
from raml_ray.metrics_file import MetricsFile
from raml_ray.miniature import tokenizer as miniature
from raml_ray.records import Verdict
from raml_ray.stages import report_curves, report_data, report_figures, report_sweep
from raml_ray.stages.context import Context
from raml_ray.stages.instruments import features_figures, interventions, landscape, modes, pseudo_update, roles, shorter
from raml_ray.stages.report_figures import Figure
from raml_ray.stages.report_lhat_controls import BEFORE, controlled
from raml_ray.stages.report_lhat_figures import as_drawn
from raml_ray.stages.report_shorter import STYLES
from tests.stages import contexts, test_features, test_real_updates, test_report_instruments, test_report_sweep
from tests.stages.test_answers import continued, outcome, with_accuracy
from tests.stages.test_instruments import LHAT_K, curve, finished, shown
from tests.stages.test_report import STEPS, analyzed, folder_of, whole_run

GROUPS = ("correct", "wrong")

# Okabe and Ito 2008, "Color Universal Design"; Tol 2021, "Colour schemes", the qualitative scheme "muted".
OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
TOL = {"#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499"}
GREYS = {f"#{value:02x}{value:02x}{value:02x}" for value in range(256)} | {report_figures.INK}
MAPS = {"report_landscape": "viridis", "report_pseudo_update_figures": "cividis"}
"""Module -> the colour map of its surfaces."""
OFF = 2
"""Of 255, between two neighbouring colours of a map: an image is resampled, and its pixels are whole numbers."""

WORDS_ALONG = {("report_roles", "y"), ("report_interventions", "y"), ("report_real_updates", "x")}
"""Modules and axes without a name: words stand along them in place of numbers, and say themselves what they are."""
THIN = 36
"""Points. Panels are wider and taller; a colour bar is not, and on its narrow side colour is the only axis."""


def lone_step(root: Path, instrument: str) -> Context:
    step = Step(name="seen", stage="analyze", overrides={"analyze.instrument": instrument})
    return contexts.context(root / "run", step)


def run_of(root: Path) -> Config:
    return override(Config(), {"root": str(root), "name": "demo", "steps": STEPS, "evaluate.num_bootstrap": 200})


def policies(root: Path) -> Sequence[Figure]:
    """Evaluations and training; five panels, so that a sixth is hidden."""
    config = run_of(root)
    whole_run(config)
    with MetricsFile(folder_of(config) / "start") as metrics:
        metrics.append(40, {"probe/lhat_before_leak": 2.0, "probe/lhat_before_leak_se": 0.5})
    return report_figures.figures(report_data.read(folder_of(config), config))


def curves(root: Path) -> tuple[report_data.StepResult, list[report_curves.Curve]]:
    config = run_of(root)
    analyzed(config, wrong_end=3.25)
    folder = folder_of(config) / "probed" / "curves"
    rows = [row | {"foil_margin": [0.5] * 11} for row in folder.read_table("shard-0.parquet").to_pylist()]
    others = [row | {"probe": probe} for probe in (*BEFORE[1:], "spliced") for row in rows]
    folder.write_table("shard-0.parquet", records.table([*rows, *others], records.ANSWER_CURVE))
    (step,) = report_data.read(folder_of(config), config).of_instrument("lhat")
    return step, report_curves.curves(step)


def lhat_controls(root: Path) -> Sequence[Figure]:
    return [controlled(*curves(root))]


def lhat_curves(root: Path) -> Sequence[Figure]:
    step, found = curves(root)
    return [as_drawn(step, [one for one in found if one.probe == "gold"], 0.99)]


def sweeps(root: Path) -> Sequence[Figure]:
    """A sweep over a setting and seeds, and one over seeds alone, which has no setting to draw over."""
    config = test_report_sweep.swept(str(root))
    part, _ = report_sweep.swept(report_data.read(folder_of(config), config), folder_of(config))
    seeds = {metric: [Interval(value, value, value) for value in (0.2, 0.4)] for metric in report_data.METRICS}
    cell = report_sweep.Cell((), "e", "near", seeds)
    return [*part.figures, report_sweep._drawn([cell], [], {name: name for name in report_data.METRICS}, "seeds")]


def features(root: Path) -> Sequence[Figure]:
    found = test_features.trained(root, test_features.states("x", 4) + test_features.states("y", 4))
    verdicts = {"a": Verdict.CORRECT, "b": Verdict.WRONG}
    answered = [
        row
        for domain in ("x", "y")
        for subspace, layer in (("none", None), ("probe:x", 4), ("probe:y", 4), ("random:0", 4))
        for row in test_features.answers(subspace, domain, verdicts, layer)
    ]
    context = lone_step(root, "features")
    return shown(finished(context, {**found.figures, **features_figures.projected(answered, seed=0)})).figures


def words_in_places(root: Path) -> Sequence[Figure]:
    context = lone_step(root, "interventions")
    config = override(context.config, {"interventions.num_samples": 1})
    cells = {"own": 0.5, "other_here": 1.0, "moved": 2.0, "other_own": 5.0, "newline": 0.25}
    words = [cells | {"horizon": horizon, "log_frequency_ratio": 0.0} for horizon in (0, 8)]
    placed: dict[str, float | None] = dict.fromkeys((*cells, "without", "without_moved"), 0.5)
    row, answered = continued("a", placed)
    each = interventions.figures([{"words": words, "num_apart": 0}], config)
    each |= interventions.accuracies([row], answered, config)
    return shown(finished(context, {"groups": dict.fromkeys(GROUPS, each)})).figures


def thinking_modes(root: Path) -> Sequence[Figure]:
    names = ("thinking", "no_thinking_empty_thought", "end_of_thought_0.5", "budget_8")
    outcomes = [outcome("a", name, 0.5, 10.0 + place) for place, name in enumerate(names)]
    figures = {"modes": modes.figures(outcomes, 0), "groups": {}, "num": 1, "own": 1}
    return shown(finished(lone_step(root, "modes"), figures)).figures


def shortened(root: Path) -> Sequence[Figure]:
    rows = [with_accuracy(0.5, "t", "a", way, budget, 10) for way in STYLES for budget in ("0.5", shorter.AS_SUMMARY)]
    groups = {group: {"num": 1, "ways": shorter.figures(rows, 0)} for group in GROUPS}
    figures = {"groups": groups, "sets": {}, "summaries": None}
    return shown(finished(lone_step(root, "shorter"), figures)).figures


def surfaces(root: Path) -> Sequence[Figure]:
    """Both planes, each with one radius: another only has other numbers."""
    rows = [row for row in test_report_instruments.surfaces("correct", "t", 3.0) if row["radius"] != 0.5]
    step = test_report_instruments.stepped(root, "landscape", landscape.POINTS, rows)
    return shown(step).figures


def updates(root: Path) -> Sequence[Figure]:
    rows = [
        {**row}
        for group in GROUPS
        for reader in ("answer", "token")
        for row in test_report_instruments.tokens(group, group, [1.0, 2.0, 4.0], mass=0.1, reader=reader)
    ]
    return shown(test_report_instruments.stepped(root, "pseudo_update", pseudo_update.UPDATES, rows)).figures


def real_updates(root: Path) -> Sequence[Figure]:
    kinds = ("pseudo", "sgd", "lora")
    changes: Mapping[str, tuple[float, float, float]] = {
        "none": (4.0, 0.0, 0.0),
        "trajectory": (0.5, 0.0, 0.0),
        **dict.fromkeys(kinds, (2.0, 0.4, 0.1)),
        **{f"noise_{kind}": (4.0, 0.0, 0.0) for kind in kinds},
    }
    rows = [row for what in ("answer", "first") for row in test_real_updates.changes("q", "t", what, **changes)]
    return shown(test_real_updates.step_of(root, rows, rows)).figures


def words(root: Path) -> Sequence[Figure]:
    context = lone_step(root, "roles")
    measure = roles.Roles(miniature.build(), Config())
    rows = [{**row, "group": group} for group in GROUPS for row in measure.of(curve(LHAT_K, 9))]
    folder = context.folder / roles.WORDS.name
    folder.write_table("shard-000000.parquet", records.table(rows, roles.WORDS.schema))
    groups = {group: roles.figures([row for row in rows if row["group"] == group], context) for group in GROUPS}
    return shown(finished(context, {"groups": groups})).figures


DRAWN: Mapping[str, Callable[[Path], Sequence[Figure]]] = {
    "report_features": features,
    "report_figures": policies,
    "report_interventions": words_in_places,
    "report_landscape": surfaces,
    "report_lhat_controls": lhat_controls,
    "report_lhat_figures": lhat_curves,
    "report_modes": thinking_modes,
    "report_pseudo_update_figures": updates,
    "report_real_updates": real_updates,
    "report_roles": words,
    "report_shorter": shortened,
    "report_sweep": sweeps,
}
"""Module that draws -> its figures, with everything in them that they can hold."""


@pytest.fixture(scope="module", params=DRAWN)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Sequence[Figure]]:
    """A module's name and its figures."""
    with report_figures.styled():
        return request.param, DRAWN[request.param](tmp_path_factory.mktemp("drawn"))


def test_every_module_that_draws_is_looked_at() -> None:
    files = Path(report_figures.__file__).parent.glob("*.py")
    assert {file.stem for file in files if "Canvas(" in file.read_text()} == set(DRAWN)


class Scale(NamedTuple):
    """One axis of a panel."""

    name: str
    ticks: list[str]
    """What is written along it."""
    start: float
    end: float
    """Points on the page."""

    @property
    def has_numbers(self) -> bool:
        return any(not re.search("[A-Za-z]", tick) for tick in self.ticks)

    def is_of(self, other: "Scale") -> bool:
        """Whether it is the other's scale at another panel of the row or column, written again or not."""
        aligned = abs(self.start - other.start) + abs(self.end - other.end) < 1
        return aligned and self.ticks in ([], other.ticks)


def children(group: ElementTree.Element, prefix: str) -> list[ElementTree.Element]:
    return [child for child in group if child.get("id", "").startswith(prefix)]


def written(group: ElementTree.Element) -> str:
    return " ".join("".join(group.itertext()).split())


def name_of(axis: ElementTree.Element) -> str:
    """The axis's name; a power of ten that its numbers are multiples of is none."""
    names = [text for child in children(axis, "text_") if re.search("[a-z]{3}", text := written(child))]
    return names[0] if names else ""


def panels(figure: Figure) -> Iterator[dict[str, Scale]]:
    """x and y of every flat panel that is shown, colour bars too."""
    for group in ElementTree.fromstring(figure.svg).iter():
        if axes := children(group, "matplotlib.axis_"):
            background = children(group, "patch_")[0]
            path = next(element.attrib["d"] for element in background.iter() if "d" in element.attrib)
            corners = np.array(re.findall(r"-?[\d.]+", path), dtype=float).reshape(-1, 2)
            bounds = zip(corners.min(axis=0), corners.max(axis=0), strict=True)
            yield {
                way: Scale(
                    name_of(axis), [tick for each in children(axis, f"{way}tick_") if (tick := written(each))], *at
                )
                for way, axis, at in zip("xy", axes, bounds, strict=True)
            }


def test_every_axis_says_what_it_measures(drawn: tuple[str, Sequence[Figure]]) -> None:
    module, figures = drawn
    nameless = []
    for figure in figures:
        found = list(panels(figure))
        assert found
        for place, panel in enumerate(found):
            for way, scale in panel.items():
                across_a_colour_bar = not scale.ticks and scale.end - scale.start < THIN
                of_words = (module, way) in WORDS_ALONG and not scale.has_numbers
                of_a_neighbour = any(other[way].name and scale.is_of(other[way]) for other in found)
                if not (scale.name or across_a_colour_bar or of_words or of_a_neighbour):
                    nameless.append(f"{figure.name}: {way} of panel {place}, {scale.ticks}")
        solid = [group for group in ElementTree.fromstring(figure.svg).iter() if "axis3d_" in group.get("id", "")]
        nameless += [f"{figure.name}: {group.get('id')}" for group in solid if not name_of(group)]
    assert nameless == []


def seen(svg: str) -> str:
    """The SVG without the fill of markers that are a single stroke (the caps of whiskers): they have no inside."""
    strokes = re.findall(r'<path id="(\w+)" d="M [^LCz]*L [^LCz]*"', svg)
    return re.sub(rf'(href="#(?:{"|".join(strokes)})"[^>]*)fill: [^;]*;', r"\1", svg) if strokes else svg


def test_every_colour_can_be_told_from_the_others_by_all_readers(drawn: tuple[str, Sequence[Figure]]) -> None:
    module, figures = drawn
    allowed = OKABE_ITO | TOL | GREYS
    if module in MAPS:
        allowed |= {mpl.colors.to_hex(colour) for colour in mpl.colormaps[MAPS[module]](range(256))}
    allowed_CR = np.array([mpl.colors.to_rgb(colour) for colour in sorted(allowed)])
    for figure in figures:
        used = set(re.findall(r"(?:fill|stroke|color): *([^;\"]+)", seen(figure.svg))) - {"none"}
        assert used and used <= allowed, figure.name
        for pixels in re.findall(r'data:image/png;base64,([^"]*)"', figure.svg):
            image = imread(io.BytesIO(base64.b64decode(pixels)))
            seen_NR = np.unique(image[image[..., 3] > 0][:, :3], axis=0)
            off_NC = np.abs(seen_NR[:, None] - allowed_CR).max(axis=2)
            assert off_NC.min(axis=1).max() * 255 <= OFF, figure.name


def test_every_colour_for_policies_is_of_a_known_palette() -> None:
    named = {*report_figures.LINEAGE_COLOURS.values(), *report_figures.OTHER_COLOURS}
    assert {colour.lower() for colour in named} <= OKABE_ITO | TOL | GREYS
