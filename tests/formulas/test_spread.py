import pytest
import torch

from raml_ray.formulas.spread import Spread, squared_norm


def test_the_trace_is_the_sum_of_the_variances():
    spread = Spread(total=lambda value: value)
    for vector in ([1.0, 0.0], [3.0, 0.0], [5.0, 6.0]):
        spread.add([torch.tensor(vector[:1]), torch.tensor(vector[1:])])
    # Variances of 1 3 5 and of 0 0 6: 4 and 12.
    assert spread.trace() == pytest.approx(16.0)
    assert spread.num == 3


def test_of_one_vector_there_is_no_variance():
    spread = Spread(total=lambda value: value)
    spread.add([torch.ones(2)])
    with pytest.raises(ValueError, match="two vectors"):
        spread.trace()


def test_ranks_that_hold_a_part_each_add_theirs():
    assert squared_norm([torch.tensor([3.0]), torch.tensor([4.0])], total=lambda value: 2 * value) == 50.0
