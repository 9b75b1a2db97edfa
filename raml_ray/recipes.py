"""What `grpo.loss` names: the parts of a published recipe, each of which a setting of its own can replace."""

from typing import Literal, NamedTuple

from raml_ray.settings import GrpoConfig

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


class Recipe(NamedTuple):
    """Every choice that `grpo.loss` leaves to its recipe, made."""

    surrogate: Literal["token_ratio", "sequence_ratio", "clipped_weight"]
    """What is clipped (formulas/policy_losses.py): a token's ratio, its sequence's, or a token's weight."""
    aggregation: Aggregation
    advantage: Literal["standardized", "centered"]
    clip_low: float
    clip_high: float
    max_refills: int
    overlong_tokens: int


def of(grpo: GrpoConfig) -> Recipe:
    """The recipe that `grpo.loss` names, with every part that is set otherwise replaced.

    Sources: Shao et al. 2024 (GRPO), arXiv:2402.03300, with the token mean and the upper bound of Yu et al. 2025 (DAPO),
    arXiv:2503.14476, section 3; Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783, section 3.2; Zheng et al. 2025 (GSPO),
    arXiv:2507.18071, section 5.1; MiniMax 2025 (CISPO), arXiv:2506.13585, section 3.1, which bounds weights above alone.
    """
    grpo_recipe = Recipe("token_ratio", "token_mean", "standardized", 0.2, 0.28, 0, 0)
    match grpo.loss:
        case "grpo":
            named = grpo_recipe
        case "dapo":
            # DAPO's 4,096 of 20,480 tokens are a fifth.
            named = grpo_recipe._replace(max_refills=3, overlong_tokens=grpo.max_tokens // 5)
        case "dr_grpo":
            named = grpo_recipe._replace(aggregation="constant", advantage="centered", clip_high=0.2)
        case "gspo":
            named = grpo_recipe._replace(
                surrogate="sequence_ratio", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4
            )
        case "cispo":
            named = grpo_recipe._replace(surrogate="clipped_weight", clip_low=1.0)
    parts = {name: getattr(grpo, name, None) for name in Recipe._fields}
    return named._replace(**{name: value for name, value in parts.items() if value is not None})


def questions_of_a_step(grpo: GrpoConfig) -> int:
    """Questions that a policy version asks: with `grpo.compute_matched` as many more as fewer of each are updated on."""
    if not grpo.compute_matched:
        return grpo.questions_per_step
    return grpo.questions_per_step * grpo.num_trajectories // grpo.num_updated
