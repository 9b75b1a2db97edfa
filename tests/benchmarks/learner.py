"""Training tokens per second of the learner next to a bare PyTorch loop on the same packed batches, for SFT and for GRPO.

    python -m tests.benchmarks.learner [--pairs 7] [--threads 2] [--json FILE]

`learner` is what a rank of `sft` and of `grpo` runs: `sharding.wrap` over a process group of one, `sft_loop.train`,
`grpo_update.update`. `bare` is the loop one would write by hand for one device: the same model, weights, attention function
and micro-batches, torch's fused AdamW, gradient clipping, the head over all response tokens of a micro-batch at once (no
chunks, nothing computed twice), and in GRPO the old log-probabilities of a version's first optimizer step taken from its
own forward pass. Both are in one process and take turns step by step, every second pair in the opposite order; they start
from one policy and must report one loss. A policy of random weights, 58 million parameters, of which the (tied) head has
14 %, as in Qwen2.5-1.5B. Prints Markdown.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from raml_ray import recipes
from raml_ray.records import Verdict
from raml_ray.settings import GrpoConfig, SftConfig, TrainConfig
from raml_ray.text.batches import Batch, Example, collate, micro_batches
from raml_ray.workers import attention, grpo_groups, grpo_update, sft_loop, sharding
from raml_ray.workers.rollouts import Rollout
from raml_ray.workers.sampling import Span
from raml_ray.workers.sft_plan import Plan

VOCABULARY = 16_384
RATE = 1e-5
WARM_UP = 2
"""Examples of a first pair that does not count: first calls allocate."""
SAME_LOSS = 1e-3
"""How far the two ways' losses may be apart, relative to the larger: rounding, amplified by the steps in between."""


class Took(NamedTuple):
    """One way's optimizer steps on a batch."""

    seconds: float
    cpu_seconds: float
    """Of all threads: what is left of the comparison on a machine that others use too."""
    loss: float


class Pair(NamedTuple):
    """Both ways, on the same batch."""

    num_tokens: int
    took: dict[str, Took]
    """By way."""


def policy(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=13,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
    )


def examples(num: int, draw: random.Random) -> list[Example]:
    """Random tokens: prompts of 32 to 128, responses around 220 and now and then of 700."""
    found = []
    for _ in range(num):
        prompt, response = draw.randint(32, 128), min(round(draw.lognormvariate(5.4, 0.5)), 700)
        ids = [draw.randrange(VOCABULARY) for _ in range(prompt + response)]
        found.append(Example(ids[:prompt], ids[prompt:]))
    return found


