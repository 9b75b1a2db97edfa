"""Every instrument on solutions that nobody here wrote: GSM8K's, with a policy whose tokenizer never saw the miniature."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pyarrow as pa
import pytest

from raml_ray import records
from raml_ray.config import Step, dump, override
from raml_ray.miniature.base import save
from raml_ray.policy_source import portable
from raml_ray.presets import gsm8k_science
from raml_ray.settings import BaseConfig, Instrument
from raml_ray.stages import analyze, generate, imports, pipeline, sources, verify
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import (
    chosen,
    features,
    features_probes,
    interventions,
    landscape,
    lhat,
    modes,
    pseudo_update,
    real_updates,
    roles,
    shorter,
)
from raml_ray.stages.instruments.chosen import Row, Table
from raml_ray.storage import Folder
from raml_ray.text.thinking import encode
from raml_ray.workers import fresh
from raml_ray.workers.policy import load_tokenizer
from tests.stages import contexts

STAGES = {"generate": generate.run, "verify": verify.run, "analyze": analyze.run}
INSTRUMENTS = sorted(get_args(Instrument))
SCRIPTED = {
    "engine.kind": "scripted",
    "data.limit": 2,
    "answers.max_tokens": 8,
    "modes.num_trajectories": 4,
    "modes.num_samples": 1,
    "shorter.num_samples": 1,
}
"""All else is as in `raml run gsm8k_science`."""
SMALL = {
    "interventions.category": "transition",
    "pseudo_update.num_positions": 2,
    "real_updates.sgd_steps": 2,
    "real_updates.lora_steps": 2,
    "landscape.num_points": 3,
    "landscape.points_per_shard": 5,
    "landscape.radii": [0.5],
    "landscape.planes": ["random"],
    "lhat.num_foils": 2,
    "features.layers": [1],
    "features.by": "source",
    "features.max_tokens": 4,
    "features.num_random": 1,
    "features.rank": 2,
}


class Part(NamedTuple):
    """What is made of which rows into which table."""

    make: Any
    table: Table
    rows: Sequence[Row]
    columns: pa.Schema = chosen.CHOSEN
    open_policy: Any = chosen.opened


def imported(step: str, limit: int) -> list[dict[str, Any]]:
    """The texts of the preset's step with the verdicts that were published; people's are right."""
    config = gsm8k_science().for_step(step)
    data = config.data.model_copy(update={"limit": limit})
    found = sources.questions(config, data, stage="generate")
    by_id = {question.question_id: question for question in found.questions}
    made = []
    for item in imports.texts(data, found):
        assert not isinstance(item, records.Rejected)
        trajectory, is_correct = item
        question = by_id[trajectory.question_id]
        verdict = {"reason": "", "extracted": "7", "cpu_seconds": 0.0}
        verdict["verdict"] = "wrong" if is_correct is False else "correct"
        asked = {"problem": question.problem, "answer": question.answer, "domain": question.source}
        row = records.table([trajectory], records.TRAJECTORY).to_pylist()[0]
        made.append(row | verdict | asked)
    return made


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Two questions' solutions by four models, of each policy one."""
    found = imported("solutions", 2)
    assert len(found) == 8
    return found


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
            "answers": ("cut_text",),
            "verify": ("answer_pattern",),
        }.items()
        for name in names
    }
    changes = {name.replace(".", "__"): value for name, value in (settings | SMALL).items()}
    return contexts.context(folder / "run", step, **(changes | {"policy__path": policy}))


def shard(number: int) -> str:
    return f"shard-{number:06d}.parquet"


def worker(context: Context, policy: str, part: Part, *shards: Sequence[Row]) -> chosen.ShardWorker:
    """The worker that Ray Data maps over these shards."""
    folder = context.folder / part.table.name
    for number, rows in enumerate(shards):
        (folder / "chosen").write_table(shard(number), pa.Table.from_pylist(list(rows), schema=part.columns))
    job = {"folder": folder.path, "policy": portable(policy), "config": dump(context.config)}
    return chosen.ShardWorker(job, part.open_policy, part.make, part.table)


