"""Every instrument on solutions that nobody here wrote: GSM8K's, with a policy whose tokenizer never saw the miniature."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pyarrow as pa
import pytest

from raml_ray import records
from raml_ray.config import Step, dump
from raml_ray.miniature.base import save
from raml_ray.policy_source import portable
from raml_ray.presets import gsm8k_science, gsm8k_solutions
from raml_ray.settings import BaseConfig, Instrument
from raml_ray.stages import imports, sources
from raml_ray.stages.context import Context
from raml_ray.stages.instruments import (
    chosen,
    features,
    features_probes,
    interventions,
    landscape,
    lhat,
    pseudo_update,
    real_updates,
    roles,
)
from raml_ray.stages.instruments.chosen import Row, Table
from raml_ray.workers import fresh
from tests.stages import contexts

ENGINES = {"modes", "shorter"}
"""Have engines answer: `raml run gsm8k_science` runs them."""
SMALL = {
    "interventions.category": "transition",
    "pseudo_update.num_positions": 2,
    "real_updates.sgd_steps": 2,
    "real_updates.lora_steps": 2,
    "landscape.num_points": 3,
    "landscape.radii": [0.5],
    "landscape.planes": ["random"],
    "lhat.num_foils": 2,
    "features.layers": [1],
    "features.by": "source",
    "features.max_tokens": 4,
    "features.num_random": 1,
}


class Part(NamedTuple):
    """What is made of which rows into which table."""

    make: Any
    table: Table
    rows: Sequence[Row]
    columns: pa.Schema = chosen.CHOSEN
    open_policy: Any = chosen.opened


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Two questions' solutions by four models, of each policy one, with the verdicts that were published."""
    data = gsm8k_solutions().data.model_copy(update={"limit": 2})
    config = gsm8k_solutions()
    found = sources.questions(config, data, stage="generate")
    by_id = {question.question_id: question for question in found.questions}
    made = []
    for item in imports.texts(data, found):
        assert not isinstance(item, records.Rejected)
        trajectory, is_correct = item
        question = by_id[trajectory.question_id]
        verdict = {"verdict": "correct" if is_correct else "wrong", "reason": "", "extracted": "7", "cpu_seconds": 0.0}
        asked = {"problem": question.problem, "answer": question.answer, "domain": question.source}
        row = records.table([trajectory], records.TRAJECTORY).to_pylist()[0]
        made.append(row | verdict | asked)
    assert len(made) == 8
    return made


@pytest.fixture(scope="module")
def policy(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("gsm8k") / "policy")
    base = BaseConfig(kind="random", hidden_size=64, num_layers=2, num_heads=2, intermediate_size=64)
    tokenizer = fresh.tokenizer((row["problem"] + row["text"] for row in rows), base.vocab_size)
    save(fresh.model(base, tokenizer, seed=0), tokenizer, folder)
    return folder


def context_of(folder: Path, policy: str, instrument: str) -> Context:
    step = Step(name=instrument, stage="analyze", overrides={"analyze.instrument": instrument})
    whole = gsm8k_science()
    settings = {
        f"{node}.{name}": getattr(getattr(whole, node), name)
        for node, names in {
            "prompt": ("template", "instruction"),
            "analyze": ("suffix", "until"),
            "verify": ("answer_pattern",),
        }.items()
        for name in names
    }
    changes = {name.replace(".", "__"): value for name, value in (settings | SMALL).items()}
    return contexts.context(folder / "run", step, **(changes | {"policy__path": policy}))


def measured(context: Context, policy: str, part: Part) -> tuple[list[Row], list[str]]:
    """The rows of a shard, as the worker that Ray Data maps makes them, and the reasons of what it set aside."""
    name = "shard-000000.parquet"
    folder = context.folder / part.table.name
    (folder / "chosen").write_table(name, pa.Table.from_pylist(list(part.rows), schema=part.columns))
    job = {"folder": folder.path, "policy": portable(policy), "config": dump(context.config)}
    worker = chosen.ShardWorker(job, part.open_policy, part.make, part.table)
    assert worker({"shard": [0]}) == {"shard": [0], "rows": [len(part.rows)]}
    rejected = (folder / "rejected").read_tables("shard-", records.REJECTED)["reason"].to_pylist()
    return (folder / part.table.name).read_table(name).to_pylist(), rejected


def part_of(context: Context, policy: str, instrument: str, rows: list[Row]) -> Part:
    correct = [row for row in rows if row["verdict"] == "correct"][:1]
    wrong = [row for row in rows if row["verdict"] == "wrong"][:1]
    some = [*correct, *wrong]
    if instrument == "lhat":
        return Part(lhat.Curves, lhat.CURVES, lhat.with_others(some), lhat.COLUMNS)
    if instrument == "pseudo_update":
        return Part(pseudo_update.Updates, pseudo_update.UPDATES, some)
    if instrument == "real_updates":
        return Part(real_updates.RealUpdates, real_updates.CHANGES, some)
    if instrument == "interventions":
        words = [row | {"frequencies": "{}"} for row in rows]
        return Part(interventions.Interventions, interventions.INTERVENTIONS, words, interventions.COLUMNS)
    if instrument == "landscape":
        blocks = landscape.blocks(some[:1], context.config.landscape)
        return Part(landscape.Landscape, landscape.POINTS, blocks, landscape.BLOCK)
    if instrument == "features":
        return Part(features.States, features.STATES, rows, features.COLUMNS)
    assert instrument == "roles"
    curves, _ = measured(context, policy, part_of(context, policy, "lhat", rows))
    gold = {curve["trajectory_id"]: curve for curve in curves if curve["probe"] == "gold"}
    with_curves = [
        row | {name: gold[row["trajectory_id"]][name] for name in ("position", "lhat", "leak_position")} for row in some
    ]
    return Part(roles.Roles, roles.WORDS, with_curves, roles.CURVE, chosen.tokenizer_alone)


@pytest.mark.parametrize("instrument", sorted(set(get_args(Instrument)) - ENGINES))
def test_an_instrument_measures_real_solutions_and_sets_none_aside(
    instrument: str, rows: list[dict[str, Any]], policy: str, tmp_path: Path
) -> None:
    context = context_of(tmp_path, policy, instrument)
    part = part_of(context, policy, instrument, rows)
    found, rejected = measured(context, policy, part)
    assert rejected == []
    assert {row[part.table.key] for row in found} == {row[part.table.key] for row in part.rows}


def test_words_and_partial_results_are_found_in_text_that_people_wrote(
    rows: list[dict[str, Any]], policy: str, tmp_path: Path
) -> None:
    context = context_of(tmp_path, policy, "features")
    states, _ = measured(context, policy, part_of(context, policy, "features", rows))
    written = {(row["trajectory_id"], row["result"]) for row in states}
    for row in rows:
        # every `<<16-3=13>>` of a solution states one (Janet's ducks: 13, 26)
        for each in row["text"].split("<<")[1:]:
            result = each.partition(">>")[0].partition("=")[2]
            assert (row["trajectory_id"], result) in written
    trained = features_probes.trained(context, rows, states)
    (domain,) = trained.figures["domains"]
    assert domain.endswith("example_model_solutions.jsonl")
    assert trained.figures["domains"][domain]["questions"] == 2
