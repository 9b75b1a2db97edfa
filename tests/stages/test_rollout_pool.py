"""A pool of real engine actors, scripted ones, that die, hang and raise."""

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from transformers import Qwen2Config

from raml_ray.config import Config, override
from raml_ray.miniature import task, tokenizer
from raml_ray.records import Judgement, Verdict
from raml_ray.stages import rollout_pool
from raml_ray.stages.engine_actor import Bucket
from raml_ray.stages.rollout_judge import JUDGED_TOGETHER, RolloutJudge
from raml_ray.stages.rollout_pool import RolloutPool, Sampled
from raml_ray.stages.rollouts import stop_token_ids
from raml_ray.text import prompts
from raml_ray.workers import policy as policies
from raml_ray.workers import weights
from raml_ray.workers.rollouts import Rollout, questions_of_step, requests_of_step
from raml_ray.workers.sampling import Completion, Failure, Sampling
from raml_ray.workers.scripted_engine import ScriptedEngine
from raml_ray.workers.sync_check import Probe

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STALL_TIMEOUT_S = 5
SEQUENCE = [5, 6, 7]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    words = tokenizer.build()
    words.save_pretrained(folder)
    Qwen2Config(vocab_size=len(words)).save_pretrained(folder)
    return folder


def config_of(**changes: object) -> Config:
    settings: dict[str, object] = {
        "engine.kind": "scripted",
        # Nothing but a planted fault may end an engine, however busy the machine is.
        "engine.request_timeout_s": 120,
        "engine.stall_timeout_s": 120,
        "engine.start_timeout_s": 240,
        "miniature.num_train": 6,
        "grpo.num_engines": 2,
        "grpo.num_steps": 20,
        "grpo.questions_per_step": 3,
        "grpo.num_trajectories": 4,
        "grpo.num_updated": 4,
        "grpo.max_tokens": 9,
        "grpo.max_engine_failures": 1,
        "verify.num_workers": 1,
    }
    return override(Config(), settings | {name.replace("__", "."): value for name, value in changes.items()})


@contextmanager
def engines_place(config: Config, policy: Path) -> Iterator[PlacementGroup]:
    group = placement_group([{"CPU": 1}] * config.grpo.num_engines)
    try:
        yield group
    finally:
        for file in (*policy.glob("fault-*"), *policy.glob("poison-*"), *policy.glob("scripted.json")):
            file.unlink(missing_ok=True)
        remove_placement_group(group)


def in_this_process(policy: Path, story: Callable[[RolloutPool], Coroutine[Any, Any, None]], **changes: object) -> None:
    """Plays the story with a pool that is no actor, which saves a start; its engines are."""
    config = config_of(**changes)
    with engines_place(config, policy) as group:
        pool = RolloutPool(config, str(policy), task.questions("train", config.miniature, seed=0), group)
        try:
            asyncio.run(asyncio.wait_for(story(pool), 500))
        finally:
            pool._judge.close()


@pytest.fixture(scope="module")
def pool(cluster: None, policy: Path) -> Iterator[ActorHandle]:
    config = config_of(grpo__max_engine_failures=2, engine__stall_timeout_s=STALL_TIMEOUT_S)
    with engines_place(config, policy) as group:
        questions = task.questions("train", config.miniature, seed=0)
        actor = ray.remote(RolloutPool).options(num_cpus=0).remote(config, str(policy), questions, group)
        assert ray.get(actor.ready.remote(), timeout=120) == 2
        yield actor
        ray.kill(actor)


def probe(policy: Path, shift: float = 0.0) -> Probe:
    """What a scripted engine makes of a sequence: every token is one of the vocabulary."""
    size = Qwen2Config.from_pretrained(policy).vocab_size
    return Probe([SEQUENCE], [np.full(2, shift - math.log(size), dtype=np.float32)])