def measured(context: Context, policy: str, part: Part) -> tuple[list[Row], list[str]]:
    """The rows of a shard, and the reasons of what was set aside."""
    folder = context.folder / part.table.name
    made = worker(context, policy, part, part.rows)({"shard": [0]})
    assert made == {"shard": [0], "rows": [len(part.rows)]}
    rejected = (folder / "rejected").read_tables("shard-", records.REJECTED)["reason"].to_pylist()
    return (folder / part.table.name).read_table(shard(0)).to_pylist(), rejected


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
    if instrument == "modes":
        return Part(modes.Cuts, modes.CUTS, rows, open_policy=chosen.tokenizer_alone)
    if instrument == "shorter":
        unsummed = [row | {"summaries": []} for row in some]
        return Part(shorter.GuidedWays, shorter.SHORTENED, unsummed, shorter.COLUMNS)
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


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_an_instrument_measures_real_solutions_and_sets_none_aside(
    instrument: str, rows: list[dict[str, Any]], policy: str, tmp_path: Path
) -> None:
    context = context_of(tmp_path, policy, instrument)
    part = part_of(context, policy, instrument, rows)
    found, rejected = measured(context, policy, part)
    assert rejected == []
    assert {row[part.table.key] for row in found} == {row[part.table.key] for row in part.rows}


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_a_fresh_worker_makes_a_lost_shard_to_the_byte(
    instrument: str, rows: list[dict[str, Any]], policy: str, tmp_path: Path
) -> None:
    context = context_of(tmp_path, policy, instrument)
    part = part_of(context, policy, instrument, rows)
    middle = len(part.rows) // 2
    shards = part.rows[:middle], part.rows[middle:]
    assert all(shards)
    worker(context, policy, part, *shards)({"shard": [0, 1]})
    file = Path((context.folder / part.table.name / part.table.name).file(shard(1)))
    before = file.read_bytes()
    file.unlink()
    worker(context, policy, part, *shards)({"shard": [1]})
    assert file.read_bytes() == before


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


def test_features_are_looked_for_in_what_models_and_what_people_wrote(
    rows: list[dict[str, Any]], policy: str, tmp_path: Path
) -> None:
    context = context_of(tmp_path, policy, "features")
    both = [*rows, *imported("human", 4)]
    states, unread = measured(context, policy, Part(features.States, features.STATES, both, features.COLUMNS))
    trained = features_probes.trained(context, both, states)
    models, people = trained.figures["domains"]
    assert models.endswith("example_model_solutions.jsonl") and people.endswith("train.jsonl")
    # Half of two questions and half of four are held out.
    assert [trained.figures["domains"][name]["held_out"] for name in (models, people)] == [1, 2]
    names = [f"probe:{models}", f"probe:{people}", "random:0"]
    assert trained.subspaces["subspace"].to_pylist() == names
    part = Part(features.Projected, features.RESPONSES, trained.blocks, features_probes.BLOCK)
    answered, unanswered = measured(context, policy, part)
    assert unread == unanswered == []
    asked = Counter((row["subspace"], row["layer"], row["domain"]) for row in answered)
    each = [("none", None), *((name, 1) for name in names)]
    assert asked == {(*one, domain): num for one in each for domain, num in ((models, 1), (people, 2))}
    assert {row["verdict"] for row in answered} <= {"correct", "wrong", "unreadable"}


def finished(root: Path, policy: str, name: str) -> tuple[Context, Outcome]:
    """That step of the preset, with engines that are scripted."""
    config = override(gsm8k_science(), SCRIPTED | {"policy.path": policy})
    step = config.step(name)
    context = pipeline.context_of(config, step, Folder(str(root)))
    return context, contexts.finish(context, STAGES[step.stage](context))


