"""Probes from states: what each reads in which domain, and the questions that are to be answered without it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raml_ray import records
from raml_ray.config import ConfigError
from raml_ray.formulas import subspaces
from raml_ray.stages.context import Context
from raml_ray.stages.instruments.chosen import Row
from raml_ray.stages.instruments.intervals import over_trajectories

NONE, PROBE, RANDOM = "none", "probe", "random"
"""Kinds of subspaces; the name of one is `probe:DOMAIN` or `random:NUMBER`."""
SUBSPACE = pa.schema(
    [
        ("layer", pa.int32()),
        ("subspace", pa.string()),
        ("rank", pa.int32()),
        ("basis", pa.binary()),
        ("mean", pa.binary()),
    ]
)
"""An orthonormal basis (D, R) and the mean of the layer's states before partial results (D), float32."""
QUESTION = pa.struct([(name, pa.string()) for name in ("question_id", "problem", "answer")])
BLOCK = pa.schema([("block", pa.string()), ("domain", pa.string()), *SUBSPACE, ("questions", pa.list_(QUESTION))])
"""Questions of a domain that are answered without one subspace."""


class Trained(NamedTuple):
    """What came of all probes."""

    subspaces: pa.Table
    blocks: list[Row]
    figures: dict[str, Any]


class Examples(NamedTuple):
    """States before the partial results of some questions, by layer."""

    state_LND: Tensor
    class_N: Tensor
    question_N: list[str]


def trained(context: Context, trajectories: Sequence[Row], states: Sequence[Row]) -> Trained:
    """A probe of each layer and domain, tested on the questions that were held out in every domain.

    Raises: ConfigError if a domain has no question to train on, or none to hold out.
    """
    settings = context.config.features
    by_domain: dict[str, list[Row]] = defaultdict(list)
    for row in states:
        by_domain[row["domain"]].append(row)
    if not by_domain:
        raise ConfigError(f"step {context.step.name!r}: features.results={settings.results!r} finds no partial result")
    held = {domain: _held_out(context, domain, rows) for domain, rows in by_domain.items()}
    train = {
        name: _examples([r for r in rows if r["question_id"] not in held[name]]) for name, rows in by_domain.items()
    }
    test = {name: _examples([r for r in rows if r["question_id"] in held[name]]) for name, rows in by_domain.items()}
    layers = states[0]["layers"]
    listed, figures = [], {}
    for place, layer in enumerate(layers):
        found, entries = _of_layer(context, place, layer, train, test)
        figures[str(layer)] = found
        listed += entries
    asked = _questions(trajectories, held)
    counts = {
        name: {
            "questions": len({row["question_id"] for row in rows}),
            "held_out": len(held[name]),
            "results": len(rows),
            "results_held_out": len(test[name].class_N),
        }
        for name, rows in by_domain.items()
    }
    return Trained(
        pa.Table.from_pylist(listed, schema=SUBSPACE),
        list(_blocks(listed, asked)),
        {"domains": counts, "rank": settings.rank, "probes": figures},
    )


def _held_out(context: Context, domain: str, rows: Sequence[Row]) -> set[str]:
    """The questions that no probe of the domain is trained on, drawn by the run's seed."""
    seed, share = context.config.seed, context.config.features.held_out
    questions = sorted({row["question_id"] for row in rows}, key=lambda each: records.seed_of(seed, "features", each))
    if len(questions) < 2:
        raise ConfigError(
            f"step {context.step.name!r}: the domain {domain!r} has {len(questions)} question with partial results, and"
            " needs two: one to train a probe on, one to test it; see features.by, features.domains and features.results"
        )
    return set(questions[: min(max(round(share * len(questions)), 1), len(questions) - 1)])


def _examples(rows: Sequence[Row]) -> Examples:
    num_layers = len(rows[0]["layers"])
    state_NLD = np.stack([np.frombuffer(row["state"], dtype=np.float32).reshape(num_layers, -1) for row in rows])
    classes = torch.tensor([row["class"] for row in rows])
    return Examples(torch.from_numpy(state_NLD).transpose(0, 1), classes, [row["question_id"] for row in rows])