def sent(checksum: str = "", num: int = 3) -> list[Bucket]:
    arrays, layout = weights.pack([("weight", torch.arange(float(num)))])
    return [Bucket(ray.put(arrays), layout, checksum or weights.checksum(arrays, layout))]


def publish(pool: ActorHandle, version: int, held_to: Probe | None = None) -> None:
    ray.get(pool.publish.remote(version, sent(), held_to), timeout=120)


def sample(pool: ActorHandle, version: int) -> Sampled:
    found: Sampled = ray.get(pool.sample.remote(version), timeout=120)
    return found


async def until(pool: RolloutPool, state: str, num: int) -> dict[str, int]:
    while (states := await pool.states())[state] < num:
        await asyncio.sleep(0.02)
    return states


def rows_of(sampled: Sampled) -> list[Rollout]:
    return [row for group in sampled.groups for row in group]


def in_one_call(policy: Path, version: int) -> list[Completion | Failure]:
    """What one engine answers to all requests of a step."""
    config = config_of()
    questions = questions_of_step(task.questions("train", config.miniature, seed=0), version, num=3, seed=0)
    words = policies.load_tokenizer(str(policy))
    prompted = [prompts.prompt_token_ids(words, question.problem, config.prompt) for question in questions]
    requests = requests_of_step(questions, prompted, version, num=4, seed=0)
    engine = ScriptedEngine(str(policy), config.engine, seed=0)
    return engine.generate(requests, Sampling(1.0, 1.0, -1, 9, stop_token_ids(str(policy), words)))


@pytest.fixture(scope="module")
def undisturbed(pool: ActorHandle, policy: Path) -> Sampled:
    publish(pool, 3, probe(policy))
    found = sample(pool, 3)
    assert found.engines_replaced == 0
    assert found.engines == {"healthy": 2, "stale": 0, "dead": 0, "retired": 0}
    assert [len(group) for group in found.groups] == [4, 4, 4]
    for group in found.groups:
        for row in group:
            assert [tuple(span) for span in row.weight_versions] == [(3, 0, len(row.token_ids))]
    return found


