"""The L-hat instrument on a policy whose L-hat is known: one that falls token by token before its answer is written is seen to
fall, and one that falls by the answer alone is not."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raml_ray import records
from raml_ray.config import Config, override
from raml_ray.miniature import tokenizer as miniature
from raml_ray.stages import report
from raml_ray.stages.instruments import chosen, lhat, lhat_figures
from raml_ray.text import suffix
from tests.stages.test_lhat import row
from tests.stages.test_report import STEPS, finish, folder_of

SIZE, NO_NUMBER, VOTES = 32, 10, 16
"""Of the residual stream. It holds one of ten numbers or none, and from VOTES on how many of the tokens vote for each digit."""
STRENGTH = 4.0
BEHIND = 3
"""A trajectory to the answer d writes d + 3 again and again."""


def voting(shift: int) -> LlamaForCausalLM:
    """A policy whose numbers e vote for the answer e - shift. Its one head looks at all tokens alike, so an answer's vote is the
    share of tokens that vote for it."""
    tokenizer = miniature.build()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=SIZE,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=256,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.dim() == 1 else 0.0)
        attention = model.model.layers[0].self_attn
        attention.o_proj.weight.copy_(torch.eye(SIZE))
        model.model.embed_tokens.weight[:, NO_NUMBER] = 1.0
        for number in range(10):
            written, asked = (tokenizer.convert_tokens_to_ids(text) for text in (f" {number}", str(number)))
            model.model.embed_tokens.weight[written] = torch.eye(SIZE)[number]
            # the norm before it makes a one a root of SIZE
            attention.v_proj.weight[VOTES + (number - shift) % 10, number] = STRENGTH / math.sqrt(SIZE)
            model.lm_head.weight[asked, VOTES + number] = 1.0
    return model


def trajectories() -> list[dict[str, Any]]:
    """Twelve questions with answers of one token; of each a correct trajectory of two to four lines and its answer."""
    rows = []
    for number in range(12):
        answer = number % 10
        line = f" {(answer + BEHIND) % 10}" * 4
        thinking = "\n".join([line] * (2 + number % 3))
        text = f"<think>\n{thinking}\n _ _ {answer}\n</think>\n\n**Final Answer**\n\\boxed{{{answer}}}"
        rows.append(
            row(text, problem="Sum: _", answer=str(answer), trajectory_id=f"t{number}", question_id=f"q{number}")
        )
    return lhat.with_others(rows)


def expected(ids: list[int], shift: int, answer: int) -> float:
    """L-hat by hand: log(sum of exp(logits)) - the answer's logit; a digit without votes, and any other token, has logit 0."""
    tokenizer = miniature.build()
    votes = [
        STRENGTH * ids.count(tokenizer.convert_tokens_to_ids(f" {(digit + shift) % 10}")) / len(ids)
        for digit in range(10)
    ]
    # the last token is no number: a one beside the votes, under the norm before the output head
    scale = math.sqrt(SIZE / (1 + sum(vote**2 for vote in votes)))
    others = len(tokenizer) - 10
    return math.log(others + sum(math.exp(scale * vote) for vote in votes)) - scale * votes[answer]


class Measured(NamedTuple):
    """What came of a voting policy."""

    curves: list[dict[str, Any]]
    correct: dict[str, Any]
    """Figures of the correct trajectories."""
    claims: dict[str, dict[str, Any]]


def measured(root: Path, shift: int) -> Measured:
    """The instrument's curves, its figures, and what the report decides by them."""
    settings = {"root": str(root), "name": "demo", "steps": STEPS, "evaluate.num_bootstrap": 200, "lhat.num_foils": 3}
    config = override(Config(), settings)
    policy = chosen.Opened(voting(shift), miniature.build())
    rejected: list[Any] = []
    curves = list(lhat.Curves(policy, config)(trajectories(), lambda *reason: rejected.append(reason)))
    assert not rejected, rejected
    figures = lhat_figures.figures(curves, seed=0)
    folder = finish(config, "probed", figures)
    (folder / "curves").write_table("shard-0.parquet", records.table(curves, records.ANSWER_CURVE))
    decided = report.build(folder_of(config), config, folder_of(config) / "page")
    return Measured(curves, figures["groups"]["correct"], {claim["id"]: claim for claim in decided["claims"]})


@pytest.fixture(scope="module")
def gradual(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Every token of a trajectory votes for its question's answer."""
    return measured(tmp_path_factory.mktemp("gradual"), BEHIND)


@pytest.fixture(scope="module")
def copying(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The same trajectories, of which the answer alone votes for itself."""
    return measured(tmp_path_factory.mktemp("copying"), 0)


@pytest.mark.parametrize(("shift", "name"), [(BEHIND, "gradual"), (0, "copying")])
def test_the_policy_has_the_curve_that_it_was_built_for(shift: int, name: str, request: pytest.FixtureRequest) -> None:
    tokenizer, config = miniature.build(), Config()
    asked = {each["trajectory_id"]: each for each in trajectories()}
    gold = [curve for curve in request.getfixturevalue(name).curves if curve["probe"] == "gold"]
    assert len(gold) == 12
    for curve in gold:
        mine = asked[curve["trajectory_id"]]
        prompt_ids, ids = chosen.token_ids(tokenizer, mine, config.prompt)
        answer = suffix.answer_suffix(tokenizer, suffix.text_of(config.analyze.suffix), mine["answer"])
        before = list(answer.token_ids[: answer.is_answer.index(True)])
        by_hand = [
            expected([*prompt_ids, *ids[:place], *before], shift, int(mine["answer"])) for place in curve["position"]
        ]
        assert curve["lhat"] == pytest.approx(by_hand, abs=1e-4)
        assert tokenizer.decode(ids[curve["leak_position"] - 1]) == f" {mine['answer']}"


def test_a_gradual_fall_before_the_answer_is_seen_and_told_from_its_controls(gradual: Measured) -> None:
    correct = gradual.correct
    assert correct["tau_before_leak"]["high"] < -0.5 and correct["slope_before_leak"]["high"] < 0
    assert correct["drop_before_leak"]["low"] > 1.0
    # the fall is of this answer, and of this question's trajectory
    assert correct["margin_start"]["mean"] == pytest.approx(0.0, abs=1e-5)
    assert correct["margin_before_leak"]["low"] > 1.0
    assert correct["foreign"]["drop_before_leak"]["high"] < 0 < correct["foreign"]["excess_before_leak"]["low"]
    claim = gradual.claims["lhat-falls"]
    assert claim["outcome"] == "holds" and claim["measurements"][0]["num_questions"] == 12
    assert claim["measurements"][0]["difference"]["low"] > 0.5


def test_a_fall_by_the_answer_alone_is_no_gradual_fall(copying: Measured) -> None:
    correct = copying.correct
    assert correct["drop_at_leak"]["low"] > 0  # what is written is what the policy then says
    assert correct["tau_before_leak"]["low"] > 0 > correct["drop_before_leak"]["high"]
    assert correct["margin_before_leak"]["high"] < correct["margin_start"]["low"] + 1.0
    claim = copying.claims["lhat-falls"]
    assert claim["outcome"] == "does not hold" and claim["measurements"][0]["difference"]["high"] < 0
