"""What every line of a plan is made of: what is assumed, a step's policy, and what engines take."""

import math
from typing import NamedTuple

from raml_ray.config import Config, ConfigError, Step
from raml_ray.formulas import architecture, cost
from raml_ray.formulas.architecture import Architecture
from raml_ray.formulas.cost import Device
from raml_ray.settings import EvaluateConfig, GenerateConfig
from raml_ray.workers import policy

GIB = 2**30
BYTES_PER_TOKEN = 12
"""On disk, of a sampled token: its id, its log-probability and its text, compressed."""


class Assumed(NamedTuple):
    """What a plan has to take for granted."""

    devices: int
    device: Device
    response: float = 0.5
    """Length of the mean response over the longest that is allowed."""
    correct: float = 0.7
    """Share of trajectories that are correct, where nothing is known of them."""


class Line(NamedTuple):
    """One step of the plan."""

    step: str
    stage: str
    work: str
    """How many of what: `1,836 steps`."""
    memory: float | None
    """Bytes of a device; None: not estimated."""
    parts: str
    """What that memory is of."""
    tokens: float
    hours: float | None
    """None: not estimated."""
    storage: float
    """Bytes."""
    is_too_large: bool = False


def architecture_of(whole: Config, step: Step) -> Architecture:
    """Of the policy that the step starts from: the miniature's, a folder's, or a known name's.

    Raises: ConfigError if it is none of these.
    """
    while step.policy:
        step = whole.step(step.policy)
    config = whole.for_step(step.name)
    if step.stage == "base":
        base = config.base
        size = base.vocab_size if base.kind == "random" else 512
        shape = (base.num_layers, base.hidden_size, base.intermediate_size, base.num_heads, base.num_kv_heads)
        return Architecture("qwen2", *shape, base.hidden_size // base.num_heads, size, True, True, False)
    return architecture_at(config.policy.path, f"step {step.name!r}: policy.path")


def architecture_at(path: str, setting: str) -> Architecture:
    """Of a folder's policy, or of a known name's. Raises: ConfigError if it is none of these."""
    if not path:
        raise ConfigError(f"{setting}='' names no policy: set {setting.rpartition(' ')[2]} to a folder or a hub name")
    made = architecture.published(path)
    if made is None:
        try:
            made = architecture.of(policy.load_config(path).to_dict())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{setting}={path!r}: what that is made of is not known here: {error}") from None
    if made is None:
        raise ConfigError(f"{setting}={path!r}: its architecture is not one that is estimated")
    return made


def sampling(
    whole: Config, config: Config, step: Step, asked: int, settings: GenerateConfig | EvaluateConfig, assumed: Assumed
) -> Line:
    """The line of a step that samples responses to so many questions."""
    made, length = architecture_of(whole, step), assumed.response * settings.max_tokens
    if settings.thinking_budget:
        length = min(length, settings.thinking_budget + settings.budget_answer_tokens)
    tokens = asked * settings.num_samples * length
    at_once = engines_at_once(config, settings.num_engines, assumed)
    held = held_at_once(config, made, length, assumed)
    needed, parts = engine_memory(config, made, length, held)
    hours = decoding(config, made, tokens / at_once, length, assumed) if held else None
    work = f"{asked:,} questions x {settings.num_samples}"
    return Line(step.name, step.stage, work, needed, parts, tokens, hours, tokens * BYTES_PER_TOKEN, not held)


def engines_at_once(config: Config, num: int | tuple[int, int], assumed: Assumed) -> int:
    """As many as the stage starts at most, and the devices hold."""
    return max(1, min(num if isinstance(num, int) else num[1], assumed.devices // _gpus(config)))


def _gpus(config: Config) -> int:
    return max(1, math.ceil(config.engine.gpus_per_engine))


def held_at_once(config: Config, made: Architecture, length: float, assumed: Assumed) -> int:
    """Sequences of half their length, which is the mean over time, that an engine holds at once."""
    return cost.sequences(made, length / 2, assumed.device, _gpus(config), config.engine.max_num_seqs)


def engine_memory(config: Config, made: Architecture, length: float, held: int) -> tuple[float, str]:
    """Bytes of a device of an engine with so many sequences under way, and what they are of."""
    weights = 2 * made.num_parameters / _gpus(config)
    keys = held * length / 2 * cost.kv_bytes(made) / _gpus(config)
    return weights + keys, f"weights {weights / GIB:.3g}, keys and values of {held} sequences {keys / GIB:.3g}"


def decoding(config: Config, made: Architecture, tokens: float, length: float, assumed: Assumed) -> float | None:
    """Hours of one engine; None where it computes on CPU, of which no data sheet is here."""
    if not config.engine.gpus_per_engine:
        return None
    most = config.engine.max_num_seqs
    return cost.decoding_seconds(made, tokens, length / 2, assumed.device, _gpus(config), most) / 3600
