"""The paper's published question sets and trajectories, by name: `data.path=paper:orz-math` (paper 3.1).

Where each stands on the Hugging Face hub, and which columns hold what, as the paper's released code reads them.
"""

from typing import NamedTuple

from raml_ray.config import hint
from raml_ray.settings import DataConfig

PAPER = "paper:"


class KnownSet(NamedTuple):
    """One set: `KnownSet("OWNER/NAME", "train", policy="…")`; a policy is whose trajectories it holds."""

    hub_name: str
    split: str = "train"
    policy: str = ""


KNOWN = {
    "orz-math": KnownSet("jnanliu/orz-math-filtered"),
    "orz-math-val": KnownSet("jnanliu/orz-math-filtered-val", "test"),
    "orz-math-qwen-72b-rollouts": KnownSet(
        "jnanliu/orz-math-filtered-qwen-72b-rollout", policy="Qwen2.5-Math-72B-Instruct"
    ),
    "orz-math-distill-14b-rollouts": KnownSet(
        "jnanliu/orz-math-filtered-distill-14b-rollout", policy="DeepSeek-R1-Distill-Qwen-14B"
    ),
}


def resolved(data: DataConfig) -> DataConfig:
    """These settings with a known set's path, split, columns, texts and labels; other settings as they are.

    A known set fills in only what was left at its default. Raises: ValueError with the nearest name if there is no such
    set.
    """
    if not data.path.startswith(PAPER):
        return data
    name = data.path.removeprefix(PAPER)
    if name not in KNOWN:
        there = ", ".join(PAPER + known for known in KNOWN)
        raise ValueError(f"data.path={data.path!r}: no such set{hint(name, list(KNOWN))}; there are {there}")
    known, default = KNOWN[name], DataConfig()
    filled: dict[str, object] = {"split": known.split, "columns": {"problem": "problem", "answer": "answer"}}
    if known.policy and data.texts == default.texts:
        filled |= {"texts": {known.policy: "generations"}, "labels": {known.policy: "labels"}}
    untouched = {field: value for field, value in filled.items() if getattr(data, field) == getattr(default, field)}
    return data.model_copy(update={"path": f"hf:{known.hub_name}", **untouched})
