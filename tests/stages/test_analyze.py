"""Instruments along chosen trajectories: whose tokens, which positions, and what is set aside."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from raml_ray import records
from raml_ray.config import Config, ConfigError, Step
from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import Instrument, PromptConfig
from raml_ray.stages import analyze, learner_probe, mapping, verify
from raml_ray.stages.context import INSTRUMENT_READS
from raml_ray.stages.instruments import chosen, modes
from raml_ray.storage import Folder
from raml_ray.text import prompts
from tests.stages import contexts
from tests.stages.test_verify import oracle, verifying


@pytest.mark.ray
def test_the_thinking_of_chosen_trajectories_is_probed_to_its_end(cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    oracle(root)
    judged = verifying(root, "long")
    contexts.finish(judged, verify.run(judged))
    context = contexts.context(
        root, Step(name="analyze", stage="analyze", data=("verify",)), analyze__num_questions=2, analyze__num_correct=2
    )
    outcome = analyze.run(context)
    outcome.counts.check()
    assert (outcome.counts.rows_in, outcome.counts.rows_out) == (4, 4)
    shards = context.folder / "curves"
    curves = shards.read_table(shards.names()[0]).to_pylist()
    assert {curve["probe"] for curve in curves} == {"gold", "foil", "shuffled", "foreign", "spliced"}
    for curve in curves:
        assert curve["position"] == list(range(len(curve["lhat"])))
        assert len(curve["position"]) < curve["num_tokens"] + 1
    assert outcome.figures["groups"]["correct"]["num"] == 4
    assert outcome.figures["groups"]["wrong"] == {"num": 0}
    again = analyze.run(context)
    assert again == outcome
    # Learners can be given the same trajectories to look at: three places of each.
    probing = {"train__probe_every": 2, "train__probe_data": "verify", "train__probe_trajectories": 2}
    learning = contexts.context(root, Step(name="sft", stage="sft", data=("verify",)), **probing)
    assert len(learner_probe.examples(learning)) == 6
    rest = [curve for curve in curves if curve["trajectory_id"] != curves[0]["trajectory_id"]]
    shards.write_table(shards.names()[0], records.table(rest, records.ANSWER_CURVE))
    with pytest.raises(RuntimeError, match="1 are lost"):
        analyze.run(context)


def row(text: str, **changes: Any) -> dict[str, Any]:
    return {
        "trajectory_id": "t",
        "question_id": "q",
        "problem": "Sum: _ 7 9",
        "answer": "16",
        "text": text,
        "verdict": "correct",
        "sampling": json.dumps({"stop_token_ids": [miniature.build().eos_token_id]}),
        "token_ids": None,
        "prompt_token_ids": None,
    } | changes


def test_sampled_ids_count_only_as_the_tokens_of_this_policy() -> None:
    tokenizer, prompt = miniature.build(), PromptConfig()
    asked = prompts.prompt_token_ids(tokenizer, "Sum: _ 7 9", prompt)
    text = "<think>\n _ 7 9\n</think>"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    assert chosen.token_ids(tokenizer, row(text), prompt) == (asked, tokens)
    own = row(text, token_ids=[*tokens, eos], prompt_token_ids=asked)
    assert chosen.token_ids(tokenizer, own, prompt) == (asked, tokens)
    # Another tokenizer's ids mean something else here: the text counts.
    foreign = row(text, token_ids=[3, 4, 5], prompt_token_ids=[1, 2])
    assert chosen.token_ids(tokenizer, foreign, prompt) == (asked, tokens)


def test_a_forced_beginning_is_in_the_prompt_once() -> None:
    tokenizer, prompt = miniature.build(), PromptConfig(response_prefix="<think>\n")
    prompt_ids, response_ids = chosen.token_ids(tokenizer, row("<think>\n _ 7 9\n</think>"), prompt)
    whole = tokenizer.decode([*prompt_ids, *response_ids])
    assert whole.count("<think>") == 1
    with pytest.raises(ValueError, match="but the trajectory begins"):
        chosen.token_ids(tokenizer, row("no thinking"), prompt)


def test_a_row_that_cannot_be_measured_is_set_aside_alone() -> None:
    reasons = []

    class Twice(chosen.RowByRow):
        def of(self, row: chosen.Row) -> list[chosen.Row]:
            if row["trajectory_id"] == "bad":
                raise ValueError("too long")
            return [row, row]

    rows = [{"trajectory_id": name} for name in ("a", "bad", "b")]
    found = Twice()(rows, lambda row, reason: reasons.append((row["trajectory_id"], str(reason))))
    assert [row["trajectory_id"] for row in found] == ["a", "a", "b", "b"]
    assert reasons == [("bad", "too long")]


def test_a_step_that_measured_nothing_fails_with_the_first_reason(tmp_path: Path) -> None:
    folder, shard, rows = (
        Folder(str(tmp_path)),
        "shard-000000.parquet",
        [{"trajectory_id": name} for name in ("a", "b")],
    )

    def complete(*measured: str) -> chosen.Measured:
        table = [{"trajectory_id": name, "question_id": "q", "mode": "m"} for name in measured]
        (folder / modes.CUTS.name).write_table(shard, records.table(table, modes.CUTS.schema))
        others = [row["trajectory_id"] for row in rows if row["trajectory_id"] not in measured]
        mapping.write_rejected(
            folder, shard, [records.rejected(key, "analyze", f"{key} is long", {}) for key in others]
        )
        return chosen._complete(folder, rows, modes.CUTS, "cut")

    with pytest.raises(ConfigError, match=r"'cut' has measured nothing: all 2 rows .* the first because a is long"):
        complete()
    assert complete("b").num_rejected == 1


def test_every_instrument_has_its_file_its_part_of_the_page_and_its_settings() -> None:
    for name in get_args(Instrument):
        assert callable(import_module(f"raml_ray.stages.instruments.{name}").run)
        assert callable(import_module(f"raml_ray.stages.report_{name}").shown)
        assert set(INSTRUMENT_READS[name]) <= set(Config.model_fields)
