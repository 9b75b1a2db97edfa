"""What instruments compute along trajectories of T tokens, and behind them.

    lhat       T, and at each of T / analyze.stride positions 16 tokens for each answer: the right one, lhat.num_foils wrong
               ones, and along each further text of lhat.controls, of T tokens too, the right one
    landscape  of each plane and radius num_points^2 points, each of num_prefixes texts as long as the longest, T. Held are
               the weights, those of a point (2 P bytes each) and, of a random plane, two directions of 4 P bytes
    modes      answers of answers.max_tokens behind each fraction, budget and delimiter, num_samples times
    shorter    as many behind the whole, none, each fraction in each way, and (summary_draws times) each summary, at each
               fraction and its controls; a summary of summary_tokens by its own policy; deletion by L-hat: T for each sentence

Behind a text an answer reads T / 2, as nothing is reused.
"""

from raml_ray.config import Config, Step
from raml_ray.formulas import architecture, cost
from raml_ray.formulas.architecture import Architecture, Passes
from raml_ray.stages.plan_parts import (
    BYTES_PER_TOKEN,
    Assumed,
    Line,
    architecture_at,
    architecture_of,
    decoding,
    engine_memory,
    engines_at_once,
    held_at_once,
)

EXACT_ANSWER_TOKENS = 16
"""Of what the probe grows at a position: the suffix and the beginnings of its answers."""
SENTENCE_TOKENS = 20
"""Assumed."""


def line(whole: Config, config: Config, step: Step, assumed: Assumed) -> Line:
    """The line of a step of `analyze`. Raises: ConfigError as `architecture_of`."""
    match config.analyze.instrument:
        case "lhat":
            return _lhat(whole, config, step, assumed)
        case "landscape":
            return _landscape(whole, config, step, assumed)
        case "modes":
            modes = config.modes
            begun = len(modes.fractions) + len(modes.budgets) + len(modes.delimiters)
            count = config.analyze.num_questions * modes.num_trajectories
            return _answers(whole, config, step, count, begun * modes.num_samples, assumed)
        case "shorter":
            return _shorter(whole, config, step, assumed)
    return Line(step.name, config.analyze.instrument, "-", None, "", 0, None, 0)


def _length(whole: Config, step: Step, assumed: Assumed) -> float:
    """Tokens of the trajectories that the step looks at."""
    behind = whole.step(step.data[0])
    while behind.stage not in ("evaluate", "generate"):
        behind = whole.step(behind.data[0])
    sampled = whole.for_step(behind.name)
    return assumed.response * (sampled.evaluate if behind.stage == "evaluate" else sampled.generate).max_tokens


def _trajectories(config: Config) -> int:
    settings = config.analyze
    return settings.num_questions * (settings.num_correct + settings.num_wrong)


def _passing(
    config: Config, step: Step, made: Architecture, passes: Passes, held: float, parts: str, assumed: Assumed
) -> Line:
    """The line of an instrument that reads `passes` of each trajectory and holds so many bytes over a policy's devices."""
    settings, trajectories = config.analyze, _trajectories(config)
    each, hours = held / settings.gpus_per_policy, _probing(config, made, passes, assumed)
    is_too_large = hours is not None and each > assumed.device.num_bytes
    tokens, work = trajectories * passes.tokens, f"{trajectories} trajectories"
    hours = None if hours is None else trajectories * hours
    return Line(step.name, settings.instrument, work, each, parts, tokens, hours, 0, is_too_large)


def _probing(config: Config, made: Architecture, passes: Passes, assumed: Assumed) -> float | None:
    """Hours in which the instrument's workers make these passes; None where they compute on CPU."""
    settings = config.analyze
    if not settings.gpus_per_worker:
        return None
    devices = max(1, settings.num_workers * settings.gpus_per_policy)
    return cost.seconds(architecture.model_flops(made, passes, Passes()), assumed.device, devices) / 3600


def _texts(count: float, length: float, scored: int = 1) -> Passes:
    """What reading so many texts of this length takes, with so many tokens of each scored."""
    return Passes(round(count * length), round(count * scored), round(count * length**2 / 2))