def test_the_groups_of_a_step_are_what_one_engine_gives_in_one_call(undisturbed: Sampled, policy: Path) -> None:
    answers = [answer for answer in in_one_call(policy, 3) if isinstance(answer, Completion)]
    assert [row.token_ids for row in rows_of(undisturbed)] == [answer.token_ids for answer in answers]
    assert [row.logprobs for row in rows_of(undisturbed)] == [answer.logprobs for answer in answers]


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
    (policy / faults[0]).touch()
    before = ray.get(pool.num_replaced.remote())
    publish(pool, 3, probe(policy))  # the same version again: what was sampled is given up
    for fault in faults[1:]:
        (policy / fault).touch()
    disturbed = sample(pool, 3)
    # Not waited for: the others went on without the engine that was lost.
    assert disturbed.groups == undisturbed.groups
    if "hang" in faults[0]:  # and had their verdicts long before the hung engine's requests were answered by another
        assert disturbed.judged_early > 0
    assert ray.get(pool.ready.remote(), timeout=60) == 2
    deadline = time.monotonic() + 60
    while ray.get(pool.states.remote(), timeout=20)["healthy"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list(policy.glob("fault-*"))
    assert ray.get(pool.num_replaced.remote()) == before + replaced
    # The version of a fresh scripted engine is 0: the replacement was given the weights of version 3.
    publish(pool, 3, probe(policy))
    assert sample(pool, 3).groups == undisturbed.groups


class Sender:
    """A learner, as far as the pool knows it: it owns what it sends."""

    def sent(self) -> list[Bucket]:
        return sent(num=100_000)  # too large for Ray to pass it on by value


def test_weights_outlive_the_learner_that_sent_them(cluster: None, policy: Path) -> None:
    async def story(pool: RolloutPool) -> None:
        await pool.ready()
        learner = ray.remote(Sender).options(num_cpus=0).remote()
        buckets = await learner.sent.remote()
        await pool.publish(0, buckets, probe(policy))
        assert pool.copying is not None
        await pool.copying
        ray.kill(learner)
        engine = pool._engines._places[0].actor
        assert engine is not None
        ray.kill(engine)
        # Answered by its replacement, which was given the weights that nobody but the pool still has.
        assert list(await pool.token_logprobs([SEQUENCE])) == [0]
        assert await pool.num_replaced() == 1

    in_this_process(policy, story, grpo__num_engines=1)


def test_a_version_that_was_not_published_cannot_be_sampled(pool: ActorHandle, policy: Path) -> None:
    publish(pool, 6, probe(policy))
    with pytest.raises(RuntimeError, match="version 7 was asked, the engines hold 6"):
        sample(pool, 7)


@pytest.mark.faults
def test_a_place_whose_engines_keep_failing_is_retired_and_the_others_go_on_until_none_is_left(
    cluster: None, policy: Path
) -> None:
    async def story(pool: RolloutPool) -> None:
        assert await pool.ready() == 2
        await pool.publish(2, sent(), probe(policy))
        await pool.sample(2)
        # Whoever comes up from now on computes something else than the learner says, and never samples.
        (policy / "fault-load-die-0").touch()
        await pool.publish(3, sent(), probe(policy, shift=0.01))
        found = await pool.sample(3)
        expected = [answer.token_ids for answer in in_one_call(policy, 3) if isinstance(answer, Completion)]
        assert [row.token_ids for row in rows_of(found)] == expected
        assert await until(pool, "retired", 1) == {"healthy": 1, "stale": 0, "dead": 0, "retired": 1}
        # Weights that arrive as others: the last engine and its replacement are lost over them.
        with pytest.raises(RuntimeError, match="no rollout engine is left, each failed 2 times in a row") as told:
            await pool.publish(4, sent(checksum="another"), None)
        assert re.search(r"engine \d: a replacement, given version 3, and the learner are 0\.01 nats", str(told.value))
        assert re.search(r"engine \d: other weights arrived than version 4 consists of", str(told.value))

    in_this_process(policy, story)


def test_engines_that_never_come_up_are_named_with_what_was_waited_for(cluster: None, policy: Path) -> None:
    async def story(pool: RolloutPool) -> None:
        for index in range(4):
            (policy / f"fault-start-hang-{index}").touch()
        with pytest.raises(RuntimeError, match=r"engine 0: version: no answer within engine\.start_timeout_s=4 s"):
            await pool.ready()

    in_this_process(policy, story, engine__start_timeout_s=4, grpo__num_engines=1)


def test_a_question_over_which_every_engine_fails_is_named(
    cluster: None, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_pool, "MOST_ENGINES_LOST", 2)
    asked = questions_of_step(task.questions("train", config_of().miniature, seed=0), 0, num=1, seed=0)[0]
    words = policies.load_tokenizer(str(policy))

    async def story(pool: RolloutPool) -> None:
        await pool.ready()
        token = prompts.prompt_token_ids(words, asked.problem, Config().prompt)[0]
        (policy / f"poison-raise-{token}").touch()
        await pool.publish(0, sent(), None)
        told = f"2 engines were lost over the trajectories of question {asked.question_id}, the last of: .*poison"
        with pytest.raises(RuntimeError, match=told):
            await pool.sample(0)

    in_this_process(policy, story, grpo__num_engines=1, grpo__questions_per_step=1)


@pytest.mark.parametrize("mode", ["wait", "carry", "cut"])
def test_a_pool_ahead_of_the_learner_gives_the_responses_of_one_that_is_not(
    cluster: None, policy: Path, mode: str
) -> None:
    """Scripted tokens hang on their seed alone, so that only versions and cuts may differ."""
    # A response takes 0.35 s or more; three steps of twelve go side by side.
    (policy / "scripted.json").write_text('{"seconds_per_step": 0.05, "tokens": [7, 9]}')
    expected = [in_one_call(policy, version) for version in range(5)]
    found: list[list[Rollout]] = []

    async def story(pool: RolloutPool) -> None:
        await pool.ready()
        for version in range(5):
            await pool.publish(version, sent(), None)
            await asyncio.sleep(0.1)  # the learner's own work
            found.append(rows_of(await pool.sample(version)))
        if mode == "carry":  # a learner was restarted: what is under way, of versions 2 to 4, is given up
            await pool.publish(1, sent(), None)
            again = rows_of(await pool.sample(1))
            assert {row.weight_versions[0].version for row in again} == {1}
            assert [row.token_ids for row in again] == [row.token_ids for row in found[1]]

    in_this_process(policy, story, grpo__max_staleness=2, grpo__partial_rollouts=mode, grpo__num_engines=1)
    for version in range(5):
        for row, whole in zip(found[version], expected[version], strict=True):
            assert isinstance(whole, Completion)
            spans = row.weight_versions
            assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
            assert spans[-1].end == len(row.token_ids)
            # Never more than two versions ahead of the learner, and never behind it.
            assert version - 2 <= spans[0].version <= spans[-1].version <= version
            if row.finish_reason == "cut":
                assert row.token_ids == whole.token_ids[: len(row.token_ids)] != whole.token_ids
                assert row.verdict is Verdict.ERROR
            else:
                assert row.token_ids == whole.token_ids
    kinds = Counter((row.finish_reason == "cut", len(row.weight_versions)) for rows in found for row in rows)
    if mode == "wait":
        # Each step comes from one version, the oldest that it may; no timing changes that.
        assert [{row.weight_versions[0].version for row in rows} for rows in found] == [{0}, {0}, {0}, {1}, {2}]
        assert set(kinds) == {(False, 1)}
    elif mode == "carry":
        # How many of them, and of how many versions, hangs on what else the machine does.
        assert {(False, 1)} < set(kinds) <= {(False, 1), (False, 2), (False, 3)}
    else:
        assert set(kinds) == {(False, 1), (True, 1)}


def test_a_replacement_that_nobody_can_give_weights_waits_for_the_learners(cluster: None, policy: Path) -> None:
    """The bookkeeping of a transfer from GPU to GPU, without one: scripted engines take part in no step of it."""

    async def story(pool: RolloutPool) -> None:
        await pool.ready()
        first = await pool.begin_transfer(0, None)
        assert list(first) == [0] and (await pool.states())["stale"] == 1
        (policy / "fault-generate-die-0").touch()
        await pool.end_transfer(0)
        with pytest.raises(RuntimeError, match=r"grpo\.weight_sync=nccl gives a replacement its weights with the next"):
            await pool.sample(0)
        assert (await pool.states())["stale"] == 1
        second = await pool.begin_transfer(0, None)
        assert list(second) == [0] and second != first
        await pool.end_transfer(0)
        assert (await pool.states())["healthy"] == 1
        assert {row.token_ids[0] for row in rows_of(await pool.sample(0))}

    in_this_process(policy, story, grpo__num_engines=1)


def test_judges_that_judge_nothing_stop_a_run_however_small_its_steps(policy: Path) -> None:
    judge = RolloutJudge(Config(), policies.load_tokenizer(str(policy)), stop=[0])
    fine, failed = Judgement(Verdict.WRONG, "different", "1", 0.0), Judgement(Verdict.ERROR, "crash", "1", 0.0)
    for _ in range(JUDGED_TOGETHER - 1):
        judge.watch([failed])
    with pytest.raises(RuntimeError, match=r"100 of 100 verdicts .*error:crash.* verify.max_failed_fraction=0.05"):
        judge.watch([failed])
    judge._verdicts.clear()
    for _ in range(3):  # within the bound, and counted anew
        judge.watch([fine] * 95 + [failed] * 5)
    judge.close()