class Bare:
    """A training loop as one would write it for one device."""

    def __init__(self, model: PreTrainedModel, limits: TrainConfig) -> None:
        self._model, self._limits = model.train(), limits
        attention.use_packed(model)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=RATE, betas=(limits.beta1, limits.beta2), weight_decay=0.0, fused=True
        )

    def packed(self, batch: Sequence[Example]) -> list[Batch]:
        return [
            collate(group, packing=True)
            for group in micro_batches(batch, self._limits.max_tokens_per_micro_batch, packing=True)
        ]

    def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Of the response tokens, in their order, (N,)."""
        hidden_1TD = self._model.model(
            input_ids=batch.input_ids_BT,
            position_ids=batch.position_ids_BT,
            use_cache=False,
            packed_lengths=batch.lengths,
        ).last_hidden_state
        places_N = batch.response_mask_BT[0].nonzero()[:, 0]
        logits_NV = self._model.lm_head(hidden_1TD[0, places_N - 1]) / temperature
        return -torch.nn.functional.cross_entropy(logits_NV, batch.input_ids_BT[0, places_N], reduction="none")

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._limits.grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def sft(self, batch: Sequence[Example]) -> float:
        """One optimizer step; the loss."""
        count, total = sum(len(example.response_token_ids) for example in batch), 0.0
        for micro in self.packed(batch):
            loss = -self.logprobs(micro).sum() / count
            loss.backward()
            total += float(loss.detach())
        self.step()
        return total

    def grpo(self, minibatches: Sequence[Sequence[Example]], counts: Sequence[int], settings: GrpoConfig) -> float:
        """An optimizer step on each of the minibatches, all against the policy that there was before the first; the loss.

        `counts` are the tokens of each minibatch's mean.
        """
        packed = [self.packed(minibatch) for minibatch in minibatches]
        with torch.no_grad():
            later = [[self.logprobs(micro, settings.temperature) for micro in minibatch] for minibatch in packed[1:]]
        total = 0.0
        for minibatch, olds, count in zip(packed, [[None] * len(packed[0]), *later], counts, strict=True):
            for micro, old_N in zip(minibatch, olds, strict=True):
                is_response_T = micro.response_mask_BT[0].bool()
                logprob_N = self.logprobs(micro, settings.temperature)
                old_N = logprob_N.detach() if old_N is None else old_N
                ratio_N = (logprob_N - old_N).exp()
                advantage_N = micro.fields["advantage"][0, is_response_T]
                clipped_N = ratio_N.clamp(1 - RECIPE.clip_low, 1 + RECIPE.clip_high)
                loss_N = -torch.minimum(advantage_N * ratio_N, advantage_N * clipped_N)
                weight_N = (old_N - micro.fields["rollout_logprob"][0, is_response_T]).exp().clamp(max=CAP)
                loss = (loss_N * weight_N).sum()
                (loss / count).backward()
                total += float(loss.detach())
            self.step()
        return total / sum(counts)


RECIPE, CAP = recipes.of(GrpoConfig()), GrpoConfig().correction_cap


def timed(step: Callable[[], float]) -> Took:
    began, began_cpu = time.perf_counter(), time.process_time()
    loss = step()
    return Took(time.perf_counter() - began, time.process_time() - began_cpu, loss)


def sft_pairs(options: argparse.Namespace, limits: TrainConfig) -> Iterator[Pair]:
    """`sft_loop.train` is one call for all steps: the bare loop takes its turns where the learner is handed a batch, and
    where it reports."""
    learner, bare = sharding.wrap(policy(options.seed), limits), Bare(policy(options.seed), limits)
    draw = random.Random(options.seed)
    batches = [examples(num, draw) for num in [WARM_UP] + [options.examples] * options.pairs]
    num_steps = len(batches)
    pairs = [Pair(sum(map(len, batch)), {}) for batch in batches]
    began = (0.0, 0.0)

    def shares() -> Iterator[list[Example]]:
        nonlocal began
        for number, batch in enumerate(batches):
            if number % 2:
                pairs[number].took["bare"] = timed(lambda batch=batch: bare.sft(batch))
            began = time.perf_counter(), time.process_time()
            yield batch

    def report(step: int, metrics: Mapping[str, float]) -> None:
        seconds, cpu_seconds = time.perf_counter() - began[0], time.process_time() - began[1]
        pairs[step - 1].took["learner"] = Took(seconds, cpu_seconds, metrics["sft/loss"])
        if "bare" not in pairs[step - 1].took:
            pairs[step - 1].took["bare"] = timed(lambda: bare.sft(batches[step - 1]))

    settings = SftConfig(learning_rate=RATE, warmup_steps=0, schedule="constant", batch_size=1)
    sft_loop.train(
        learner,
        Plan(shard_rows=(num_steps,), shuffle_shards=1, batch_size=1, num_steps=num_steps, seed=0),
        shares(),
        settings,
        limits,
        seed=0,
        start_step=0,
        report=report,
        save=lambda step: None,
    )
    yield from pairs


def group_of(batch: Sequence[Example]) -> list[Rollout]:
    """The examples as one question's rollouts, every second one correct."""
    return [
        Rollout(
            question_id="",
            prompt_token_ids=list(example.prompt_token_ids),
            token_ids=list(example.response_token_ids),
            logprobs=[-9.7] * len(example.response_token_ids),  # about log(1 / VOCABULARY)
            finish_reason="stop",
            weight_versions=[Span(0, 0, len(example.response_token_ids))],
            verdict=Verdict.CORRECT if place % 2 else Verdict.WRONG,
        )
        for place, example in enumerate(batch)
    ]


