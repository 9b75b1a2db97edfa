"""How many questions a set has, as far as that can be said without reading it; files that are here are counted."""

import os

from raml_ray.config import ConfigError
from raml_ray.settings import DataConfig, MiniatureConfig
from raml_ray.stages import sources
from raml_ray.text import known_sets

QUESTIONS = {"orz-math": 39_000, "orz-math-qwen-72b-rollouts": 10_000, "orz-math-distill-14b-rollouts": 10_000}
"""About so many (paper 3.1, C.2)."""
ROLLOUTS = 64
CORRECT = {"orz-math-qwen-72b-rollouts": 470_000, "orz-math-distill-14b-rollouts": 550_000}
"""Correct rollouts, about (paper C.2)."""


def questions_in(data: DataConfig, miniature: MiniatureConfig) -> int:
    """Questions that a step asks. Raises: ConfigError if that cannot be said."""
    count = _questions(data, miniature)
    return min(count, data.limit) if data.limit else count


def _questions(data: DataConfig, miniature: MiniatureConfig) -> int:
    if data.path.startswith(sources.MINIATURE):
        return miniature.num_train if data.path.endswith("train") else miniature.num_eval
    name = known_sets.name_of(data.path)
    if name:
        parts = [known_sets.KNOWN[part] for part in known_sets.KNOWN[name].parts or (name,)]
        counts = [len(part.picked) or part.num_of_level or (part.num_rows or (0,))[-1] for part in parts]
        if count := sum(counts) or QUESTIONS.get(name, 0):
            return count
    elif data.limit:
        return data.limit
    elif os.path.exists(data.path):
        return sum(1 for _ in sources.rows(data, with_texts=False))
    raise ConfigError(
        f"how many questions {data.path!r} has is not known before it is read: set data.limit for the plan"
    )


def texts_in(data: DataConfig, *, correct: bool = False) -> int:
    """Trajectories of a published set (or the correct ones); 0 for any other set."""
    name = known_sets.name_of(data.path)
    if name not in CORRECT:
        return 0
    share = min(1.0, data.limit / QUESTIONS[name]) if data.limit else 1.0
    return round(share * (CORRECT[name] if correct else QUESTIONS[name] * ROLLOUTS))
