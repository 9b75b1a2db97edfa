"""L-hat's curves and their controls: which texts, which answers, which positions, and what they come to."""

import copy
from typing import Any

import numpy as np
import pytest

from raml_ray.config import Config, override
from raml_ray.miniature import tokenizer as miniature
from raml_ray.stages.instruments import chosen, lhat, lhat_figures
from tests.stages import contexts

TEXT = "<think>\n _ 7 9\n 7 _ 9\n _ _ 16\n</think>\n\n**Final Answer**\n\\boxed{16}"
OTHER = "<think>\n _ 3 3\n _ 1 5\n _ _ 6\n</think>\n\n**Final Answer**\n\\boxed{6}"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> chosen.Opened:
    return chosen.opened(contexts.policy(tmp_path_factory.mktemp("tiny") / "policy"), Config())


def row(text: str = TEXT, **changes: Any) -> dict[str, Any]:
    return {
        "trajectory_id": "t",
        "question_id": "q",
        "problem": "Sum: _ 7 9",
        "answer": "16",
        "text": text,
        "verdict": "correct",
        "extracted": "16",
        "sampling": "",
        "token_ids": None,
        "prompt_token_ids": None,
        "foreign_text": None,
        "other_answers": ["16"],
    } | changes


def curves(policy: chosen.Opened, *rows: dict[str, Any], **settings: object) -> list[dict[str, Any]]:
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    rejected: list[Any] = []
    found = lhat.Curves(policy, override(Config(), changes))(rows, lambda *reason: rejected.append(reason))
    curves = [dict(curve) for curve in found]
    assert not rejected, rejected
    return curves


def test_positions_end_where_the_setting_says(policy: chosen.Opened) -> None:
    tokens = miniature.build()(TEXT, add_special_tokens=False)["input_ids"]
    end = tokens.index(miniature.build().convert_tokens_to_ids("</think>")) + 1
    plain = {"lhat__num_foils": 0, "lhat__controls": []}
    (thinking,) = curves(policy, row(), **plain)
    (whole,) = curves(policy, row(), analyze__until="", **plain)
    (none,) = curves(policy, row(), analyze__until="</thought>", **plain)
    assert thinking["position"] == list(range(end + 1))
    assert whole["position"] == none["position"] == list(range(len(tokens) + 1))
    assert thinking["lhat"] == pytest.approx(whole["lhat"][: end + 1], abs=1e-4)
    assert thinking["leak_position"] == whole["leak_position"] < end
    assert thinking["foil_margin"] is None
    suffix = miniature.build()("\n\n**Final Answer**\n\\boxed{16", add_special_tokens=False)["input_ids"]
    # What the paper's figure needs to know: the miniature writes <think> itself, as one token.
    assert [(one["think_position"], one["num_suffix"]) for one in (thinking, whole)] == [(1, len(suffix))] * 2
    (in_prompt,) = curves(policy, row(TEXT), prompt__response_prefix="<think>\n", **plain)
    assert in_prompt["think_position"] == 0


def test_a_policy_that_cannot_be_probed_is_refused_before_its_first_row(policy: chosen.Opened) -> None:
    model = copy.deepcopy(policy.model)
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ValueError, match="qwen2 with dynamic RoPE cannot be probed"):
        lhat.Curves(chosen.Opened(model, policy.tokenizer), Config())


def test_a_stride_keeps_the_last_position_and_those_around_the_leak(policy: chosen.Opened) -> None:
    plain = {"lhat__num_foils": 0, "lhat__controls": []}
    (every,), (some,) = curves(policy, row(), **plain), curves(policy, row(), analyze__stride=5, **plain)
    leak, last = every["leak_position"], every["position"][-1]
    assert some["position"] == sorted({0, 5, 10, last, leak - 1, leak} | set(range(0, last, 5)))
    assert some["lhat"] == pytest.approx([every["lhat"][place] for place in some["position"]], abs=1e-5)


def test_the_margin_is_what_wrong_answers_cost_more_than_the_right_one(policy: chosen.Opened) -> None:
    found = curves(policy, row(), lhat__num_foils=3, lhat__controls=[])
    gold, *wrong = found
    assert [curve["probe"] for curve in found] == ["gold", "foil", "foil", "foil"]
    mean = np.mean([curve["lhat"] for curve in wrong], axis=0)
    assert gold["foil_margin"] == pytest.approx((mean - gold["lhat"]).tolist(), abs=1e-5)
    # A foil's curve is the one that it would have as the right answer.
    (as_gold,) = curves(policy, row(answer=wrong[1]["answer"]), lhat__num_foils=0, lhat__controls=[])
    assert wrong[1]["lhat"] == pytest.approx(as_gold["lhat"], abs=1e-5)


def test_a_wrong_trajectory_is_asked_for_its_own_answer_too(policy: chosen.Opened) -> None:
    wrong = row(verdict="wrong", extracted="17")
    found = curves(policy, wrong, lhat__num_foils=10, lhat__controls=["own"])
    assert [curve["answer"] for curve in found if curve["probe"] == "own"] == ["17"]
    assert "17" not in {curve["answer"] for curve in found if curve["probe"] == "foil"}
    own = next(curve for curve in found if curve["probe"] == "own")
    (as_gold,) = curves(policy, row(answer="17"), lhat__num_foils=0, lhat__controls=[])
    assert own["lhat"] == pytest.approx(as_gold["lhat"], abs=1e-5)
    assert {curve["probe"] for curve in curves(policy, row(), lhat__controls=["own"])} == {"gold", "foil"}
    unread = row(verdict="wrong", extracted="")
    assert {curve["probe"] for curve in curves(policy, unread, lhat__controls=["own"])} == {"gold", "foil"}


