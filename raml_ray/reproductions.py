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


def paper() -> Reproduction:
    """The paper's data, at its own size: hub models, hub data sets, GPUs."""
    return Reproduction(
        "the paper at its own size; needs a cluster of GPUs and the hub, or a mirror of it",
        (Part("run", ("paper_sft_sets",), "the trajectories that SFT draws from (3.1)"),),
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


def parts(name: str, words: Sequence[str] = (), *, quick: bool = False) -> list[Part]:
    """The parts of the reproduction of that name, each with these `name=value` words behind its own.

    Raises: ConfigError with the nearest name, or if it has no quicker way.
    """
    if name not in REPRODUCTIONS:
        there = ", ".join(REPRODUCTIONS)
        raise ConfigError(f"no reproduction {name!r}{hint(name, list(REPRODUCTIONS))}; there are {there}")
    found = REPRODUCTIONS[name]()
    if quick and not found.quick:
        raise ConfigError(f"reproduction {name!r} has no quicker way: leave out --quick")
    return [part._replace(words=(*part.words, *words)) for part in (found.quick if quick else found.parts)]
