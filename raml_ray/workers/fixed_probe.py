"""L-hat of fixed trajectories while a policy learns, at three places each: their start, the last prefix before the answer is
written, and their end. Any learner can score them: they are sequences like those that it trains on.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from raml_ray.settings import TrainConfig
from raml_ray.text import leak
from raml_ray.text.batches import Example, batches, micro_batches
from raml_ray.text.suffix import answer_suffix

if TYPE_CHECKING:  # a driver asks for the examples alone
    from raml_ray.workers.sharding import Sharded

START, BEFORE_LEAK, END = "probe/lhat_start", "probe/lhat_before_leak", "probe/lhat_end"
PLACES = (START, BEFORE_LEAK, END)
ERROR = "_se"
"""Behind a place's name: the standard error of its mean."""


def examples(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    response_ids: list[int],
    answer: str,
    *,
    suffix: str,
    until: str,
) -> list[Example]:
    """The trajectory's prefixes, each followed by suffix and answer: the answer is the response, and its tokens' weights in
    the mean are a field named after the place. Without a prefix before the leak that place is left out."""
    end = leak.position_of_text(tokenizer, response_ids, until) if until else None
    last = len(response_ids) if end is None else end
    before = leak.before(tokenizer, response_ids, answer, last)
    asked = answer_suffix(tokenizer, suffix, answer)
    size = asked.num_answer_tokens
    header, answer_ids = asked.token_ids[:-size], asked.token_ids[-size:]
    lengths = {START: 0, BEFORE_LEAK: before, END: last}
    return [
        Example(
            [*prompt_ids, *response_ids[:length], *header],
            answer_ids,
            {name: [1 / size if name == place else 0.0] * size for name in PLACES},
        )
        for place, length in lengths.items()
        if length >= 0
    ]


class FixedProbe:
    """Looks at the same examples again and again, each rank at its share of them."""

    def __init__(self, policy: "Sharded", examples: Sequence[Example], limits: TrainConfig) -> None:
        self._policy, self._limits = policy, limits
        self._mine = list(examples[policy.rank :: policy.world_size])
        self._counts = {place: sum(example.fields[place][0] > 0 for example in examples) for place in PLACES}

    def __call__(self) -> Mapping[str, float]:
        """Mean L-hat at each place, nats per answer token, its standard error over the trajectories where there are two
        or more, and the seconds that all took. A collective."""
        began = time.perf_counter()
        mine = self._lhats()
        found = {}
        for place, count in self._counts.items():
            if count:
                mean = found[place] = self._policy.total(sum(mine[place])) / count
                squares = self._policy.total(sum((lhat - mean) ** 2 for lhat in mine[place]))
                if count > 1:
                    found[place + ERROR] = math.sqrt(squares / (count - 1) / count)
        return found | {"time/probe_s": time.perf_counter() - began}

    def _lhats(self) -> dict[str, list[float]]:
        """Place -> L-hat of each of this rank's examples there."""
        budget, packing = self._limits.max_tokens_per_micro_batch, self._limits.packing
        num_passes = int(self._policy.largest(len(micro_batches(self._mine, budget, packing=packing))))
        found: dict[str, list[float]] = {place: [] for place in PLACES}
        self._policy.train(False)
        with torch.no_grad():
            for batch in batches(self._mine, budget, num_passes, packing=packing):
                logprob_BT = self._policy.token_logprobs(batch).cpu()
                for place, weight_BT in batch.fields.items():
                    weighed = zip(batch.split(logprob_BT), batch.split(weight_BT), strict=True)
                    found[place] += [-float((lp_T * w_T).sum()) for lp_T, w_T in weighed if w_T.any()]
        self._policy.train()
        return found
