"""Results that the paper (arXiv 2505.19815v1) prints, to stand beside ours. It gives no seeds and no intervals."""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """One policy's row: `Published("Table 2", 8, {"aime24": {"pass_at_k": 20.34, "mg_pass_at_k": 7.43}})`."""

    place: str
    k: int
    sets: Mapping[str, Mapping[str, float]]
    """Known set (`paper:NAME`) -> metric of `evaluate` -> percent."""


def _row(place: str, *numbers: float) -> Published:
    """Of Tables 2 and 3: Pass@8 and mG-Pass@8 on AIME24, MATH500 level 5 and LiveMathBench-Hard."""
    names = ("aime24", "math500-level5", "livemathbench-hard")
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return Published(
        place, 8, {name: {"pass_at_k": p, "mg_pass_at_k": mg} for name, (p, mg) in zip(names, pairs, strict=True)}
    )


def _mode(*numbers: float) -> Published:
    """Of Fig. 11: Avg@16 and Pass@16. Which row is which mode follows its text."""
    names = ("aime24", "math500-level5", "livemathbench-hard-en")
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return Published(
        "Fig. 11", 16, {name: {"accuracy": avg, "pass_at_k": p} for name, (avg, p) in zip(names, pairs, strict=True)}
    )


PUBLISHED = {
    "sft_qwen": _row("Table 2", 20.34, 7.43, 58.42, 35.65, 26.77, 7.43),
    "sft_distill": _row("Table 2", 36.69, 10.29, 82.98, 45.79, 25.15, 10.46),
    "grpo_zero": _row("Tables 2 and 3", 27.37, 4.08, 71.66, 30.48, 27.48, 8.21),
    "grpo_cold": _row("Table 3", 35.87, 11.23, 82.42, 44.92, 42.17, 18.84),
    "qwen3_thinking": _mode(80.63, 93.33, 94.17, 99.25, 58.33, 76.19),
    "qwen3_summarised": _mode(39.79, 80.00, 83.14, 93.96, 27.01, 59.52),
    "qwen3_no_thinking": _mode(27.92, 60.00, 71.12, 90.30, 16.37, 38.10),
}
"""Figs. 4, 7, 8 and 9 print no numbers. Fig. 11's summaries are four of each trajectory, pooled."""
