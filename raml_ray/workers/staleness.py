"""How old the weights were that sampled what a policy version is updated on."""

from collections import Counter
from collections.abc import Iterable

from raml_ray.workers.rollouts import Rollout


def tokens_by_staleness(rollouts: Iterable[Rollout], version: int) -> Counter[int]:
    """Versions between sampling and updating -> response tokens of that age."""
    tokens: Counter[int] = Counter()
    for rollout in rollouts:
        for span in rollout.weight_versions:
            tokens[version - span.version] += span.end - span.start
    return tokens


def check(tokens: Counter[int], version: int, max_staleness: int) -> None:
    """Raises: RuntimeError if a token is older than grpo.max_staleness, or of a version that was not made yet."""
    ages = sorted(tokens)
    if ages and not 0 <= ages[0] <= ages[-1] <= max_staleness:
        versions = sorted(version - age for age in ages)
        raise RuntimeError(
            f"trajectories of versions {versions} came for version {version}, grpo.max_staleness={max_staleness}"
        )


def metrics(rollouts: Iterable[Rollout], version: int, max_staleness: int) -> dict[str, float]:
    """Of a step's trajectories. Raises: as `check`."""
    answered = [rollout for rollout in rollouts if rollout.token_ids]
    tokens = tokens_by_staleness(answered, version)
    check(tokens, version, max_staleness)
    total = max(tokens.total(), 1)
    found = {
        "grpo/staleness_mean": sum(age * num for age, num in tokens.items()) / total,
        "grpo/staleness_max": float(max(tokens, default=0)),
        "grpo/mixed_fraction": sum(len(one.weight_versions) > 1 for one in answered) / max(len(answered), 1),
        "grpo/cut": float(sum(one.finish_reason == "cut" for one in answered)),
    }
    return found | {f"grpo/staleness_{age}_tokens": float(tokens[age]) for age in range(max_staleness + 1)}
