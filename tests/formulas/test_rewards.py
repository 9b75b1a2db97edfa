import pytest
import torch

from raml_ray.formulas import rewards


def test_an_answer_pays_whatever_its_form():
    assert rewards.correctness(torch.tensor([[True, False, True]]))[0].tolist() == [1.0, 0.0, 1.0]


def test_a_response_pays_for_its_last_tokens():
    # 100 tokens, the last 20 of them dear: 80 are free, 85 cost 5/20, 100 cost all.
    length_QG = torch.tensor([[0, 80, 85, 90, 100]])
    assert rewards.overlong(length_QG, 100, 20)[0].tolist() == [0.0, 0.0, -0.25, -0.5, -1.0]
    assert rewards.overlong(length_QG, 100, 0)[0].tolist() == [0.0] * 5
    with pytest.raises(ValueError, match=r"grpo\.overlong_tokens=101"):
        rewards.overlong(length_QG, 100, 101)
