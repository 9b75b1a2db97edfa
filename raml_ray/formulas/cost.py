"""What a run costs before it is run: seconds of a device for tokens that are sampled, and for operations; bytes on disk.

    decoding   an engine of R devices with B sequences under way makes B tokens in the longer of
               (2 P + B c M) / (R w e_w)   its weights and the sequences' keys and values, read once, and
               B (2 P + ...) / (R f e_f)   the operations of a token;  B is what fits beside the weights, at most max_num_seqs
    operations F / (R f e_f)
    memory     (2 P + B c M) / R of an engine's device
    on disk    12 bytes a sampled token (its id, log-probability and text); 4 a token of a training set; 12 P a checkpoint
               (weights and two moments in float32), train.keep_checkpoints of them, and the policy

P parameters of 2 bytes, c mean tokens of a sequence, M bytes of keys and values a token, w bytes a second of a device's
memory, f operations a second, e the shares of either that implementations reach. Data sheets are the devices'; the shares
are assumptions, of what is usual, and not measured here.
"""

from typing import NamedTuple

from raml_ray.formulas.architecture import PEAK_TFLOPS, Architecture

GIB = 2**30
BANDWIDTH_SHARE = 0.6
"""Assumed of decoding engines."""
FLOPS_SHARE = 0.4
"""Assumed of learners and of reading prompts."""
ENGINE_SHARE = 0.9
"""Of a device's memory that an engine takes."""
MEMORY = {
    "H100": (80e9, 3.35e12),
    "H200": (141e9, 4.8e12),
    "B200": (180e9, 7.7e12),
    "H800": (80e9, 3.35e12),
    "A100": (80e9, 2.0e12),
    "A800": (80e9, 2.0e12),
    "L40S": (48e9, 0.86e12),
    "A40": (48e9, 0.70e12),
    "A10": (24e9, 0.60e12),
    "L4": (24e9, 0.30e12),
}
"""Device -> bytes, bytes a second (the makers' data sheets)."""


class Device(NamedTuple):
    """`Device("H100", 80e9, 3.35e12, 989e12)`."""

    name: str
    num_bytes: float
    bandwidth: float
    """Bytes a second."""
    flops: float
    """Dense bfloat16 operations a second."""


def device(name: str) -> Device:
    """The device of that name. Raises: ValueError with the names that there are."""
    if name not in MEMORY:
        raise ValueError(f"no device {name!r} is known here; these are: {', '.join(MEMORY)}")
    return Device(name, *MEMORY[name], PEAK_TFLOPS[name] * 1e12)


def kv_bytes(made: Architecture) -> int:
    """Keys and values of one token in 2 bytes each."""
    return 2 * 2 * made.num_layers * made.num_kv_heads * made.head_dim


def sequences(made: Architecture, context: float, on: Device, num_devices: int, most: int) -> int:
    """Sequences of so many tokens that an engine holds at once, at most `most`; 0 if not even its weights fit."""
    room = ENGINE_SHARE * on.num_bytes * num_devices - 2 * made.num_parameters
    return max(0, min(most, int(room / (context * kv_bytes(made)))))


def decoding_seconds(
    made: Architecture, tokens: float, context: float, on: Device, num_devices: int, most: int
) -> float:
    """Of one engine for so many tokens. Raises: ValueError if its weights and one sequence do not fit."""
    batch = sequences(made, context, on, num_devices, most)
    if not batch:
        raise ValueError(
            f"{made.num_parameters / 1e9:.1f}B parameters and one sequence do not fit on {num_devices} x {on.name}:"
            " raise engine.tensor_parallel_size"
        )
    read = (2 * made.num_parameters + batch * context * kv_bytes(made)) / (num_devices * on.bandwidth * BANDWIDTH_SHARE)
    attended = 4 * made.num_layers * made.attention_width * context
    computed = batch * (2 * made.num_parameters + attended) / (num_devices * on.flops * FLOPS_SHARE)
    return tokens / batch * max(read, computed)


def seconds(flops: float, on: Device, num_devices: int) -> float:
    """For so many operations."""
    return flops / (num_devices * on.flops * FLOPS_SHARE)
