"""Reinforcement learning with Ray Train and a pool of rollout engines.   questions, policy -> policy/, metrics.jsonl

Learners are a Ray Train worker group; the engines live outside it, in a placement group of their own.
"""

import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from raml_ray import cluster, recipes, records
from raml_ray.config import Config, ConfigError
from raml_ray.policy_source import on_this_node
from raml_ray.records import Question
from raml_ray.stages import learner_probe, learners, needs, room, sources
from raml_ray.stages.context import Context, Counts, Outcome, deciding
from raml_ray.stages.rollout_pool import RolloutPool
from raml_ray.storage import Folder
from raml_ray.text import prompts
from raml_ray.workers import policy as policies

logger = logging.getLogger(__name__)


def run(context: Context) -> Outcome:
    config = context.config
    check(config)
    found = sources.questions(config, config.data, stage="grpo")
    found.keep(context)
    policy_path = context.policy_path
    questions, too_long = _fitting(found.questions, policy_path, config)
    probed = learner_probe.examples(context)
    cluster.check_fits(needs.asked(config, "grpo"), config.cluster.wait_for_resources_s)
    num_updated = recipes.questions_of_a_step(config.grpo) * config.grpo.num_updated
    longest = room.Longest("engine.max_model_len", config.engine.max_model_len, num_updated)
    room.check(config, policy_path, longest, reference=config.grpo.kl_coefficient > 0)
    group = _engines_place(config, place_name(context.folder))
    try:
        # One that died is started again, without weights: the learners, whose call it took along, go on from their last
        # checkpoint and publish it before they sample.
        pool = (
            ray.remote(RolloutPool)
            .options(num_cpus=0, max_restarts=-1, scheduling_strategy=cluster.beside_this())
            .remote(config, context.policy_source, questions, group)
        )
        pool.ready.remote()  # not waited for: learners start while the engines do
        arguments = {"pool": pool, "origin": _origin(config, questions), "probed": probed}
        figures = learners.run(_worker, arguments, config=config, folder=context.folder, policy=context.policy_source)
        figures |= _engine_nodes(pool, config.engine.request_timeout_s)
        ray.kill(pool)
    finally:
        remove_placement_group(group)
    filtered = len(found.filtered) + len(too_long)
    return Outcome(
        Counts(found.num_rows, len(questions), len(found.rejected), filtered), found.figures() | dict(figures)
    )


def _engine_nodes(pool: ActorHandle, timeout_s: float) -> dict[str, list[str]]:
    """Which nodes the engines ran on; nothing, and a warning, if the pool does not answer: the policy is made."""
    try:
        return {"engine_nodes": ray.get(pool.nodes.remote(), timeout=timeout_s)}
    except RayError as error:
        logger.warning("the nodes of the engines are not known: the pool does not answer (%s)", type(error).__name__)
        return {}


def check(config: Config) -> None:
    """Refuse what no engine and learner could do together.

    Raises: ConfigError naming the settings.
    """
    engine, grpo = config.engine, config.grpo
    if engine.dtype == "float16":
        raise ConfigError(
            "engine.dtype=float16: learners compute in float32 or bfloat16, and engines sample with what they are sent:"
            " set engine.dtype to one of these"
        )
    if grpo.max_staleness > 1 and grpo.partial_rollouts == "wait":
        logger.warning(
            "grpo.max_staleness=%d with grpo.partial_rollouts=wait makes trajectories older and no step faster than"
            " grpo.max_staleness=1 does: weights wait for all that was begun; set that, or grpo.partial_rollouts=carry",
            grpo.max_staleness,
        )
    if grpo.sample_timeout_s <= engine.stall_timeout_s + engine.start_timeout_s:
        raise ConfigError(
            f"grpo.sample_timeout_s={grpo.sample_timeout_s:g} leaves a hung engine no time to be noticed and replaced:"
            f" set it above engine.stall_timeout_s={engine.stall_timeout_s:g}"
            f" + engine.start_timeout_s={engine.start_timeout_s:g}"
        )


