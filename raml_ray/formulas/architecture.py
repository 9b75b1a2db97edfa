"""What a decoder is made of, from the numbers of its config.json alone: its parameters, and what its passes compute.

`model_flops` is what the mathematics needs (2 per multiply-add; a causal token attends to itself and those before it; logits
exist for scored tokens alone), so that utilisation is none of what an implementation computes in vain or twice:

    forward   2 N t + 2 V D s + 4 L W p
    backward  twice that; of frozen weights once

N parameters of all layers' matrices, t tokens, V D the output head, s scored tokens, L layers, W = heads x head size,
p = sum over sequences of T (T + 1) / 2 attended pairs. Without the last two details it is the usual 6 N + 12 L W T a token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

KNOWN = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures (config.model_type) of which the shapes below are all that they have."""


class Architecture(NamedTuple):
    """A dense decoder: `Architecture("qwen2", 24, 896, 4864, 14, 2, 64, 151936, True, True, False)` (Qwen2.5-0.5B)."""

    model_type: str
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool
    """Input and output embedding are one matrix."""
    has_qkv_bias: bool
    has_other_bias: bool
    """Of the attention's output."""

    @property
    def attention_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """A layer's matrices by name: (in, out)."""
        wide, narrow = self.attention_width, self.num_kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, wide),
            "k_proj": (self.hidden, narrow),
            "v_proj": (self.hidden, narrow),
            "o_proj": (wide, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer's matrices."""
        return sum(rows * columns for rows, columns in self.linears.values())

    @property
    def layer_parameters(self) -> int:
        """Of one layer, norms and biases too."""
        biases = self.attention_width + 2 * self.num_kv_heads * self.head_dim if self.has_qkv_bias else 0
        biases += self.hidden if self.has_other_bias else 0
        head_norms = 2 * self.head_dim if self.model_type == "qwen3" else 0
        return self.layer_matrices + biases + 2 * self.hidden + head_norms

    @property
    def embedding_parameters(self) -> int:
        """Of the input embedding, the output head if that is another matrix, and the last norm."""
        return self.vocab_size * self.hidden * (1 if self.is_tied else 2) + self.hidden

    @property
    def num_parameters(self) -> int:
        return self.num_layers * self.layer_parameters + self.embedding_parameters

    def adapter_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Of low-rank adapters beside the matrices of these names in every layer (none named: all)."""
        shapes = [shape for name, shape in self.linears.items() if not targets or name in targets]
        return self.num_layers * rank * sum(rows + columns for rows, columns in shapes)


def of(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture that a config.json (as transformers completes it) describes; None if it is not one of KNOWN."""
    if config.get("model_type") not in KNOWN:
        return None
    heads = int(config["num_attention_heads"])
    is_biased = bool(config.get("attention_bias"))
    return Architecture(
        str(config["model_type"]),
        int(config["num_hidden_layers"]),
        int(config["hidden_size"]),
        int(config["intermediate_size"]),
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or config["hidden_size"] // heads),
        int(config["vocab_size"]),
        bool(config.get("tie_word_embeddings")),
        is_biased or config["model_type"] == "qwen2",
        is_biased,
    )


@dataclass(slots=True)
class Passes:
    """What went through a policy: `Passes(tokens=4096, scored=3200, pairs=2_100_000)`."""

    tokens: int = 0
    """Prompt and response."""
    scored: int = 0
    """Tokens whose log-probability was wanted."""
    pairs: int = 0
    """Of a token and one that it attends to, itself included."""

    def add(self, lengths: Sequence[int], scored: int) -> None:
        """Sequences of these lengths, with so many scored tokens together."""
        self.tokens += sum(lengths)
        self.scored += scored
        self.pairs += sum(length * (length + 1) // 2 for length in lengths)


def model_flops(made: Architecture, forward: Passes, learned: Passes, *, adapters: int = 0) -> int:
    """Floating-point operations of forward passes alone, and of forward and backward passes, as the module says.

    With `adapters` (their parameters) the other weights are frozen and need no gradient of their own.
    """
    matrices, head = made.num_layers * made.layer_matrices, made.vocab_size * made.hidden

    def once(passes: Passes) -> int:
        pairs = 4 * made.num_layers * made.attention_width * passes.pairs
        return 2 * (matrices + adapters) * passes.tokens + 2 * head * passes.scored + pairs

    frozen = 2 * matrices * learned.tokens + 2 * head * learned.scored if adapters else 0
    return once(forward) + 3 * once(learned) - frozen


def _qwen2(*sizes: int, is_tied: bool = False) -> Architecture:
    layers, hidden, intermediate, heads, kv_heads, vocabulary = sizes
    return Architecture(
        "qwen2", layers, hidden, intermediate, heads, kv_heads, hidden // heads, vocabulary, is_tied, True, False
    )


QWEN_32B = _qwen2(64, 5120, 27648, 40, 8, 152064)
TUNED_FROM_QWEN_32B = (
    *("DAPO-Qwen-32B", "Sky-T1-32B-Preview", "Sky-T1-32B-Flash", "LIMO", "Bespoke-Stratos-32B", "s1.1-32B"),
    *("DeepSeek-R1-Distill-Qwen-32B", "Light-R1-32B", "OpenThinker-32B", "OpenThinker2-32B", "QwQ-32B"),
)
PUBLISHED = dict.fromkeys(TUNED_FROM_QWEN_32B, QWEN_32B) | {
    "Qwen2.5-0.5B": _qwen2(24, 896, 4864, 14, 2, 151936, is_tied=True),
    "Qwen2.5-1.5B": _qwen2(28, 1536, 8960, 12, 2, 151936, is_tied=True),
    "Qwen2.5-Math-1.5B": _qwen2(28, 1536, 8960, 12, 2, 151936, is_tied=True),
    "Qwen2.5-7B": _qwen2(28, 3584, 18944, 28, 4, 152064),
    "Qwen2.5-Math-7B": _qwen2(28, 3584, 18944, 28, 4, 152064),
    "Qwen2.5-32B": QWEN_32B,
    "Qwen2.5-72B": _qwen2(80, 8192, 29568, 64, 8, 152064),
    "Qwen2.5-Math-72B": _qwen2(80, 8192, 29568, 64, 8, 152064),
    "DeepSeek-R1-Distill-Qwen-14B": _qwen2(48, 5120, 13824, 40, 8, 152064),
    "Qwen3-32B": Architecture("qwen3", 64, 5120, 25600, 64, 8, 128, 151936, False, False, False),
}
"""Policies by the last part of their hub names, for a plan that is made where the hub is not reached."""


def published(path: str) -> Architecture | None:
    """The architecture of a policy on the hub, by its name alone; None if it is not one of PUBLISHED."""
    name = path.rstrip("/").rsplit("/", 1)[-1].removesuffix("-Instruct")
    return PUBLISHED.get(name)


PEAK_TFLOPS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "A800": 312,
    "H800": 989,
    "L40S": 362,
    "L4": 121,
    "A40": 150,
    "A10": 125,
}
"""Part of a CUDA device's name -> dense bfloat16 with float32 sums, 10^12 operations a second (the makers' data sheets);
the first that fits counts."""


def peak_tflops(device_name: str) -> float | None:
    """Of a device in bfloat16; None if it is not in the table."""
    words = device_name.replace("-", " ").split()
    for name, peak in PEAK_TFLOPS.items():
        if all(word in words for word in name.split()):
            return float(peak)
    return None
