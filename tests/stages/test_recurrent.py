"""Instruments on policies whose past is a state: what they measure is what one forward pass says, or they refuse by name."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raml_ray.config import Config, override
from raml_ray.miniature import tokenizer as miniature
from raml_ray.stages.instruments import chosen, features, interventions, landscape, pseudo_update, real_updates, shorter
from raml_ray.text import suffix
from raml_ray.workers import greedy
from raml_ray.workers.recurrent_forms import context_of
from tests.stages.test_instruments import TEXT as WAITING
from tests.stages.test_lhat import OTHER, TEXT, curves, row
from tests.workers.test_probe_recurrent import SIZES

KINDS = ("mamba", "rwkv")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random policy of the miniature's tokens."""
    folder, tokenizer = tmp_path_factory.mktemp(request.param), miniature.build()
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **sizes, **SIZES[request.param]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in name:
                parameter += 0.15 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def policy(folder: str) -> chosen.Opened:
    return chosen.opened(folder, Config())


def lhat_after(policy: chosen.Opened, response_ids: list[int], answer: str = "16") -> float:
    """Of one forward pass that is asked for nothing but logits."""
    prompt_ids, _ = chosen.token_ids(policy.tokenizer, row(), Config().prompt)
    asked = suffix.answer_suffix(policy.tokenizer, suffix.NAMED["paper"], answer)
    ids = torch.tensor([*prompt_ids, *response_ids, *asked.token_ids])
    with torch.no_grad():
        logprob_T = policy.model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return -float(logprob_T[-len(asked.token_ids) :][torch.tensor(asked.is_answer)].mean())


def test_lhat_and_its_controls_are_those_of_one_forward_pass_per_prefix(policy: chosen.Opened) -> None:
    found = curves(policy, row(foreign_text=OTHER))
    assert {curve["probe"] for curve in found} == {"gold", "foil", "shuffled", "foreign", "spliced"}
    by_name = {curve["probe"]: curve for curve in found}
    for name, text in (("gold", TEXT), ("foreign", OTHER)):
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        lhat_K = by_name[name]["lhat"]
        assert lhat_K == pytest.approx([lhat_after(policy, ids[:place]) for place in range(len(lhat_K))], abs=1e-4)
        assert max(lhat_K) - min(lhat_K) > 0.1


def test_words_in_other_places_are_single_forward_passes(policy: chosen.Opened) -> None:
    config = override(Config(), {"interventions.neutral": ["re: _"], "interventions.num_words": 1})
    (found,) = interventions.Interventions(policy, config).of(row(WAITING, frequencies="{}"))
    ids = policy.tokenizer(WAITING, add_special_tokens=False)["input_ids"]
    # Wait is the seventh token, and its partner the slot behind it
    without = lhat_after(policy, ids[:6])
    assert found["words"][0]["own"] == pytest.approx(lhat_after(policy, ids[:7]) - without, abs=1e-4)
    other = lhat_after(policy, [*ids[:6], ids[7]])
    assert found["words"][0]["other_here"] == pytest.approx(other - without, abs=1e-4)


def test_the_middle_of_a_landscape_is_the_policy_itself_from_its_first_forward_pass_on(
    folder: str, policy: chosen.Opened
) -> None:
    changes = {"landscape.num_points": 3, "landscape.radii": [0.5], "landscape.planes": ["random"]}
    config = override(Config(), changes)
    (block,) = landscape.blocks([row()], config.landscape)
    points = list(landscape.Landscape(chosen.opened(folder, config), config).of(block))
    before, *_, behind = (each for each in points if each["x"] == each["y"] == 0)
    ids = policy.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert before["lhat"] == pytest.approx(lhat_after(policy, []), abs=1e-4)
    assert behind["lhat"] == pytest.approx(lhat_after(policy, ids[: behind["prefix"]]), abs=1e-4)


def test_sentences_are_worth_what_one_forward_pass_without_them_says(policy: chosen.Opened) -> None:
    asked = row()
    prompt_ids, ids = chosen.token_ids(policy.tokenizer, asked, Config().prompt)
    ways = shorter.GuidedWays(policy, Config())
    thought = shorter.thinking.thought(policy.tokenizer, ids, Config().answers.cut_text)
    order = ways.orders(asked, prompt_ids, thought)["lhat"]
    sentences = [thought.token_ids[slice(*span)] for span in thought.sentences]
    start = thought.token_ids[: thought.start]
    worth = [
        lhat_after(policy, [*start, *(t for p, s in enumerate(sentences) if p != place for t in s)])
        for place in range(len(sentences))
    ]
    assert order == sorted(range(len(worth)), key=worth.__getitem__)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (features.States, {}),
        (features.Projected, {}),
        (pseudo_update.Updates, {}),
        (real_updates.RealUpdates, {}),
        (landscape.Landscape, {"landscape.planes": ["random", "update"]}),
    ],
)
def test_what_needs_attention_refuses_a_state_by_its_name_before_any_trajectory(
    make: Any, changes: dict[str, object], policy: chosen.Opened
) -> None:
    kind = policy.model.config.model_type
    with pytest.raises(ValueError, match=rf"{kind} policies .*Llama, Mistral and Qwen do"):
        make(policy, override(Config(), changes))


def test_greedy_decoding_refuses_a_state_that_it_would_forget(policy: chosen.Opened) -> None:
    with pytest.raises(ValueError, match=f"{policy.model.config.model_type} policies"):
        greedy.responses(policy.model, [[5, 6], [7]], {0}, max_tokens=3)


def context(model_type: str, **sizes: object) -> int | None:
    return context_of(AutoConfig.for_model(model_type, **sizes))


def test_a_context_is_what_the_architecture_says_of_one() -> None:
    assert context("qwen2", max_position_embeddings=64) == 64
    assert context("rwkv", context_length=512) == 512
    assert context("mamba") is context("mamba2") is context("bloom") is None
