"""What a run costs, worked out by hand."""

import pytest

from raml_ray.formulas import architecture, cost
from raml_ray.formulas.architecture import Architecture
from raml_ray.formulas.cost import Device

QWEN_7B = architecture.PUBLISHED["Qwen2.5-7B"]
TINY = Architecture("qwen2", 2, 8, 16, 2, 1, 4, 10, True, False, False)
DEVICE = Device("toy", num_bytes=1e6, bandwidth=1e6, flops=1e9)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-0.5B", 0.49),
        ("Qwen/Qwen2.5-1.5B", 1.54),
        ("Qwen/Qwen2.5-7B", 7.61),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 14.7),
        ("Qwen/QwQ-32B", 32.5),
        ("Qwen/Qwen3-32B", 32.8),
        ("Qwen/Qwen2.5-72B-Instruct", 72.7),
    ],
)
def test_policies_by_name_have_the_parameters_that_their_cards_state(name: str, billions: float) -> None:
    made = architecture.published(name)
    assert made is not None
    assert made.num_parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert architecture.published("someone/else") is None


def test_a_token_of_qwen_7b_has_56_kib_of_keys_and_values() -> None:
    assert cost.kv_bytes(QWEN_7B) == 2 * 2 * 28 * 4 * 128 == 56 * 1024


def test_an_engine_holds_what_fits_beside_its_weights() -> None:
    assert cost.kv_bytes(TINY) == 32
    room = 0.9e6 - 2 * TINY.num_parameters
    assert cost.sequences(TINY, 100, DEVICE, 1, 10_000) == int(room / 3200)
    assert cost.sequences(TINY, 100, DEVICE, 1, 7) == 7
    assert cost.sequences(QWEN_7B, 100, DEVICE, 1, 7) == 0


def test_decoding_takes_the_time_of_reading_weights_and_keys_or_of_computing() -> None:
    read = (2 * TINY.num_parameters + 4 * 100 * 32) / (1e6 * cost.BANDWIDTH_SHARE)
    assert cost.decoding_seconds(TINY, 400, 100, DEVICE, 1, 4) == pytest.approx(100 * read)
    slow = DEVICE._replace(flops=1e3)
    computed = 4 * (2 * TINY.num_parameters + 4 * 2 * 8 * 100) / (1e3 * cost.FLOPS_SHARE)
    assert cost.decoding_seconds(TINY, 400, 100, slow, 1, 4) == pytest.approx(100 * computed)
    with pytest.raises(ValueError, match="do not fit on 1 x toy"):
        cost.decoding_seconds(QWEN_7B, 1, 100, DEVICE, 1, 4)


def test_devices_that_are_not_known_are_refused_with_those_that_are() -> None:
    assert cost.device("H100").flops == 989e12
    with pytest.raises(ValueError, match="H100"):
        cost.device("H1000")
