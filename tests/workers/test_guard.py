"""How many optimizer steps may be left out: few in a row, and few of all."""

import pytest

from raml_ray.settings import TrainConfig
from raml_ray.workers import sharding
from raml_ray.workers.arrival import Refused
from raml_ray.workers.guard import Guard
from raml_ray.workers.sharding import Updates
from tests.workers import ranks, test_sharding, tiny


def told(*skipped: bool, after: Updates | None = None, **limits: float) -> str:
    """What ends a learner after as many real steps, these of which have a gradient that is no number."""
    settings = TrainConfig(**limits)
    with ranks.alone():
        learner = sharding.wrap(tiny.model(), settings)
        learner.updates = after or learner.updates
        guard = Guard(learner, settings, lambda step: None)
        for step, is_spoilt in enumerate(skipped, start=1):
            test_sharding.accumulated(learner, test_sharding.EXAMPLES[:1], 100)
            if is_spoilt:
                for parameter in learner._module.parameters():
                    assert parameter.grad is not None
                    parameter.grad.fill_(float("nan"))
            assert learner.step(1e-3).skipped == is_spoilt
            try:
                guard.check(step, "sft.learning_rate=0.001")
            except Refused as refused:
                return str(refused).partition(" had no finite")[0]
    return ""


def test_three_in_a_row_end_it() -> None:
    assert told(False, True, True, True, True) == "sft.learning_rate=0.001: 3 updates in a row up to step 4"
    assert told(True, True, False) == ""


def test_more_of_all_than_their_share_end_it_though_never_three_in_a_row() -> None:
    """Two of three: the fourth that is left out is more than three, and more than 1 % of five."""
    two_of_three = (True, True, False) * 4
    assert told(*two_of_three) == "sft.learning_rate=0.001: 4 of 5 updates up to step 5"
    assert told(*two_of_three, max_skipped_fraction=0.85) == ""  # 8 of 12
    assert told(*two_of_three, max_skipped_fraction=0.6).endswith("4 of 5 updates up to step 5")


@pytest.mark.parametrize(("before", "is_ended"), [(398, True), (399, False)])
def test_one_in_a_hundred_is_allowed_and_counted_over_restarts(before: int, is_ended: bool) -> None:
    """4 of 400 are 1 %, 4 of 399 more."""
    assert bool(told(True, after=Updates(asked=before, skipped=3))) == is_ended