def test_a_control_is_the_gold_answer_along_another_text(policy: chosen.Opened) -> None:
    found = {curve["probe"]: curve for curve in curves(policy, row(foreign_text=OTHER), lhat__num_foils=0)}
    assert list(found) == ["gold", "shuffled", "foreign", "spliced"]
    texts = {
        "foreign": OTHER,
        # the gold answer stands at 11 of 14 tokens of the thinking: in the last of the other's lines before </think>
        "spliced": OTHER.replace("\n</think>", "\n16\n</think>"),
    }
    for name, text in texts.items():
        (alone,) = curves(policy, row(text), lhat__num_foils=0, lhat__controls=[])
        assert found[name]["lhat"] == pytest.approx(alone["lhat"], abs=1e-5)
        assert found[name]["leak_position"] == alone["leak_position"]
    assert found["foreign"]["leak_position"] is None and found["spliced"]["leak_position"] is not None
    assert len(found["shuffled"]["lhat"]) == len(found["gold"]["lhat"])
    assert found["shuffled"]["lhat"] != found["gold"]["lhat"]


def test_rows_of_a_shard_do_not_change_each_other(policy: chosen.Opened) -> None:
    rows = [row(), row(OTHER, trajectory_id="u", answer="6", verdict="wrong", extracted="7")]
    together = curves(policy, *rows, analyze__probe_memory_mib=8)
    apart = [curve for one in rows for curve in curves(policy, one)]
    assert [curve["probe"] for curve in together] == [curve["probe"] for curve in apart]
    for one, other in zip(together, apart, strict=True):
        assert one["lhat"] == pytest.approx(other["lhat"], abs=1e-5)


def test_another_trajectory_is_the_next_one_of_another_question_with_the_same_verdict() -> None:
    keys = [("q1", "correct"), ("q1", "wrong"), ("q2", "correct"), ("q2", "correct"), ("q3", "correct")]
    rows = [
        {"question_id": question, "verdict": verdict, "text": str(place), "answer": question[1]}
        for place, (question, verdict) in enumerate(keys)
    ]
    found = lhat.with_others(rows)
    assert [one["foreign_text"] for one in found] == ["2", None, "4", "4", "0"]
    assert found[0]["other_answers"] == ["1", "2", "3"]


def curve(probe: str, values: list[float], leak: int | None, key: str = "t", **more: Any) -> dict[str, Any]:
    return {
        "trajectory_id": key,
        "probe": probe,
        "position": list(range(len(values))),
        "lhat": values,
        "leak_position": leak,
        "group": "correct",
        "foil_margin": None,
    } | more


def test_what_curves_come_to_by_hand() -> None:
    found = lhat_figures.figures(
        [
            curve("gold", [3.0, 4.0, 5.0, 1.0], 3, foil_margin=[0.5, 1.0, 1.5, 9.0]),
            curve("foil", [3.5, 5.0, 6.5, 10.0], None),
            curve("foreign", [3.0, 3.0, 3.5, 3.0], None),
            curve("spliced", [3.0, 3.0, 0.5, 0.25], 2),
        ],
        seed=0,
    )["groups"]["correct"]
    means = {name: value["mean"] for name, value in found.items() if isinstance(value, dict) and "mean" in value}
    assert means == {
        "start": 3.0,
        "end": 1.0,
        "drop": 2.0,
        "before_leak": 5.0,
        "drop_before_leak": -2.0,
        "drop_at_leak": 4.0,
        "drop_after_leak": 4.0,
        # of a fall of 2: up from 3 to 5 before, down from 5 to 1 after
        "share_at_leak": 1.0,
        "share_at_leak_before": -1.0,
        "share_at_leak_after": 2.0,
        "margin_start": 0.5,
        "margin_before_leak": 1.5,
    }
    assert (found["num"], found["leaked"], found["foils"]) == (1, 1, 1.0)
    assert found["tau_before_leak"] is None  # fewer than five prefixes
    assert found["tau_after_leak"] is None and found["slope_after_leak"] is None
    assert found["foreign"]["drop_after_leak"] is None  # the answer is not there
    assert found["foreign"]["excess_before_leak"]["mean"] == 3.0 - 5.0
    assert found["spliced"]["drop_at_leak"]["mean"] == 2.5
    assert found["spliced"]["excess_before_leak"]["mean"] == 3.0 - 5.0
    assert found["spliced"]["drop_after_leak"]["mean"] == 2.75
    assert "own" not in found


def test_trends_behind_the_leak_by_hand() -> None:
    values = [2.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    found = lhat_figures.figures([curve("gold", values, 1), curve("gold", values, 6, "u")], seed=0)
    correct = found["groups"]["correct"]
    # The one that leaks at token 1; the other one never does.
    assert correct["leaked"] == 1
    assert (correct["tau_after_leak"]["mean"], correct["slope_after_leak"]["mean"]) == (-1.0, -1.0)
    assert correct["drop_after_leak"]["mean"] == 1.0
    assert correct["drop_before_leak"]["mean"] == (0.0 + 1.0) / 2


def test_a_group_without_a_trajectory_says_so() -> None:
    assert lhat_figures.figures([], seed=0) == {"groups": {"correct": {"num": 0}, "wrong": {"num": 0}}}
