"""What one setting of `analyze` and its instruments allows another. Every function raises ValueError with a remedy."""

import re

from raml_ray.settings import (
    MINIATURE_RESULTS,
    REGEX_RULE,
    AnalyzeConfig,
    FeaturesConfig,
    InterventionsConfig,
    LandscapeConfig,
    ModesConfig,
    PromptConfig,
    RolesConfig,
    ShorterConfig,
)

INSIDE = ("pseudo_update", "real_updates")
"""Instruments that read what every layer's attention computed."""


def instrument(analyze: AnalyzeConfig) -> None:
    """What an instrument asks of what all share."""
    if analyze.instrument in INSIDE and analyze.dtype != "float32":
        raise ValueError(
            f"analyze.dtype={analyze.dtype}: analyze.instrument={analyze.instrument} holds its updates against the layers'"
            " own outputs to 1e-5, which only float32 has: set analyze.dtype=float32"
        )


def spread(analyze: AnalyzeConfig, settings: LandscapeConfig) -> None:
    """A policy lies over the GPUs of its worker, for instruments that read no layer's inside."""
    gpus = analyze.gpus_per_policy
    if gpus == 1:
        if analyze.gpus_per_worker > 1:
            raise ValueError(
                f"analyze.gpus_per_worker={analyze.gpus_per_worker:g}: a policy lies on one of them; set"
                f" analyze.gpus_per_policy={analyze.gpus_per_worker:g} to spread it, or analyze.gpus_per_worker=1"
            )
        return
    if analyze.gpus_per_worker != gpus:
        raise ValueError(
            f"analyze.gpus_per_policy={gpus} are a worker's own, and analyze.gpus_per_worker={analyze.gpus_per_worker:g}"
            f" gives it others: set analyze.gpus_per_worker={gpus}"
        )
    inside = analyze.instrument in INSIDE or (analyze.instrument == "landscape" and "update" in settings.planes)
    if inside:
        raise ValueError(
            f"analyze.gpus_per_policy={gpus}: pseudo-updates (analyze.instrument=pseudo_update or real_updates,"
            " landscape.planes=update) put the layers' insides together on one device: set it to 1"
        )


def categories(roles: RolesConfig) -> None:
    """Rules that mark words, and neither everything nor nothing."""
    for category, rules in roles.categories.items():
        _rules(f"roles.categories.{category}", rules)


def interventions(analyze: AnalyzeConfig, settings: InterventionsConfig, roles: RolesConfig) -> None:
    """Words that there are, and something to put in their place."""
    _rules("interventions.neutral", settings.neutral)
    if analyze.instrument == "interventions" and settings.category not in roles.categories:
        raise ValueError(
            f"interventions.category={settings.category!r} is none of roles.categories ({', '.join(roles.categories)}):"
            " name one of them, or add it there"
        )
    if not settings.newline:
        raise ValueError("interventions.newline is empty: name the text that is put in a word's place")


def _rules(name: str, rules: tuple[str, ...]) -> None:
    for rule in rules:
        expression = rule.removeprefix(REGEX_RULE)
        try:
            marks_nothing = not expression or (rule != expression and re.compile(expression).match(""))
        except re.error as error:
            raise ValueError(f"{name}: {rule!r} is no regular expression: {error}") from None
        if marks_nothing:
            raise ValueError(f"{name}: {rule!r} matches the empty text; name what it marks")


def landscape(settings: LandscapeConfig) -> None:
    """Grids around the policy itself."""
    if settings.num_points % 2 == 0:
        raise ValueError(
            f"landscape.num_points={settings.num_points} is even: the policy itself would not be on the grid; make it odd"
        )
    for name, radii in (("radii", settings.radii), ("update_radii", settings.update_radii)):
        if not radii or min(radii) <= 0 or len(set(radii)) < len(radii):
            raise ValueError(f"landscape.{name}={list(radii)}: give radii above 0, each once")
    if not settings.planes or len(set(settings.planes)) < len(settings.planes):
        raise ValueError(f"landscape.planes={list(settings.planes)}: name random, update, or both, each once")