def _lhat(whole: Config, config: Config, step: Step, assumed: Assumed) -> Line:
    made, settings, length = architecture_of(whole, step), config.analyze, _length(whole, step, assumed)
    controls = len(set(config.lhat.controls) - {"own"})  # further texts, which are asked for the right answer alone
    grown = length / settings.stride * EXACT_ANSWER_TOKENS * (1 + config.lhat.num_foils + controls)
    pairs = (1 + controls) * length**2 / 2 + grown * length / 2
    passes = Passes(round((1 + controls) * length + grown), round(grown), round(pairs))
    held = 2 * made.num_parameters + settings.probe_memory_mib * 2**20 * settings.gpus_per_policy
    return _passing(config, step, made, passes, held, "weights, and analyze.probe_memory_mib", assumed)


def _landscape(whole: Config, config: Config, step: Step, assumed: Assumed) -> Line:
    made, settings, length = architecture_of(whole, step), config.landscape, _length(whole, step, assumed)
    radii = {"random": len(settings.radii), "update": len(settings.update_radii)}
    texts = sum(radii[plane] for plane in settings.planes) * settings.num_points**2 * settings.num_prefixes
    passes = _texts(texts, length, EXACT_ANSWER_TOKENS)
    is_random = "random" in settings.planes
    held = (4 + 8 * is_random) * made.num_parameters
    parts = "weights, moved weights" + (", two random directions" if is_random else "")
    return _passing(config, step, made, passes, held, parts, assumed)


def _answers(whole: Config, config: Config, step: Step, count: int, each: float, assumed: Assumed) -> Line:
    """The line of an instrument whose engines give so many answers behind each of `count` trajectories."""
    made, length = architecture_of(whole, step), _length(whole, step, assumed)
    answer = assumed.response * config.answers.max_tokens
    tokens, hours = count * each * answer, None
    held = held_at_once(config, made, length + answer, assumed)
    needed, parts = engine_memory(config, made, length + answer, held)
    at_once = engines_at_once(config, config.answers.num_engines, assumed)
    if held and config.engine.gpus_per_engine:
        hours = _reading(config, made, count * each, length / 2, at_once, assumed)
        hours += decoding(config, made, tokens / at_once, length + answer, assumed) or 0
    name = config.analyze.instrument
    work = f"{count:,} trajectories x {each:g}"
    return Line(step.name, name, work, needed, parts, tokens, hours, tokens * BYTES_PER_TOKEN, not held)


def _reading(config: Config, made: Architecture, texts: float, length: float, at_once: int, assumed: Assumed) -> float:
    """Hours in which so many engines read texts of this length."""
    flops = architecture.model_flops(made, _texts(texts, length), Passes())
    return cost.seconds(flops, assumed.device, max(1, round(at_once * config.engine.gpus_per_engine))) / 3600


def _shorter(whole: Config, config: Config, step: Step, assumed: Assumed) -> Line:
    settings, length, count = config.shorter, _length(whole, step, assumed), _trajectories(config)
    draws = settings.summary_draws if settings.summary_policy else 0
    ways = 2 + len(settings.ways) * len(settings.fractions)
    ways += draws * (len(settings.fractions) + 1 + len(settings.ways))
    found = _answers(whole, config, step, count, ways * settings.num_samples, assumed)
    hours, tokens = found.hours, found.tokens
    if hours is not None and "lhat" in settings.ways:
        passes = _texts(count * length / SENTENCE_TOKENS, length, EXACT_ANSWER_TOKENS)
        hours += _probing(config, architecture_of(whole, step), passes, assumed) or 0
    if draws:
        second = architecture_at(settings.summary_policy, f"step {step.name!r}: shorter.summary_policy")
        written, read = assumed.response * settings.summary_tokens, min(length, settings.summary_reads or length)
        tokens += count * draws * written
        at_once = engines_at_once(config, config.answers.num_engines, assumed)
        if hours is not None and held_at_once(config, second, read + written, assumed):
            hours += _reading(config, second, count * draws, read, at_once, assumed)
            hours += decoding(config, second, count * draws * written / at_once, read + written, assumed) or 0
    return found._replace(tokens=tokens, hours=hours, storage=tokens * BYTES_PER_TOKEN)
