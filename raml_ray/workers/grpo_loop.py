"""Group relative policy optimisation: on-policy inner-loop paths (paper, sections 2.4 and 3.3), on one rank of any number.

What is distributed is handed in: `sample` asks the rollout engines, `publish` gives them new weights. The loop is the
algorithm: sample G trajectories per question, compare each with its group, move the policy on `num_updated` of them.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial

from raml_ray import faults
from raml_ray.records import seed_of
from raml_ray.settings import GrpoConfig, TrainConfig
from raml_ray.workers import gradient_variance, grpo_groups, lhat_descent, watchdog
from raml_ray.workers.grpo_update import update
from raml_ray.workers.guard import Guard, Keep, Report, Save
from raml_ray.workers.meter import Meter
from raml_ray.workers.rollouts import Groups
from raml_ray.workers.sharding import Sharded

Sample = Callable[[int], tuple[Groups, Mapping[str, float]]]
"""Takes the policy version, gives Q groups of G rollouts that it sampled, and metrics; the same on every rank."""
Publish = Callable[[int], Mapping[str, float]]
"""Gives the engines the weights of a version, proves that they arrived, and returns metrics; called on every rank."""


def train(
    policy: Sharded,
    settings: GrpoConfig,
    limits: TrainConfig,
    *,
    seed: int,
    start_version: int,
    sample: Sample,
    publish: Publish,
    report: Report,
    save: Save,
    keep: Keep | None = None,
    reference: Sharded | None = None,
) -> dict[str, float]:
    """Make the policy's versions start_version + 1 .. grpo.num_steps; figures of what came behind the last report.

    `reference` is the frozen policy that grpo.kl_coefficient needs.

    Raises: arrival.Refused as `Guard.check` does.
    """
    policy.draw_nothing()  # engines sample without dropout: another policy would be scored, learned from and probed
    policy.train()
    guard = Guard(policy, limits, save)
    watchdog.reached("the first weight sync", settings.sample_timeout_s)
    publish(start_version)  # engines may hold what a learner published that has since been restarted
    meter = Meter(policy, limits)
    for version in range(start_version, settings.num_steps):
        watchdog.reached(f"the trajectories of version {version + 1}", settings.sample_timeout_s)
        began = time.perf_counter()
        groups, sample_metrics = sample(version)
        sampled = time.perf_counter()
        watchdog.reached(f"the update of version {version + 1}")
        with meter.updating():
            descent_QG = lhat_descent.descents(policy, groups, limits) if settings.selection == "lhat_descent" else None
            judged = grpo_groups.judge(
                groups, settings, seed=seed_of(seed, "grpo", "select", version), descent_QG=descent_QG
            )
        metrics = grpo_groups.metrics(groups, judged, settings) | dict(sample_metrics)
        if settings.gradient_variance_every and version % settings.gradient_variance_every == 0:
            with meter.busy("time/variance_s"):
                metrics |= gradient_variance.measured(
                    policy, groups, judged, settings, limits, seed=seed_of(seed, "grpo", "variance", version)
                )
        faults.reach("learner", policy.rank, version + 1)
        kept = partial(keep, version + 1) if keep is not None else None
        with meter.updating():
            metrics |= update(policy, groups, judged, settings, limits, reference=reference, keep=kept)
        guard.check(version + 1, f"grpo.learning_rate={settings.learning_rate:g}")
        watchdog.reached(f"the weight sync of version {version + 1}", settings.sample_timeout_s)
        with meter.busy("time/sync_s"):
            synced = publish(version + 1)
        meter.waited("time/sync_s", synced.get("time/drain_s", 0.0))
        metrics |= synced
        watchdog.reached(f"what follows version {version + 1}")
        report(version + 1, metrics | meter.told() | {"time/sample_s": sampled - began})
        with meter.busy("time/checkpoint_s"):
            guard.save(version + 1, is_last=version + 1 == settings.num_steps)
    return meter.figures()
