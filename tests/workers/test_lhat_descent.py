"""A trajectory's descent ends where it writes the answer: what it copies is none."""

import torch

from raml_ray.miniature import tokenizer as miniature
from raml_ray.records import Verdict
from raml_ray.settings import TrainConfig
from raml_ray.workers import grpo_groups, lhat_descent, rollouts, sharding
from raml_ray.workers.rollouts import Rollout
from tests.workers import ranks, tiny
from tests.workers.test_grpo_loop import SETTINGS

TOKENIZER = miniature.build()
GOLD = "7"
TEXTS = {
    "<think>\n 9 8\n 7 1\n</think>\n 7": 5,  # <think>, newline, 9, 8, newline; then the answer
    "<think>\n 9 8\n 7 7 7 7\n</think>\n 7": 5,
    "<think>\n 9 8\n": 5,  # cut off before its answer, with all that the first two have before theirs
    "7 is it. <think>\n 9 8\n</think>": 0,  # it begins with the answer
    "<think>\n 9 8\n</think>\n 7": 6,  # thinking ends before the answer is written
    "<think>\n 9 17\n</think>\n": 6,  # seventeen is not seven
}
"""Text -> tokens of it before which the answer 7 has been asked for."""


def probed(text: str) -> Rollout:
    ids = list(TOKENIZER(text, add_special_tokens=False)["input_ids"])
    asked = rollouts.probe_of(TOKENIZER, ids, (), GOLD)
    return Rollout("q", [5, 6], ids, [-1.0] * len(ids), "stop", [], Verdict.WRONG, probe=asked)


def descents(texts: list[str]) -> list[float]:
    learner = sharding.wrap(
        tiny.served(vocab_size=len(TOKENIZER), max_position_embeddings=64, seed=2), TrainConfig(packing=False)
    )
    return lhat_descent.descents(learner, [[probed(text) for text in texts]], TrainConfig())[0].tolist()


def test_the_answer_is_asked_for_before_it_is_written() -> None:
    asked = {text: probed(text).probe for text in TEXTS}
    assert {text: probe.num_before for text, probe in asked.items() if probe} == TEXTS


def test_the_end_of_a_response_is_no_thinking_and_no_response_has_no_probe() -> None:
    ids = [279, 281, 0]
    with_end, without = (rollouts.probe_of(TOKENIZER, ids, stop, "3") for stop in ((), (0,)))
    assert with_end and without
    assert (with_end.num_before, without.num_before) == (3, 2)
    assert rollouts.probe_of(TOKENIZER, [], (0,), "3") is None


def test_copying_is_no_descent() -> None:
    with ranks.alone():
        once, often, cut, at_once, ended, other = descents(list(TEXTS))
    assert abs(at_once) < 1e-5  # the prompt alone, minus itself
    torch.testing.assert_close(torch.tensor([once, often]), torch.tensor([cut, cut]), atol=1e-6, rtol=0)
    assert min(abs(found - cut) for found in (ended, other)) > 1e-3


def test_a_trajectory_that_copies_is_chosen_by_what_came_before() -> None:
    """Of what it asks by hand: L-hat 2.0 at the prompt; 1.9 before `7 7 7 7`, 0.1 behind it; 1.5 where it is not written."""
    given = [[probed("<think>\n 9 8\n 7 7 7 7\n</think>\n 7"), probed("<think>\n 9 17\n</think>\n")]]
    lhat = ({0: 2.0, 5: 1.9, 11: 0.1}, {0: 2.0, 6: 1.5})
    descent_QG = torch.tensor(
        [[lhat[place][0] - lhat[place][row.probe.num_before] for place, row in enumerate(given[0])]]
    )  # type: ignore[union-attr]
    torch.testing.assert_close(descent_QG, torch.tensor([[0.1, 0.5]]))
    settings = SETTINGS.model_copy(update={"selection": "lhat_descent", "num_updated": 1})
    judged = grpo_groups.judge(given, settings, seed=0, descent_QG=descent_QG)
    assert judged.updated_QG.tolist() == [[False, True]]
