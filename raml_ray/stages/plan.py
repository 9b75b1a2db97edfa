"""What a run will take, before it is started: steps, memory per device, tokens, hours and storage.   -> text

Nothing is started and nothing fetched. What is not known (how long responses are, how many are correct, how well an
implementation uses a device) is assumed, said, and can be given.
"""

import math
from collections.abc import Iterator

from raml_ray import recipes
from raml_ray.config import Config, Step
from raml_ray.formulas import architecture, cost, memory
from raml_ray.formulas.architecture import Architecture, Passes
from raml_ray.stages import needs, plan_instruments, room
from raml_ray.stages.plan_parts import GIB, Assumed, Line, architecture_of, decoding, held_at_once, sampling
from raml_ray.stages.plan_sizes import questions_in, texts_in


def plan(config: Config, assumed: Assumed) -> list[Line]:
    """A line for every step. Raises: ConfigError if a policy's architecture cannot be known here."""
    return [_line(config, step, assumed) for step in config.steps]


def _line(whole: Config, step: Step, assumed: Assumed) -> Line:
    config = whole.for_step(step.name)
    match step.stage:
        case "generate" if config.generate.source != "policy":
            count = texts_in(config.data) or questions_in(config.data, config.miniature) * config.generate.num_samples
            return Line(step.name, step.stage, f"{count:,} texts", None, "", 0, None, 0)
        case "generate":
            asked = questions_in(config.data, config.miniature)
            return sampling(whole, config, step, asked, config.generate, assumed)
        case "evaluate":
            sets = [config.data.model_copy(update={"path": path, "limit": 0}) for path in config.evaluate.sets.values()]
            asked = sum(min(questions_in(data, config.miniature), config.evaluate.limit or 2**31) for data in sets)
            return sampling(whole, config, step, asked, config.evaluate, assumed)
        case "sft":
            return _sft(whole, config, step, assumed)
        case "grpo":
            return _grpo(whole, config, step, assumed)
        case "analyze":
            return plan_instruments.line(whole, config, step, assumed)
    return Line(step.name, step.stage, "-", None, "", 0, None, 0)


def _learning(config: Config, made: Architecture, longest: room.Longest, assumed: Assumed) -> tuple[int, str, bool]:
    """Memory of a learner, of what, and whether it is more than a device has."""
    on_host = not config.train.gpus_per_worker
    has_reference = config.grpo.kl_coefficient > 0 and longest.setting != "sft.max_length"
    split = room.split_of(config.train, made)._replace(reference=has_reference)
    asked = memory.estimate(made, split, room.tokens_of_a_pass(config.train, longest), on_host=on_host)
    there = assumed.device.num_bytes * min(1.0, config.train.gpus_per_worker)
    return asked.total, str(asked).partition("(")[2].rstrip(")"), not on_host and asked.total * room.SPARE > there


def _update_hours(
    config: Config, made: Architecture, examples: float, length: float, assumed: Assumed, forwards: float = 0
) -> float | None:
    """Of so many examples with a backward pass, and so many forward passes of each beside."""
    if not config.train.gpus_per_worker:
        return None
    pairs = length * (length + 1) / 2
    learned, scored = (
        Passes(round(count * length), round(count * length), round(count * pairs))
        for count in (examples, examples * forwards)
    )
    flops = architecture.model_flops(made, Passes(), learned) * (4 / 3 if config.train.activation_checkpointing else 1)
    flops += architecture.model_flops(made, scored, Passes())
    ranks = min(config.train.num_workers, assumed.devices)
    return cost.seconds(flops, assumed.device, ranks) / 3600


def _kept(config: Config, made: Architecture) -> float:
    """Bytes of the checkpoints (weights and two moments) and of the policy."""
    size = 4 if config.train.dtype == "float32" else 2
    return made.num_parameters * (12 * config.train.keep_checkpoints + size)


def _sft(whole: Config, config: Config, step: Step, assumed: Assumed) -> Line:
    made, sft = architecture_of(whole, step), config.sft
    examples = sum(_correct_behind(whole, name, assumed) for name in step.data) * sft.num_epochs
    steps = min(math.ceil(examples / sft.batch_size), sft.max_steps or 2**31)
    length = assumed.response * sft.max_length
    held_bytes, parts, is_too_large = _learning(
        config, made, room.Longest("sft.max_length", sft.max_length, sft.batch_size), assumed
    )
    hours = _update_hours(config, made, steps * sft.batch_size, length, assumed)
    tokens = steps * sft.batch_size * length
    return Line(
        step.name,
        "sft",
        f"{steps:,} steps",
        held_bytes,
        parts,
        tokens,
        hours,
        tokens * 4 + _kept(config, made),
        is_too_large,
    )


