"""Supervised fine-tuning with Ray Train.   trajectories, verdicts -> examples/, policy/, metrics.jsonl, checkpoints/"""

from collections.abc import Mapping, Sequence
from typing import Any

from raml_ray import cluster, records
from raml_ray.config import Config
from raml_ray.policy_source import on_this_node
from raml_ray.stages import example_shards, example_stream, learner_probe, learners, needs, room, training_set
from raml_ray.stages.context import Context, Outcome, deciding
from raml_ray.storage import Folder
from raml_ray.text.batches import Example


def run(context: Context) -> Outcome:
    policy_path = context.policy_path
    learners.check(policy_path)
    cluster.check_fits(needs.asked(context.config, "sft"), context.config.cluster.wait_for_resources_s)
    sft = context.config.sft
    room.check(context.config, policy_path, room.Longest("sft.max_length", sft.max_length, sft.batch_size))
    counts, figures = training_set.write(context)
    examples, probed = context.folder / training_set.EXAMPLES, learner_probe.examples(context)
    return Outcome(
        counts, figures | train_policy(examples, context.folder, context.policy_source, context.config, probed)
    )


def train_policy(
    examples: Folder, folder: Folder, policy: str, config: Config, probed: Sequence[Example] = ()
) -> dict[str, Any]:
    """Fine-tune the policy (a `policy_source.portable`) on a training set (`example_shards`), leave it in `folder`/policy and return its figures.

    Run again after a kill, it goes on from the last checkpoint in `folder`.

    Raises: ValueError if there is nothing to train on or the policy folder lacks something.
    """
    index = example_shards.read_index(examples)  # refused before any worker starts
    arguments = {
        "examples": examples.path,
        "probed": probed,
        "origin": {"settings": deciding(config, "sft"), "examples": records.digest(index.digests)},
    }
    return learners.run(_worker, arguments, config=config, folder=folder, policy=policy)


def _worker(arguments: dict[str, Any]) -> Mapping[str, Any]:
    """One learner rank."""
    from raml_ray.stages.course import Course
    from raml_ray.workers import sft_loop, sft_plan, skipped_batches

    config = learners.started(arguments)
    folder, policy_path = Folder(arguments["folder"]), on_this_node(arguments["policy"])
    examples = Folder(arguments["examples"])
    plan = sft_plan.plan(example_shards.read_index(examples).rows, config.sft, config.seed)
    with learners.leaving(config.train) as left:
        learner = learners.loaded(policy_path, config)
        course = Course(learner, folder, arguments["origin"], config)
        rank = example_stream.Rank(learner.rank, learner.world_size)
        behind = sft_loop.train(
            learner,
            plan,
            example_stream.stream(examples, plan, course.start_step, rank, config.train.collective_timeout_s),
            config.sft,
            config.train,
            seed=config.seed,
            start_step=course.start_step,
            report=learner_probe.reporting(
                course.report, learner, arguments["probed"], config.train, course.start_step
            ),
            save=course.save,
            keep=lambda step, batch, figures: skipped_batches.keep(
                folder.file(learners.SKIPPED), step, learner.rank, batch, figures
            ),
        )
        learners.save_policy(learner, folder, policy_path)
        figures = {
            "sft/steps": plan.num_steps,
            "sft/examples": plan.num_examples,
            "sft/resumed_from_step": course.start_step,
        }
        return figures | course.figures | behind | learners.nodes()
    return left