def grpo_pairs(options: argparse.Namespace, limits: TrainConfig) -> Iterator[Pair]:
    """A question for each optimizer step."""
    learner, bare = sharding.wrap(policy(options.seed), limits), Bare(policy(options.seed), limits)
    learner.train()
    draw = random.Random(options.seed)
    for number, num in enumerate([WARM_UP] + [options.examples] * options.pairs):
        groups = [group_of(examples(num, draw)) for _ in range(options.minibatches)]
        settings = GrpoConfig(
            learning_rate=RATE, num_trajectories=num, num_updated=num, num_minibatches=options.minibatches
        )
        judged = grpo_groups.judge(groups, settings, seed=0)
        minibatches = grpo_groups.examples(groups, judged)
        counts = [sum(len(example.response_token_ids) for example in minibatch) for minibatch in minibatches]

        def by_learner(groups=groups, judged=judged, settings=settings) -> float:
            return grpo_update.update(learner, groups, judged, settings, limits)["grpo/loss"]

        def by_bare(minibatches=minibatches, counts=counts, settings=settings) -> float:
            return bare.grpo(minibatches, counts, settings)

        ways = {"learner": by_learner, "bare": by_bare}
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        yield Pair(sum(map(len, chain(*minibatches))), {way: timed(ways[way]) for way in order})


def checked(pairs: Iterator[Pair]) -> list[Pair]:
    """The pairs that count. Raises: SystemExit if the ways found different losses."""
    found = []
    for number, pair in enumerate(pairs):
        ours, theirs = pair.took["learner"].loss, pair.took["bare"].loss
        if abs(ours - theirs) > SAME_LOSS * max(abs(ours), abs(theirs), 1e-2):
            raise SystemExit(
                f"pair {number}: the learner's loss is {ours}, the bare loop's {theirs}: not the same work"
            )
        found.append(pair)
    return found[1:]


def summary(pairs: Sequence[Pair]) -> dict[str, float]:
    """Medians over the pairs; a ratio is taken within its pair, and of CPU times over all pairs."""
    ratios = [pair.took["bare"].seconds / pair.took["learner"].seconds for pair in pairs]
    cpu = {way: sum(pair.took[way].cpu_seconds for pair in pairs) for way in ("learner", "bare")}
    speeds = {
        way: statistics.median(pair.num_tokens / pair.took[way].seconds for pair in pairs)
        for way in ("learner", "bare")
    }
    return {
        "learner_tokens_per_s": speeds["learner"],
        "bare_tokens_per_s": speeds["bare"],
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "ratio_cpu": cpu["bare"] / cpu["learner"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--examples", type=int, default=12, help="of one optimizer step; about 330 tokens each")
    parser.add_argument("--micro", type=int, default=8192, help="train.max_tokens_per_micro_batch")
    parser.add_argument("--minibatches", type=int, default=2, help="grpo.num_minibatches")
    parser.add_argument("--threads", type=int, default=2, help="cores, and threads, of both ways")
    parser.add_argument("--only", choices=["sft", "grpo"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all pairs there")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads :])
    torch.set_num_threads(options.threads)
    limits = TrainConfig(max_tokens_per_micro_batch=options.micro)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        ways = {"sft": sft_pairs, "grpo": grpo_pairs}
        pairs = {stage: checked(run(options, limits)) for stage, run in ways.items() if options.only in (None, stage)}
        dist.destroy_process_group()
    found = {stage: summary(each) for stage, each in pairs.items()}
    print("| stage | learner tokens/s | bare tokens/s | learner / bare | in CPU time |\n|---|---:|---:|---:|---:|")
    for stage, row in found.items():
        print(
            f"| {stage} | {row['learner_tokens_per_s']:.0f} | {row['bare_tokens_per_s']:.0f} | {row['ratio']:.2f}"
            f" ({row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f}) | {row['ratio_cpu']:.2f} |"
        )
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        every = {
            stage: [{way: took._asdict() for way, took in pair.took.items()} for pair in each]
            for stage, each in pairs.items()
        }
        options.json.write_text(json.dumps({"settings": settings, "summary": found, "pairs": every}, indent=2) + "\n")


if __name__ == "__main__":
    main()