def _correct_behind(whole: Config, name: str, assumed: Assumed) -> float:
    """Correct trajectories that a step's data holds."""
    step = whole.step(name)
    if step.stage == "verify":
        return sum(_correct_behind(whole, each, assumed) for each in step.data)
    config = whole.for_step(name)
    if known := texts_in(config.data, correct=True):
        return known
    return questions_in(config.data, config.miniature) * config.generate.num_samples * assumed.correct


def _grpo(whole: Config, config: Config, step: Step, assumed: Assumed) -> Line:
    made, grpo = architecture_of(whole, step), config.grpo
    asked, length = recipes.questions_of_a_step(grpo), assumed.response * grpo.max_tokens
    updated = asked * grpo.num_updated
    longest = room.Longest("engine.max_model_len", config.engine.max_model_len, updated)
    held_bytes, parts, is_too_large = _learning(config, made, longest, assumed)
    tokens = float(grpo.num_steps * asked * grpo.num_trajectories * length)
    held = held_at_once(config, made, length, assumed)
    sampling = decoding(config, made, tokens / grpo.num_engines, length, assumed) if held else None
    # Old log-probabilities of all minibatches but the first, and those of a reference.
    scored = 1 - 1 / grpo.num_minibatches + (grpo.kl_coefficient > 0)
    update = _update_hours(config, made, grpo.num_steps * updated, length, assumed, scored)
    hours = None
    if sampling is not None and update is not None:
        hours = max(sampling, update) if grpo.max_staleness else sampling + update
    work = f"{grpo.num_steps:,} versions x {asked:,} x {grpo.num_trajectories}"
    return Line(
        step.name, "grpo", work, held_bytes, parts, tokens, hours, _kept(config, made), is_too_large or not held
    )


def told(config: Config, assumed: Assumed) -> Iterator[str]:
    """The plan as text, line by line, with the formulas that it is made with."""
    lines, on = plan(config, assumed), assumed.device
    size = f"{on.num_bytes / 1e9:.0f} GB, {on.bandwidth / 1e12:g} TB/s, {on.flops / 1e12:.0f} TFLOPS"
    yield f"{config.name} on {assumed.devices} x {on.name} ({size})"
    for line in lines:
        yield _row(line.step, line.stage, line.work, line.tokens, line.hours, line.storage)
        if line.memory is not None:
            verdict = "  DOES NOT FIT" if line.is_too_large else ""
            yield f"{'':<26} a device holds {line.memory / GIB:.3g} GiB ({line.parts}){verdict}"
        if (asked := _asked(config, line)) > assumed.devices:
            yield f"{'':<26} ASKS FOR {asked:g} DEVICES"
    hours = sum(line.hours or 0 for line in lines)
    tokens, storage = sum(line.tokens for line in lines), sum(line.storage for line in lines)
    yield _row("together", "", "", tokens, hours, storage)
    yield from ("", *ASSUMED.format(assumed=assumed, cost=cost).splitlines())
    for document in (memory.__doc__, cost.__doc__, plan_instruments.__doc__):
        yield from ("", (document or "").strip())


ASSUMED = """\
Assumed: a response has {assumed.response:g} of its longest length; {assumed.correct:g} of them are correct where that is not known; engines
reach {cost.BANDWIDTH_SHARE:g} of a device's memory bandwidth and {cost.FLOPS_SHARE:g} of its operations, learners {cost.FLOPS_SHARE:g}. Hours are of the work alone, one step after
the other: no start of engines, no prompts, no judging, no weight sync. `-` is not estimated: what computes on CPU, instruments that the
paper has not. Storage is without texts that are published, which are as large as they are."""


def _row(step: str, stage: str, work: str, tokens: float, hours: float | None, storage: float) -> str:
    time = "-" if hours is None else f"{hours:,.2f} h"
    return f"{step:<26} {stage:<13} {work:<28} {tokens:>9.3g} tokens {time:>12} {storage / GIB:>9.2f} GiB on disk"


def _asked(config: Config, line: Line) -> float:
    """GPUs that the step starts with."""
    own = config.for_step(line.step)
    return sum(need.total("GPU") for need in needs.asked(own, config.step(line.step).stage).values())