@pytest.fixture(scope="module")
def judged(cluster: None, policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which the solutions of `rows` are judged."""
    root = tmp_path_factory.mktemp("judged") / "run"
    for name in ("solutions", "verify"):
        finished(root, policy, name)
    return root


def answers_of(context: Context, outcome: Outcome) -> list[Row]:
    """The answers that were sampled. None was set aside, and what the judge read stands behind an `A:`."""
    told, part = outcome.figures["answers"], context.folder / "answers"
    assert (told["rejected"], told["rejected_reasons"], told["engine_failures"]) == (0, {}, 0)
    answers = (part / "trajectories").read_tables("shard-", records.TRAJECTORY).to_pylist()
    verdicts = (part / "verdicts").read_tables("shard-", records.VERDICT).to_pylist()
    for answer, verdict in zip(answers, verdicts, strict=True):
        assert verdict["verdict"] in ("correct", "wrong", "unreadable")
        assert answer["text"].rpartition("\nA:")[2].strip().startswith(verdict["extracted"])
    return answers


def thought(text: str) -> str:
    """What stands before the line that says the answer."""
    return text.partition("\nA:")[0]


@pytest.mark.ray
@pytest.mark.faults  # for their time
def test_real_solutions_are_cut_before_their_answers_in_every_mode(
    judged: Path, rows: list[dict[str, Any]], policy: str
) -> None:
    context, outcome = finished(judged, policy, "modes")
    assert outcome.counts == Counts(8, 8, 0)
    tokenizer, by_id = load_tokenizer(policy), {row["trajectory_id"]: row for row in rows}
    cuts = (context.folder / "cuts").read_tables("shard-", modes.CUTS.schema).to_pylist()
    # The whole, two ways not to think, five shares and three budgets.
    assert len(cuts) == 8 * (1 + 2 + 5 + 3)
    num_cut: Counter[int] = Counter()
    for cut in cuts:
        text = by_id[cut["trajectory_id"]]["text"]
        begun = str(tokenizer.decode(cut["begun_token_ids"] or []))
        kind, _, size = cut["mode"].rpartition("_")
        if kind == "budget":
            is_cut = len(encode(tokenizer, thought(text) + "\nA:")) > int(size)
            assert is_cut is (cut["begun_token_ids"] is not None)
            num_cut[int(size)] += is_cut
        if kind == "end_of_thought" or (begun and kind == "budget"):
            assert begun.endswith("\nA: ")
            assert thought(text).startswith(begun.removesuffix("\nA: "))
        if cut["mode"] == "end_of_thought_1":
            assert begun == thought(text) + "\nA: "
    # Every budget cuts some that the next one leaves.
    assert 8 >= num_cut[32] > num_cut[64] > num_cut[128] > 0
    answers = answers_of(context, outcome)
    assert len(answers) == 8 * (2 + 5) + num_cut.total()
    prompts = {str(tokenizer.decode(each["prompt_token_ids"])) for each in answers}
    assert prompts == {f"Question: {row['problem']}\nAnswer: " for row in rows}
    per_question = context.folder.read_table("per_question.parquet").to_pylist()
    assert len(per_question) == 2 * (1 + 2 + 5 + 3)
    # One of four models is right on Janet's ducks, three on the bolts of fiber.
    assert [each["accuracy"] for each in per_question if each["mode"] == "thinking"] == [0.25, 0.75]


@pytest.mark.ray
@pytest.mark.faults  # for their time
def test_real_solutions_are_shortened_by_lines(judged: Path, rows: list[dict[str, Any]], policy: str) -> None:
    context, outcome = finished(judged, policy, "shorter")
    # Of each question a right and a wrong one.
    assert outcome.counts == Counts(4, 4, 0)
    tokenizer, by_id = load_tokenizer(policy), {row["trajectory_id"]: row for row in rows}
    shortened = (context.folder / "shortened").read_tables("shard-", shorter.SHORTENED.schema).to_pylist()
    # The whole, nothing, and three ways to three shares.
    assert len(shortened) == len(answers_of(context, outcome)) == 4 * (1 + 1 + 3 * 3)
    assert context.folder.read_table("answered.parquet").num_rows == len(shortened)
    whole = {each["trajectory_id"]: each["num_thinking"] for each in shortened if each["way"] == "whole"}
    for each in shortened:
        text = thought(by_id[each["trajectory_id"]]["text"])
        begun = str(tokenizer.decode(each["begun_token_ids"]))
        assert begun.endswith("\nA: ")
        kept = begun.removesuffix("\nA: ")
        assert each["num_thinking"] <= round(float(each["budget"]) * whole[each["trajectory_id"]])
        assert set(kept.splitlines()) <= set(text.splitlines())
        if each["way"] in ("whole", "none"):
            assert kept == (text if each["way"] == "whole" else "")
        if each["way"] == "truncation":
            assert text.startswith(kept)
        if each["group"] == "correct" and each["way"] == "whole":
            assert each["holds_answer"]
    # Somewhere a line was left out and another one kept.
    assert any(0 < each["num_thinking"] < whole[each["trajectory_id"]] for each in shortened)
