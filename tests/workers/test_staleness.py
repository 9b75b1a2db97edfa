"""How old the weights were, counted by hand."""

import pytest

from raml_ray.records import Verdict
from raml_ray.workers import staleness
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sampling import Span


def rollout(*spans: tuple[int, int, int], reason: str = "stop") -> Rollout:
    num = spans[-1][2] if spans else 0
    return Rollout("q", [1], [2] * num, [-1.0] * num, reason, [Span(*span) for span in spans], Verdict.WRONG)


def test_tokens_are_counted_by_the_versions_between_sampling_and_updating() -> None:
    # For version 5: 3 tokens of version 4, then 1 of 5; 4 of version 3 which were cut; and one without an answer.
    rollouts = [rollout((4, 0, 3), (5, 3, 4)), rollout((3, 0, 4), reason="cut"), rollout()]
    assert staleness.metrics(rollouts, 5, 2) == {
        "grpo/staleness_mean": (3 * 1 + 4 * 2) / 8,
        "grpo/staleness_max": 2,
        "grpo/mixed_fraction": 1 / 2,
        "grpo/cut": 1,
        "grpo/staleness_0_tokens": 1,
        "grpo/staleness_1_tokens": 3,
        "grpo/staleness_2_tokens": 4,
    }
    assert staleness.metrics([rollout()], 5, 0)["grpo/staleness_max"] == 0


def test_tokens_that_are_too_old_or_not_yet_possible_stop_the_run() -> None:
    with pytest.raises(RuntimeError, match=r"versions \[3\] came for version 5, grpo.max_staleness=1"):
        staleness.metrics([rollout((3, 0, 4))], 5, 1)
    with pytest.raises(RuntimeError, match=r"versions \[5, 6\] came for version 5, grpo.max_staleness=1"):
        staleness.metrics([rollout((6, 0, 4)), rollout((5, 0, 1))], 5, 1)