def modes(analyze: AnalyzeConfig, settings: ModesConfig, prompt: PromptConfig) -> None:
    """Cuts that there are, in a thought that nothing else ends."""
    _shares("modes.fractions", settings.fractions, lowest_allowed=True)
    if len(set(settings.budgets)) < len(settings.budgets) or min(settings.budgets, default=1) < 1:
        raise ValueError(f"modes.budgets={list(settings.budgets)}: give numbers of tokens from 1, each once")
    for name, text in settings.delimiters.items():
        if not text:
            raise ValueError(f"modes.delimiters.{name} is empty: name the text that takes the place of thinking")
    if analyze.instrument == "modes" and (not prompt.thinking or prompt.response_prefix):
        culprit = "prompt.response_prefix" if prompt.thinking else "prompt.thinking=false"
        raise ValueError(
            f"analyze.instrument=modes begins responses with and without thinking, and {culprit} begins them all alike:"
            " leave it out, and set modes.delimiters"
        )


def shorter(settings: ShorterConfig) -> None:
    """Ways that there are, and budgets that shorten."""
    _shares("shorter.fractions", settings.fractions, lowest_allowed=False)
    if 1.0 in settings.fractions:
        raise ValueError(
            f"shorter.fractions={list(settings.fractions)}: the whole thinking is always beside; leave 1 out"
        )
    if len(set(settings.ways)) < len(settings.ways) or not (settings.ways or settings.summary_policy):
        raise ValueError(f"shorter.ways={list(settings.ways)}: name truncation, random or lhat, each once")
    if not (settings.fractions or settings.summary_policy):
        raise ValueError(
            "shorter.fractions=[] leaves no length to shorten to: give shares, or set shorter.summary_policy"
        )
    if "{reasoning}" not in settings.summary_instruction:
        raise ValueError("shorter.summary_instruction has no {reasoning}: say where the text to summarise stands")
    for name, field in ShorterConfig.model_fields.items():
        value = getattr(settings, name)
        if name.startswith("summary_") and not settings.summary_policy and value != field.default:
            raise ValueError(
                f"shorter.{name}={value!r} has no effect without shorter.summary_policy: set that, or leave it out"
            )


def _shares(name: str, shares: tuple[float, ...], *, lowest_allowed: bool) -> None:
    lowest = min(shares, default=0.5)
    is_low = lowest < 0 if lowest_allowed else lowest <= 0
    if is_low or max(shares, default=0.5) > 1 or len(set(shares)) < len(shares):
        raise ValueError(
            f"{name}={list(shares)}: give shares {'from' if lowest_allowed else 'above'} 0 to 1, each once"
        )


def features(settings: FeaturesConfig) -> None:
    """Subspaces that a probe can have, and partial results that can be found."""
    if settings.rank >= settings.num_classes:
        raise ValueError(
            f"features.rank={settings.rank}: a probe of features.num_classes={settings.num_classes} classes reads one"
            f" direction fewer: set it to at most {settings.num_classes - 1}"
        )
    for name, values in (("domains", settings.domains), ("layers", settings.layers)):
        if len(set(values)) < len(values):
            raise ValueError(f"features.{name}={list(values)} names one twice: name each once")
    if settings.layers and min(settings.layers) < 1:
        raise ValueError(f"features.layers={list(settings.layers)}: the first layer is 1")
    if settings.results != MINIATURE_RESULTS:
        try:
            num_groups = re.compile(settings.results).groups
        except re.error as error:
            raise ValueError(f"features.results={settings.results!r} is no regular expression: {error}") from None
        if num_groups < 1:
            raise ValueError(
                f"features.results={settings.results!r} has no group: put the partial result in parentheses"
            )