def _origin(config: Config, questions: list[Question]) -> dict[str, Any]:
    """What decides the learners' steps."""
    asked = [(question.question_id, question.answer) for question in questions]
    return {"settings": deciding(config, "grpo"), "questions": records.digest(asked)}


def _fitting(questions: list[Question], policy_path: str, config: Config) -> tuple[list[Question], list[Question]]:
    """The questions whose prompt leaves room for a response of grpo.max_tokens, and those whose does not."""
    tokenizer = policies.load_tokenizer(policy_path)
    room = config.engine.max_model_len - config.grpo.max_tokens
    fitting: list[Question] = []
    too_long: list[Question] = []
    for question in questions:
        length = len(prompts.prompt_token_ids(tokenizer, question.problem, config.prompt))
        (fitting if length <= room else too_long).append(question)
    if not fitting:
        raise ConfigError(
            f"no question leaves room for grpo.max_tokens={config.grpo.max_tokens} within"
            f" engine.max_model_len={config.engine.max_model_len}: raise the one or lower the other"
        )
    if too_long:
        logger.warning("%d questions filtered: their prompts exceed %d tokens", len(too_long), room)
    return fitting, too_long


def place_name(folder: Folder) -> str:
    """Of the placement group that holds the engines of the step with this folder."""
    return f"engines of {folder.path}"


def _engines_place(config: Config, name: str) -> PlacementGroup:
    """Reserved room for the engines. Raises: TimeoutError that says what was waited for."""
    settings = config.engine
    bundle: dict[str, float] = {"CPU": settings.cpus_per_engine}
    if settings.gpus_per_engine:
        bundle["GPU"] = settings.gpus_per_engine
    num = config.grpo.num_engines
    group = placement_group(
        [bundle] * num,
        strategy=settings.placement.upper(),
        name=name,
        bundle_label_selector=[dict(settings.node_labels)] * num if settings.node_labels else None,
    )
    try:
        ray.get(group.ready(), timeout=settings.start_timeout_s)
    except GetTimeoutError:
        remove_placement_group(group)
        raise TimeoutError(
            f"no room for {config.grpo.num_engines} engines of {bundle} within"
            f" engine.start_timeout_s={settings.start_timeout_s:g}; Ray has free {ray.available_resources()}"
        ) from None
    return group


def _worker(arguments: dict[str, Any]) -> Mapping[str, Any]:
    """One learner rank."""
    from raml_ray.stages.course import Course
    from raml_ray.stages.pool_link import PoolLink
    from raml_ray.workers import grpo_loop, skipped_batches

    config = learners.started(arguments)
    folder, policy_path = Folder(arguments["folder"]), on_this_node(arguments["policy"])
    with learners.leaving(config.train) as left:
        learner = learners.loaded(policy_path, config)
        reference = None
        if config.grpo.kl_coefficient:
            reference = learners.loaded(policy_path, config)
            reference.train(False)
        course = Course(learner, folder, arguments["origin"], config)
        link = PoolLink(arguments["pool"], learner, config, policy_path)
        behind = grpo_loop.train(
            learner,
            config.grpo,
            config.train,
            seed=config.seed,
            start_version=course.start_step,
            sample=link.sample,
            publish=link.publish,
            report=learner_probe.reporting(
                course.report, learner, arguments["probed"], config.train, course.start_step
            ),
            save=course.save,
            keep=lambda version, batch, figures: skipped_batches.keep(
                folder.file(learners.SKIPPED), version, learner.rank, batch, figures
            ),
            reference=reference,
        )
        learners.save_policy(learner, folder, policy_path)
        figures = {"grpo/versions": config.grpo.num_steps, "grpo/resumed_from_version": course.start_step}
        return course.figures | behind | figures | learners.nodes()
    return left
