"""How far L-hat falls along each trajectory's thinking before the answer is written: two prefixes of each alone.

`probe.py` scores every prefix of one trajectory; of two prefixes the second is the trajectory itself, so that packing many
trajectories into one pass, split over the ranks as training is, costs least.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from raml_ray.settings import TrainConfig
from raml_ray.text.batches import Example, batches, micro_batches
from raml_ray.workers.rollouts import Groups, Probe
from raml_ray.workers.sft_plan import share
from raml_ray.workers.sharding import Sharded


def descents(policy: Sharded, groups: Groups, limits: TrainConfig) -> Tensor:
    """L-hat of the gold answer after the prompt minus L-hat at the end of thinking, or at the last prefix before the answer
    is written where that comes first: copying is no descent. (Q, G), nats per answer token; the same on every rank. NaN
    for a trajectory without a probe: the engine refused it. A collective.

    Source: RaML, arXiv:2505.19815, Algorithm 3 and section 4.3 (which trajectories to learn from).
    """
    asked: dict[tuple[int, int], Example] = {}
    for question, group in enumerate(groups):
        for place, rollout in enumerate(group):
            if rollout.probe is not None:
                prompt = rollout.prompt_token_ids
                asked[question, place] = _asked(prompt + rollout.token_ids[: rollout.probe.num_before], rollout.probe)
                asked.setdefault((question, -1), _asked(prompt, rollout.probe))
    lhat = _lhat(policy, asked, limits)
    return torch.tensor(
        [
            [lhat.get((q, -1), torch.nan) - lhat.get((q, g), torch.nan) for g in range(len(group))]
            for q, group in enumerate(groups)
        ]
    )


def _asked(prefix: list[int], probe: Probe) -> Example:
    """The answer as the response to the prefix and what asks for it."""
    num_asking = probe.suffix.is_answer.index(True)
    return Example(prefix + probe.suffix.token_ids[:num_asking], probe.suffix.token_ids[num_asking:])


def _lhat(policy: Sharded, asked: dict[tuple[int, int], Example], limits: TrainConfig) -> dict[tuple[int, int], float]:
    """Mean negative log-probability of each example's response tokens."""
    keys = list(asked)
    lhat_N = torch.zeros(len(keys), dtype=torch.float64, device=policy.device)
    mine = share(range(len(keys)), policy.rank, policy.world_size, length=lambda index: len(asked[keys[index]]))
    examples = {id(asked[keys[index]]): index for index in mine}
    budget, packing = limits.max_tokens_per_micro_batch, limits.packing
    parts = micro_batches([asked[keys[index]] for index in mine], budget, packing=packing)
    passes = int(policy.largest(len(parts)))
    rows = batches([asked[keys[index]] for index in mine], budget, passes, packing=packing)
    for number, batch in enumerate(rows):
        with torch.no_grad():
            logprob_BT = policy.token_logprobs(batch)
        for example, row_T in zip(parts[number] if number < len(parts) else [], batch.split(logprob_BT), strict=False):
            lhat_N[examples[id(example)]] = -row_T[len(example.prompt_token_ids) :].mean()
    dist.all_reduce(lhat_N)
    return dict(zip(keys, lhat_N.tolist(), strict=True))
