"""How much the outer gradient hangs on which n of a question's G trajectories were drawn (paper, Fig. 9)."""

from itertools import chain

from torch import Tensor

from raml_ray.formulas import selection
from raml_ray.formulas.spread import Spread, squared_norm
from raml_ray.records import seed_of
from raml_ray.settings import GrpoConfig, TrainConfig
from raml_ray.workers.grpo_groups import Judged, examples
from raml_ray.workers.grpo_update import accumulate, denominator
from raml_ray.workers.rollouts import Groups
from raml_ray.workers.sft_plan import share
from raml_ray.workers.sharding import Sharded


def measured(
    policy: Sharded, groups: Groups, judged: Judged, settings: GrpoConfig, limits: TrainConfig, *, seed: int
) -> dict[str, float]:
    """The trace of the gradient's covariance over random draws of `num_updated` trajectories, and that trace over the
    squared norm of the gradient of all G; the policy stays as it is.

    The gradient is that of the policy loss (no divergence, no entropy) over all questions, where the policy still is the
    one that sampled. Draws are random whatever `grpo.selection` is. Nothing if no question has anything to teach.
    """
    plain = settings.model_copy(update={"kl_coefficient": 0.0, "entropy_coefficient": 0.0})
    whole = _gradient(policy, groups, judged._replace(updated_QG=judged.valid_QG), plain, limits)
    if whole is None:
        return {}
    norm = squared_norm(whole, policy.total)
    del whole
    spread = Spread(policy.total)
    for draw in range(settings.gradient_variance_draws):
        drawn_QG = selection.at_random(judged.valid_QG, settings.num_updated, seed_of(seed, "gradient", draw))
        gradient = _gradient(policy, groups, judged._replace(updated_QG=drawn_QG), plain, limits)
        assert gradient is not None
        spread.add(gradient)
    trace = spread.trace()
    return {
        "grpo/gradient_variance": trace / norm if norm else 0.0,
        "grpo/gradient_variance_trace": trace,
        "grpo/gradient_squared_norm": norm,
    }


def _gradient(
    policy: Sharded, groups: Groups, judged: Judged, settings: GrpoConfig, limits: TrainConfig
) -> list[Tensor] | None:
    """This rank's part of the loss's gradient on all updated trajectories together; None if there are none."""
    drawn = list(chain.from_iterable(examples(groups, judged)))
    # Of trajectories whose advantages are all 0 one is enough to make the gradient 0.
    teaching = [example for example in drawn if example.fields["advantage"][0] != 0.0] or drawn[:1]
    mine = share(teaching, policy.rank, policy.world_size)
    found = accumulate(policy, mine, denominator(drawn, settings), settings, limits)
    return None if found is None else policy.take_gradient()
