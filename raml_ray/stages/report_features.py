"""The page's part on shared features: what probes of one domain read in another, and what the policy loses without it."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import PercentFormatter

from raml_ray.stages.report_data import Run, StepResult
from raml_ray.stages.report_figures import INK, MARKERS, OTHER_COLOURS, Figure, finished
from raml_ray.stages.report_instruments import Shown
from raml_ray.stages.report_measures import interval_table, point

PROBED = {
    "accuracy": ("probe's accuracy", 2),
    "most_frequent": ("most frequent class", 2),
    "shuffled": ("trained on shuffled classes", 2),
    "left": ("refitted without the subspace", 2),
}
ANSWERED = {
    "probe": ("accuracy without the probe's subspace", 2),
    "random": ("without a random one", 2),
    "excess": ("random less probe's", 2),
}
PALETTE = ("#0072B2", "#E69F00", "#009E73", *OTHER_COLOURS)
MOST_CHARS = 16
"""Of a domain's name."""


def shown(run: Run) -> Shown:
    """The section of the steps that looked for shared features."""
    figures, tables = [], []
    for step in run.of_instrument("features"):
        found = step.figures
        probed = [
            (f"layer {layer}, {_pair(domain, other)}", values)
            for layer, of_layer in found["probes"].items()
            for domain, of_domain in of_layer["trained_on"].items()
            for other, values in of_domain["on"].items()
        ]
        answered = [
            (f"layer {layer}, {_pair(domain, other)}", values)
            for layer, of_layer in found["projected"].items()
            for domain, of_domain in of_layer.items()
            for other, values in of_domain.items()
        ]
        tables.append(interval_table(f"{step.name}: probes, trained on -> tested on", PROBED, probed))
        tables.append(interval_table(f"{step.name}: greedy answers, probe of -> questions of", ANSWERED, answered))
        tables.append(_note(found))
        figures.append(_figure(step))
    return Shown("Features that domains share", [], "".join(tables), figures)


def _pair(domain: str, other: str) -> str:
    return f"{_short(domain)} -> {_short(other)}"


def _short(domain: str) -> str:
    """As a legend has room for it: of a question set's path the file's name, cut."""
    name = domain.rsplit("/", 1)[-1].rsplit(".", 1)[0] or "all"
    return name if len(name) <= MOST_CHARS else f"{name[: MOST_CHARS - 3]}..."


def _note(found: Mapping[str, Any]) -> str:
    counts = "; ".join(
        f"{_short(name)}: {of['results'] - of['results_held_out']} partial results of {of['questions'] - of['held_out']}"
        f" questions to train on, {of['results_held_out']} of {of['held_out']} to test on"
        for name, of in found["domains"].items()
    )
    whole = ", ".join(
        f"{_short(name)} {100 * of['mean']:.0f} %" for name, of in found["whole"].items() if of is not None
    )
    shares = [
        f"{100 * of['variance']:.0f} % against {100 * layer['variance_random']:.0f} %"
        for layer in found["probes"].values()
        for of in layer["trained_on"].values()
    ]
    return (
        f'<p class="note">{counts}. Rank {found["rank"]}. Greedy accuracy of the whole policy on the questions held out:'
        f" {whole or 'none was judged'}. 95 % bootstrap intervals over questions. A probe's subspace holds another share of"
        f" the states' variance than a random one (by layer and domain: {', '.join(shares)}), which alone may make it cost"
        " more.</p>\n"
    )


def _figure(step: StepResult) -> Figure:
    found = step.figures
    canvas = Canvas(figsize=(10.5, 3.9))
    probes, same, other = canvas.subplots(1, 3)
    domains = list(found["domains"])
    pairs = [(a, b) for a in domains for b in domains]
    drawn: list[dict[str, Any]] = []
    for index, (domain, tested) in enumerate(pairs):
        style = {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}
        label, shift = _pair(domain, tested), 0.12 * (index - (len(pairs) - 1) / 2)
        layers = {
            int(layer): of["trained_on"][domain]["on"][tested]["accuracy"] for layer, of in found["probes"].items()
        }
        drawn += _line(probes, "probes", label, layers, shift, style)
        costs = {
            int(layer): of.get(domain, {}).get(tested, {}).get("excess") for layer, of in found["projected"].items()
        }
        axis, panel = (same, "in the domain") if domain == tested else (other, "transfer")
        drawn += _line(axis, panel, label, costs, shift, style)
    usual = {
        tested: next(iter(found["probes"].values()))["trained_on"][tested]["on"][tested]["most_frequent"]
        for tested in domains
    }
    for tested, value in usual.items():
        probes.axhline(value["mean"], color=INK, linewidth=0.8, linestyle=":")
        drawn.append(point("probes", f"most frequent class, {_short(tested)}", 0, [value["mean"]]))
    probes.set(title="What probes read", xlabel="layer", ylabel="accuracy on questions held out")
    for axis, title in ((same, "Taken away: the same domain"), (other, "Taken away: the other domain")):
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.set(title=title, xlabel="layer", ylabel="lost beyond a random subspace, points")
    for axis in (probes, same, other):
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol="" if axis is not probes else "%"))
        axis.set_xticks([int(layer) for layer in found["probes"]])
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    held_out = ", ".join(
        f"{of['results_held_out']} results of {of['held_out']} questions of {_short(name)}"
        for name, of in found["domains"].items()
    )
    caption = (
        f"Tested on {held_out}. Left: accuracy of linear probes for a partial result, at the token before it, trained on one domain and tested on"
        " another (trained -> tested); dotted: the most frequent class. Right: greedy accuracy with a random subspace taken out"
        " of a layer's output, less that with the probe's subspace (probe of -> questions of), paired by question. Whiskers:"
        " 95 % bootstrap intervals over questions."
    )
    return finished(f"features_{step.name}", f"Features that domains share ({step.name})", caption, canvas, drawn)


def _line(
    axis: Axes, panel: str, label: str, by_layer: Mapping[int, Any], shift: float, style: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Draw a mean and interval per layer; returns the points."""
    there = {layer: list(value.values()) for layer, value in by_layer.items() if value is not None}
    if not there:
        return []
    means = [mean for mean, _, _ in there.values()]
    errors = [
        [max(mean - low, 0) for mean, low, _ in there.values()],
        [max(high - mean, 0) for mean, _, high in there.values()],
    ]
    at = [layer + shift for layer in there]
    axis.errorbar(at, means, errors, label=label, markersize=4, capsize=2, linewidth=1, **style)
    return [point(panel, label, layer, values) for layer, values in there.items()]
