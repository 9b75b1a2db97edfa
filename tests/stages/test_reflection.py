"""The claim about reflection words, over draws in which they are like any other word, and in which they are not."""

from pathlib import Path

import numpy as np
import pytest

from raml_ray.config import Config, Step, override
from raml_ray.miniature import tokenizer as miniature
from raml_ray.stages import report_roles
from raml_ray.stages.instruments import roles
from raml_ray.stages.report_outcomes import Claim, Outcome
from tests.stages import contexts
from tests.stages.test_instruments import curve, finished

TEXT = "<think>\n _ 7 9\n 7 _ 9\nWait _ 3 9\n _ _ 6\n</think>"
NUM_QUESTIONS = 20


def decided(root: Path, generator: np.random.Generator, num: int, *, factor: float) -> list[Claim]:
    """The claim in so many draws: every token's step of log L-hat is of Student's t with 2 degrees of freedom, whose sizes
    are as skewed as those of L-hat are; the word's is `factor` times as long."""
    config = override(Config(), {"roles.floor": 1e-300, "evaluate.num_bootstrap": 200, "roles.paper_words": []})
    words = config.roles.model_copy(update={"categories": {"reflection": ("wait",)}})  # for the test's time
    config = config.model_copy(update={"roles": words})
    tokenizer = miniature.build()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    word = ids.index(tokenizer.convert_tokens_to_ids("Wait"))
    measure = roles.Roles(tokenizer, config)
    step = finished(contexts.context(root / "run", Step(name="words", stage="analyze")), {"groups": {}})
    found = []
    for _ in range(num):
        rows = []
        for question in range(NUM_QUESTIONS):
            step_T = generator.standard_t(2, size=len(ids))
            step_T[word] *= factor
            lhat_K = np.exp([0.0, *np.cumsum(step_T)]).tolist()
            rows += measure.of(curve(lhat_K, None, text=TEXT, question_id=f"q{question}"))
        found.append(report_roles._reflects(step, rows, config))
    return found


def test_words_like_any_other_are_rarely_said_to_move_lhat_more(tmp_path: Path) -> None:
    claims = decided(tmp_path, np.random.default_rng(5), 200, factor=1.0)
    shares = {outcome: sum(claim.outcome is outcome for claim in claims) / len(claims) for outcome in Outcome}
    # of intervals at 95 % a fortieth on either side, and a little more, as bootstraps of twenty are narrow
    assert shares[Outcome.HOLDS] <= 0.06
    assert shares[Outcome.FAILS] <= 0.06
    # and what decides is about 0: a share of eight controls has a standard deviation of 0.32, over 200 x 20 words 0.005
    deciding = [one.difference.mean for claim in claims for one in claim.measurements if one.decides and one.difference]
    assert np.mean(deciding) == pytest.approx(0, abs=0.015)


def test_words_that_move_lhat_ten_times_as_far_are_seen(tmp_path: Path) -> None:
    claims = decided(tmp_path, np.random.default_rng(6), 30, factor=10.0)
    assert all(claim.outcome is Outcome.HOLDS for claim in claims)
