"""A pool of real engine actors, scripted ones, that die, hang and raise."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.actor import ActorHandle
from ray.util.placement_group import placement_group, remove_placement_group
from transformers import Qwen2Config

from raml_ray.config import Config, override
from raml_ray.miniature import task, tokenizer
from raml_ray.records import Judgement, Verdict
from raml_ray.stages.rollout_pool import JUDGED_TOGETHER, RolloutPool, Sampled
from raml_ray.workers import weights
from raml_ray.workers.sync_check import Probe

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REQUEST_TIMEOUT_S = 3
SEQUENCE = [5, 6, 7]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    words = tokenizer.build()
    words.save_pretrained(folder)
    Qwen2Config(vocab_size=len(words)).save_pretrained(folder)
    return folder


def started(policy: Path, **changes: object) -> tuple[ActorHandle, Any]:
    settings: dict[str, object] = {
        "engine.kind": "scripted",
        "engine.request_timeout_s": REQUEST_TIMEOUT_S,
        "engine.start_timeout_s": 60,
        "miniature.num_train": 6,
        "grpo.num_engines": 2,
        "grpo.questions_per_step": 3,
        "grpo.num_trajectories": 4,
        "grpo.num_updated": 4,
        "grpo.max_tokens": 8,
        "verify.num_workers": 1,
    }
    config = override(Config(), settings | {name.replace("__", "."): value for name, value in changes.items()})
    group = placement_group([{"CPU": 1}] * config.grpo.num_engines)
    questions = task.questions("train", config.miniature, seed=0)
    return ray.remote(RolloutPool).options(num_cpus=0).remote(config, str(policy), questions, group), group


@pytest.fixture(scope="module")
def pool(cluster: None, policy: Path) -> Iterator[ActorHandle]:
    actor, group = started(policy)
    assert ray.get(actor.ready.remote(), timeout=120) == 2
    yield actor
    ray.kill(actor)
    remove_placement_group(group)


def probe(policy: Path, shift: float = 0.0) -> Probe:
    """What a scripted engine makes of a sequence: every token is one of the vocabulary."""
    size = Qwen2Config.from_pretrained(policy).vocab_size
    return Probe([SEQUENCE], [np.full(2, shift - math.log(size), dtype=np.float32)])


def publish(pool: ActorHandle, version: int, held_to: Probe) -> None:
    flat, layout = weights.flatten([("weight", torch.arange(3.0))])
    sent = [ray.put(flat)]
    ray.get(pool.publish.remote(version, sent, layout, weights.checksum(flat, layout), held_to), timeout=120)


def sample(pool: ActorHandle, version: int) -> Sampled:
    found: Sampled = ray.get(pool.sample.remote(version), timeout=120)
    return found


@pytest.fixture(scope="module")
def undisturbed(pool: ActorHandle, policy: Path) -> Sampled:
    publish(pool, 3, probe(policy))
    found = sample(pool, 3)
    assert found.engines_replaced == 0
    assert [len(group) for group in found.groups] == [4, 4, 4]
    assert all(row.version == 3 and row.token_ids for group in found.groups for row in group)
    return found


@pytest.mark.parametrize(
    ("faults", "replaced"),
    [
        (["fault-generate-die-0"], 1),
        (["fault-generate-hang-0"], 1),
        # The replacement dies while it is given the weights.
        (["fault-generate-raise-0", "fault-load-die-0"], 2),
    ],
    ids=["dies", "hangs", "raises and its replacement dies while loading"],
)
def test_an_engine_that_fails_halfway_is_replaced_and_its_prompts_get_the_same_answers(
    pool: ActorHandle, policy: Path, undisturbed: Sampled, faults: list[str], replaced: int
) -> None:
    publish(pool, 3, probe(policy))  # forgets what was sampled
    for fault in faults:
        (policy / fault).touch()
    began = time.monotonic()
    disturbed = sample(pool, 3)
    assert not list(policy.glob("fault-*"))
    assert disturbed.engines_replaced == replaced
    # The version of a fresh scripted engine is 0: the replacement was given the weights of version 3.
    assert disturbed.groups == undisturbed.groups
    if "hang" in faults[0]:
        assert time.monotonic() - began >= REQUEST_TIMEOUT_S


def test_what_an_engine_raises_again_on_its_replacement_is_told(pool: ActorHandle, policy: Path) -> None:
    publish(pool, 4, probe(policy))
    faults = [policy / f"fault-generate-raise-{index}" for index in range(8)]
    for fault in faults:
        fault.touch()
    with pytest.raises(RuntimeError, match=r"rollout engine \d was asked for generate, and given up .* came by fault"):
        sample(pool, 4)
    for fault in faults:
        fault.unlink(missing_ok=True)


def test_a_replacement_that_computes_something_else_than_the_learner_is_told(pool: ActorHandle, policy: Path) -> None:
    publish(pool, 5, probe(policy))
    publish(pool, 5, probe(policy, shift=0.01))  # which only a replacement is held to
    (policy / "fault-generate-die-0").touch()
    with pytest.raises(RuntimeError, match=r"replacement of rollout engine \d, given version 5.* 0\.01 nats apart"):
        sample(pool, 5)


def test_a_version_that_was_not_published_cannot_be_sampled(pool: ActorHandle, policy: Path) -> None:
    publish(pool, 6, probe(policy))
    with pytest.raises(RuntimeError, match="version 7 was asked, the engines hold 6"):
        sample(pool, 7)


def test_engines_that_never_come_up_are_named_with_what_was_waited_for(cluster: None, policy: Path) -> None:
    for index in range(4):
        (policy / f"fault-start-hang-{index}").touch()
    actor, group = started(policy, grpo__num_engines=1, engine__start_timeout_s=4)
    with pytest.raises(TimeoutError, match=r"engine 0 was asked for version.*engine\.start_timeout_s=4"):
        ray.get(actor.ready.remote(), timeout=60)
    ray.kill(actor)
    remove_placement_group(group)
    for fault in policy.glob("fault-*"):
        fault.unlink(missing_ok=True)


def test_judges_that_judge_nothing_stop_a_run_however_small_its_steps(policy: Path) -> None:
    pool = RolloutPool.__new__(RolloutPool)  # its judges' watch alone: no engine is needed for it
    pool._config, pool._verdicts, pool._reasons = Config(), Counter(), Counter()
    fine, failed = Judgement(Verdict.WRONG, "different", "1", 0.0), Judgement(Verdict.ERROR, "crash", "1", 0.0)
    for _ in range(JUDGED_TOGETHER - 1):
        pool._watch_judges([failed])
    with pytest.raises(RuntimeError, match=r"100 of 100 verdicts .*error:crash.* verify.max_failed_fraction=0.05"):
        pool._watch_judges([failed])
    pool._verdicts.clear()
    pool._watch_judges([fine] * 95 + [failed] * 5)
    assert not pool._verdicts  # within the bound, and counted anew