def _of_layer(
    context: Context, place: int, layer: int, train: Mapping[str, Examples], test: Mapping[str, Examples]
) -> tuple[dict[str, Any], list[Row]]:
    """What the layer's probes come to, by the domain that they are trained on, and their subspaces beside random ones."""
    settings, seed = context.config.features, context.config.seed
    everything_ND = torch.cat([each.state_LND[place] for each in train.values()]).double()
    mean_D = everything_ND.mean(0)

    def entry(name: str, basis_DR: Tensor) -> Row:
        packed = {"basis": _packed(basis_DR), "mean": _packed(mean_D)}
        return {"layer": layer, "subspace": name, "rank": basis_DR.shape[1], **packed}

    found, listed = {}, []
    for domain, examples in train.items():
        state_ND = examples.state_LND[place]
        order = torch.randperm(
            len(state_ND), generator=torch.Generator().manual_seed(records.seed_of(seed, "features", "order", domain))
        )
        fitted = (settings.num_classes, settings.penalty)
        probe = subspaces.ridge_probe(state_ND, examples.class_N, *fitted)
        shuffled = subspaces.ridge_probe(state_ND, examples.class_N[order], *fitted)
        try:
            basis_DR = subspaces.read_subspace(probe, settings.rank)
        except ValueError as error:
            raise ConfigError(f"step {context.step.name!r}, domain {domain!r}: {error}") from None
        left = subspaces.ridge_probe(subspaces.without(state_ND.double(), basis_DR, mean_D), examples.class_N, *fitted)
        usual = Counter(examples.class_N.tolist()).most_common(1)[0][0]
        tested = {}
        for other, asked in test.items():
            state = asked.state_LND[place]
            projected = subspaces.without(state.double(), basis_DR, mean_D)
            said = {
                "accuracy": probe.predicted(state),
                "shuffled": shuffled.predicted(state),
                "left": left.predicted(projected),
                "most_frequent": torch.full_like(asked.class_N, usual),
            }
            tested[other] = {name: _accuracy(asked, classes, seed, name) for name, classes in said.items()}
        found[domain] = {"on": tested, "variance": subspaces.share_of_variance(everything_ND, basis_DR)}
        listed.append(entry(f"{PROBE}:{domain}", basis_DR))
    shares = []
    for number in range(settings.num_random):
        drawn = records.seed_of(seed, "features", "random", layer, number)
        basis_DR = subspaces.random_subspace(len(mean_D), settings.rank, drawn)
        shares.append(subspaces.share_of_variance(everything_ND, basis_DR))
        listed.append(entry(f"{RANDOM}:{number}", basis_DR))
    return {"trained_on": found, "variance_random": float(np.mean(shares))}, listed


def _accuracy(asked: Examples, predicted_N: Tensor, seed: int, name: str) -> dict[str, Any] | None:
    """Mean over a question's partial results, interval over questions."""
    by_question: dict[str, list[float]] = defaultdict(list)
    for question, is_right in zip(asked.question_N, (predicted_N == asked.class_N).tolist(), strict=True):
        by_question[question].append(float(is_right))
    return over_trajectories([float(np.mean(each)) for each in by_question.values()], seed, f"features {name}")


def _questions(trajectories: Sequence[Row], held: Mapping[str, set[str]]) -> dict[str, list[Row]]:
    """Of each domain the questions that were held out, each once."""
    asked: dict[str, dict[str, Row]] = {domain: {} for domain in held}
    for row in trajectories:
        if row["question_id"] in held.get(row["domain"], set()):
            asked[row["domain"]][row["question_id"]] = {
                name: row[name] for name in ("question_id", "problem", "answer")
            }
    return {domain: list(each.values()) for domain, each in asked.items()}


def _blocks(listed: Sequence[Row], asked: Mapping[str, list[Row]]) -> Iterator[Row]:
    nothing = {"layer": None, "subspace": NONE, "rank": 0, "basis": None, "mean": None}
    for domain, questions in asked.items():
        for each in (nothing, *listed):
            name = f"{each['layer'] or 0}/{each['subspace']}/{domain}"
            yield {"block": name, "domain": domain, **each, "questions": questions}


def _packed(values: Tensor) -> bytes:
    found: bytes = values.float().contiguous().numpy().tobytes()
    return found


def unpacked(row: Row) -> tuple[Tensor, Tensor]:
    """Basis (D, R) and mean (D) of a row of SUBSPACE, float32."""
    basis, mean = (torch.tensor(np.frombuffer(row[name], dtype=np.float32)) for name in ("basis", "mean"))
    return basis.view(len(mean), row["rank"]), mean
