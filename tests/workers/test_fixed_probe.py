"""L-hat that learners tell of fixed trajectories is that of the probe."""

import math
import statistics

import pytest

from raml_ray.miniature import tokenizer as miniature
from raml_ray.settings import TrainConfig
from raml_ray.stages import learner_probe
from raml_ray.text.batches import Example
from raml_ray.text.suffix import answer_suffix
from raml_ray.workers import fixed_probe, probe, sharding
from raml_ray.workers.probe_text import Probe
from tests.workers import ranks, tiny

TOKENIZER = miniature.build()
PROMPT = [5, 6, 7]
TEXTS = ("<think>\n _ 7 9\n _ _ 16\n</think>\n", "<think>\n 8 8\n</think>\n", "16 it is")
SETTINGS = {"suffix": "boxed", "until": "</think>"}


def tokens(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def examples() -> list[Example]:
    return [
        example for text in TEXTS for example in fixed_probe.examples(TOKENIZER, PROMPT, tokens(text), "16", **SETTINGS)
    ]


def told() -> dict[str, float]:
    limits = TrainConfig(max_tokens_per_micro_batch=40)
    learner = sharding.wrap(tiny.served(vocab_size=len(TOKENIZER), max_position_embeddings=64, seed=2), limits)
    found = dict(fixed_probe.FixedProbe(learner, examples(), limits)())
    assert found.pop("time/probe_s") > 0
    return found


def test_places_are_the_start_the_last_prefix_without_the_answer_and_the_end_of_thinking() -> None:
    suffix = answer_suffix(TOKENIZER, "boxed", "16").token_ids[:-2]
    first = fixed_probe.examples(TOKENIZER, PROMPT, tokens(TEXTS[0]), "16", **SETTINGS)
    ids = tokens("<think>\n _ 7 9\n _ _")
    assert [example.prompt_token_ids for example in first] == [
        [*PROMPT, *suffix],
        [*PROMPT, *ids, *suffix],
        [*PROMPT, *tokens("<think>\n _ 7 9\n _ _ 16\n</think>"), *suffix],
    ]
    assert first[1].fields == {
        "probe/lhat_start": [0.0, 0.0],
        "probe/lhat_before_leak": [0.5, 0.5],
        "probe/lhat_end": [0.0, 0.0],
    }


def test_learners_tell_the_probes_lhat_on_any_number_of_ranks() -> None:
    model = tiny.served(vocab_size=len(TOKENIZER), max_position_embeddings=64, seed=2)
    suffix = answer_suffix(TOKENIZER, "boxed", "16")
    # The second never writes the answer; the last, of bytes, begins with it, two tokens: without it there is one.
    places = [(0, 8, 11), (0, 6, 6), (0, 1, 8)]
    asked = []
    for text, (_, before, end) in zip(TEXTS, places, strict=True):
        lengths = sorted({len(PROMPT) + place for place in (0, before, end)})
        asked.append(Probe([*PROMPT, *tokens(text)], lengths, [suffix]))
    curves = [found[0].tolist() for found in probe.answer_nll(model, asked, memory_mib=64)]
    at = {
        fixed_probe.START: [curve[0] for curve in curves],
        fixed_probe.BEFORE_LEAK: [curve[1] for curve in curves],
        fixed_probe.END: [curve[-1] for curve in curves],
    }
    expected = {place: statistics.mean(found) for place, found in at.items()}
    expected |= {f"{place}_se": statistics.stdev(found) / math.sqrt(3) for place, found in at.items()}
    with ranks.alone():
        assert told() == pytest.approx(expected, abs=1e-5)
    for rank in ranks.run(told, 2):
        assert rank == pytest.approx(expected, abs=1e-5)


def test_a_report_has_the_probe_at_the_start_and_every_so_many_steps() -> None:
    limits = TrainConfig(probe_every=2, probe_data="verify")
    told: list[tuple[int, set[str]]] = []
    with ranks.alone():
        learner = sharding.wrap(tiny.served(vocab_size=len(TOKENIZER), max_position_embeddings=64, seed=2), limits)

        def asked(start_step: int) -> list[tuple[int, set[str]]]:
            told.clear()
            report = learner_probe.reporting(
                lambda step, metrics: told.append((step, set(metrics))), learner, examples(), limits, start_step
            )
            for step in range(start_step + 1, start_step + 4):
                report(step, {"sft/loss": 1.0})
            return list(told)

        errors = {place + fixed_probe.ERROR for place in fixed_probe.PLACES}
        probed, plain = {*fixed_probe.PLACES, *errors, "time/probe_s"}, {"sft/loss"}
        assert asked(0) == [(0, probed), (1, plain), (2, probed | plain), (3, plain)]
        assert asked(2) == [(3, plain), (4, probed | plain), (5, plain)]


def test_one_trajectory_alone_has_no_standard_error() -> None:
    limits = TrainConfig(max_tokens_per_micro_batch=40)
    first = fixed_probe.examples(TOKENIZER, PROMPT, tokens(TEXTS[0]), "16", **SETTINGS)
    with ranks.alone():
        learner = sharding.wrap(tiny.served(vocab_size=len(TOKENIZER), max_position_embeddings=64, seed=2), limits)
        assert set(fixed_probe.FixedProbe(learner, first, limits)()) == {*fixed_probe.PLACES, "time/probe_s"}
