"""L-hat of chosen trajectories: positions, whose tokens, and what is set aside."""

import json
from pathlib import Path
from typing import Any

import pytest

from raml_ray.config import Step
from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import AnalyzeConfig, PromptConfig
from raml_ray.stages import analyze, verify
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
    for curve in curves:
        assert curve["position"] == list(range(len(curve["lhat"])))
        assert len(curve["position"]) < curve["num_tokens"] + 1
    assert outcome.figures["groups"]["correct"]["num"] == 4
    assert outcome.figures["groups"]["wrong"] == {"num": 0}
    again = analyze.run(context)
    assert again == outcome
    shards.write_table(shards.names()[0], shards.read_table(shards.names()[0]).slice(1))
    with pytest.raises(RuntimeError, match="1 are lost"):
        analyze.run(context)


def prober(tmp_path: Path, prompt: PromptConfig, **settings: object) -> analyze.ShardProbe:
    job = {
        "folder": str(tmp_path / "step"),
        "policy_path": contexts.policy(tmp_path / "policy"),
        "settings": AnalyzeConfig.model_validate(settings).model_dump(mode="json"),
        "prompt": prompt.model_dump(mode="json"),
    }
    return analyze.ShardProbe(job)


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


def test_sampled_ids_count_only_as_the_tokens_of_this_policy(tmp_path: Path) -> None:
    tokenizer, prompt = miniature.build(), PromptConfig()
    found = prober(tmp_path, prompt)
    asked = prompts.prompt_token_ids(tokenizer, "Sum: _ 7 9", prompt)
    text = "<think>\n _ 7 9\n</think>"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    assert found._token_ids(row(text)) == (asked, tokens)
    own = row(text, token_ids=[*tokens, eos], prompt_token_ids=asked)
    assert found._token_ids(own) == (asked, tokens)
    # Another tokenizer's ids mean something else here: the text counts.
    foreign = row(text, token_ids=[3, 4, 5], prompt_token_ids=[1, 2])
    assert found._token_ids(foreign) == (asked, tokens)


def test_a_forced_beginning_is_in_the_prompt_once(tmp_path: Path) -> None:
    prompt = PromptConfig(response_prefix="<think>\n")
    prompt_ids, response_ids = prober(tmp_path, prompt)._token_ids(row("<think>\n _ 7 9\n</think>"))
    whole = miniature.build().decode([*prompt_ids, *response_ids])
    assert whole.count("<think>") == 1
    with pytest.raises(ValueError, match="but the trajectory begins"):
        prober(tmp_path, prompt)._token_ids(row("no thinking"))


def test_positions_end_where_the_setting_says(tmp_path: Path) -> None:
    text = "<think>\n _ 7 9\n</think>\n\n**Final Answer**\n\\boxed{16}"
    tokens = miniature.build()(text, add_special_tokens=False)["input_ids"]
    end = tokens.index(miniature.build().convert_tokens_to_ids("</think>")) + 1
    thinking = prober(tmp_path, PromptConfig())._curve(row(text))
    whole = prober(tmp_path, PromptConfig(), until="")._curve(row(text))
    none = prober(tmp_path, PromptConfig(), until="</thought>")._curve(row(text))
    assert thinking["position"] == list(range(end + 1))
    assert whole["position"] == none["position"] == list(range(len(tokens) + 1))
    assert thinking["lhat"] == pytest.approx(whole["lhat"][: end + 1], abs=1e-4)
    assert thinking["leak_position"] == whole["leak_position"] > end
