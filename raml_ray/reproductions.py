"""Everything that one word runs: `raml reproduce NAME` goes through a list of commands, and through it again after a stop.

To add one: its parts under a name in REPRODUCTIONS. A part is a command that a person could type, so what it finished
before stays and what it was cut off in goes on; several parts may be of one run, whose steps they then share.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from raml_ray.config import ConfigError, hint


class Part(NamedTuple):
    """One command of a reproduction: `Part("run", ("paper_grpo_cold",), "Table 3")`."""

    command: Literal["run", "ablate"]
    words: tuple[str, ...]
    """A preset, or the path of a config.json, and `name=value` words; of `ablate` with what is searched over."""
    shows: str
    """What of the paper comes out."""

    @property
    def line(self) -> str:
        """As a person types it."""
        return " ".join(["raml", self.command, *(f"'{word}'" if "(" in word else word for word in self.words)])


class Reproduction(NamedTuple):
    """The parts in their order."""

    about: str
    parts: tuple[Part, ...]
    quick: tuple[Part, ...] = ()
    """What `--quick` runs in their place; empty where there is no quicker way."""
    can_be_rehearsed: bool = False
    """Whether `--rehearse` has a meaning: its steps can run at toy size (rehearsal.py)."""


def paper() -> Reproduction:
    """The paper's runs and figures at their own size: hub models, hub data sets, GPUs."""
    runs = {
        "paper_sft_sets": "the trajectories that SFT draws from (3.1)",
        "paper_sft_qwen": "Table 2, the short teacher",
        "paper_sft_distill": "Table 2, the long teacher",
        "paper_grpo_zero": "Tables 2 and 3, Zero-GRPO",
        "paper_grpo_cold": "Table 3, GRPO after SFT",
        "paper_fig7_domains": "Fig. 7",
        "paper_fig2_landscape": "Fig. 2",
        "paper_fig3_qwq": "Figs. 3 and 12",
        "paper_fig4_community": "Fig. 4",
        "paper_fig5_modes": "Figs. 5 and 13",
        "paper_fig6_words": "Fig. 6",
        "paper_fig11_budgets": "Fig. 11",
        "paper_fig14_qwen3": "Figs. 14 and 16",
        "paper_fig15_modes": "Fig. 15",
    }
    sweeps = {
        "paper_fig8_qwen": "Fig. 8, the short teacher",
        "paper_fig8_distill": "Fig. 8, the long teacher",
        "paper_fig9_updates": "Fig. 9",
    }
    return Reproduction(
        "the paper at its own size; needs a cluster of GPUs and the hub, or a mirror of it",
        (
            *(Part("run", (preset,), shows) for preset, shows in runs.items()),
            *(Part("ablate", (preset,), shows) for preset, shows in sweeps.items()),
        ),
        can_be_rehearsed=True,
    )


def miniature() -> Reproduction:
    """The core experiments on the embedded task, on one machine."""
    shows = "Tables 2 and 3, Figs. 7, 8 and 9, three seeds"
    return Reproduction(
        "the core experiments on the miniature; two cores, no GPU",
        (Part("ablate", ("miniature_reproduction",), shows),),
        quick=(
            Part("ablate", ("miniature_reproduction_quick",), "the same with one seed, and the ends of each sweep"),
        ),
    )


REPRODUCTIONS: dict[str, Callable[[], Reproduction]] = {function.__name__: function for function in (paper, miniature)}


def parts(name: str, words: Sequence[str] = (), *, quick: bool = False, rehearse: bool = False) -> list[Part]:
    """The parts of the reproduction of that name, each with these `name=value` words behind its own.

    Raises: ConfigError with the nearest name, or if it has no quicker way, or no rehearsal.
    """
    if name not in REPRODUCTIONS:
        there = ", ".join(REPRODUCTIONS)
        raise ConfigError(f"no reproduction {name!r}{hint(name, list(REPRODUCTIONS))}; there are {there}")
    found = REPRODUCTIONS[name]()
    if quick and not found.quick:
        raise ConfigError(f"reproduction {name!r} has no quicker way: leave out --quick")
    if rehearse and not found.can_be_rehearsed:
        raise ConfigError(f"reproduction {name!r} runs on this machine as it is: leave out --rehearse")
    return [part._replace(words=(*part.words, *words)) for part in (found.quick if quick else found.parts)]
