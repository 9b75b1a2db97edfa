"""What greedy responses without a subspace come to: accuracy beside that without random ones, question by question."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from raml_ray.records import Verdict
from raml_ray.stages.instruments.chosen import Row
from raml_ray.stages.instruments.features_probes import NONE, PROBE, RANDOM
from raml_ray.stages.instruments.intervals import over_trajectories

Right = dict[str, float]
"""Question -> 1 if its answer is right, 0 if it is not; the mean of several such answers. What no judge could tell is left
out."""


def projected(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """What docs/metrics.md lists under `whole` and `projected`."""
    right = rights(rows)
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    layers = sorted({layer for layer, _, _ in right if layer})
    whole = {domain: _mean(right.get((0, NONE, domain), {}), seed, f"whole {domain}") for domain in domains}
    found: dict[str, Any] = {}
    for layer in layers:
        trained = [name.partition(":")[2] for at, name, domain in right if at == layer and name.startswith(PROBE)]
        found[str(layer)] = {
            domain: {
                other: compared(right, layer, domain, other, seed)
                for other in domains
                if (layer, f"{PROBE}:{domain}", other) in right
            }
            for domain in dict.fromkeys(trained)
        }
    return {"whole": whole, "projected": found}


def rights(rows: Sequence[Row]) -> dict[tuple[int, str, str], Right]:
    """(layer or 0, subspace, domain) -> its questions."""
    found: dict[tuple[int, str, str], Right] = defaultdict(dict)
    for row in rows:
        verdict = Verdict(row["verdict"])
        if verdict.is_judgement:
            key = (row["layer"] or 0, row["subspace"], row["domain"])
            found[key][row["question_id"]] = float(verdict is Verdict.CORRECT)
    return dict(found)


def compared(
    right: Mapping[tuple[int, str, str], Right], layer: int, domain: str, other: str, seed: int
) -> dict[str, Any]:
    """Accuracy on `other` without the subspace that the probe of `domain` reads, without random ones (each question's mean
    over them), and the latter less the former, paired by question."""
    probe = right[layer, f"{PROBE}:{domain}", other]
    drawn = [
        each for (at, name, of), each in right.items() if (at, of) == (layer, other) and name.startswith(f"{RANDOM}:")
    ]
    random = {
        question: fmean(each[question] for each in drawn if question in each)
        for question in dict.fromkeys(question for each in drawn for question in each)
    }
    excess = {question: random[question] - probe[question] for question in probe if question in random}
    named = f"{layer} {domain} {other}"
    return {
        "probe": _mean(probe, seed, f"probe {named}"),
        "random": _mean(random, seed, f"random {named}"),
        "excess": _mean(excess, seed, f"excess {named}"),
    }


def _mean(of: Right, seed: int, name: str) -> dict[str, Any] | None:
    return over_trajectories(of.values(), seed, f"features {name}")
