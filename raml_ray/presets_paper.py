"""The paper's runs and figures at their own size: hub models, hub data sets, GPUs. None of them was run here.

All are steps of one run, `paper`: presets name those that they need, and what one preset has finished another finds there.
`raml reproduce paper` runs them in order; settings come from `paper_choices`, which says which of them the paper states.
"""

from typing import Any, NamedTuple

from raml_ray import paper_choices as choices
from raml_ray.config import Config, Step, override
from raml_ray.paper_choices import QUESTIONS, Choice, stated, unstated, within
from raml_ray.text import paper_prompts


class PaperPreset(NamedTuple):
    """Steps and where their settings come from."""

    about: str
    steps: tuple[Step, ...]
    choices: tuple[Choice, ...]
    name: str = "paper"
    """Of the run."""

    def config(self) -> Config:
        """The complete configuration."""
        titled = {"report.title": self.about.partition(".")[0]}
        return override(Config(name=self.name, steps=self.steps), titled | dict(choices.values(self.choices)))


class Block(NamedTuple):
    """Steps that presets share, with what is set in them alone."""

    steps: tuple[Step, ...]
    choices: tuple[Choice, ...]

    def __add__(self, other: Any) -> "Block":
        """Both; steps that both have are there once."""
        new = [index for index, step in enumerate(other.steps) if step not in self.steps]
        kept = {other.steps[index].name for index in new}
        added = tuple(choice for choice in other.choices if choice.setting.split(".")[1] in kept)
        return Block(self.steps + tuple(other.steps[index] for index in new), self.choices + added)


def _evaluated(name: str, policy: str, *, published: str = "") -> Block:
    """The policy on the three sets of mathematics."""
    row = stated("Tables 2 and 3", evaluate__published=published) if published else ()
    step = Step(name=name, stage="evaluate", policy=policy)
    return Block((step,), within(name, (*choices.EVALUATION_PROMPT, *row)))


def _elsewhere(name: str, policy: str) -> Block:
    """The policy on the sets of other domains (Fig. 7)."""
    choice, code = f"{name}_gpqa", f"{name}_code"
    steps = tuple(Step(name=each, stage="evaluate", policy=policy) for each in (choice, code))
    return Block(steps, (*within(choice, (*choices.EVALUATION_PROMPT, *choices.CHOICE)), *within(code, choices.CODE)))


def _sft(teacher: str) -> Block:
    """SFT on the published trajectories of a teacher."""
    path = {"qwen": "qwen-72b-rollouts", "distill": "distill-14b-rollouts"}[teacher]
    prompts = {
        "qwen": stated("C.2", prompt__instruction=paper_prompts.SOLVE_INSTRUCTION),
        "distill": unstated(
            "the released data script's: a think block, an answer block",
            prompt__system=paper_prompts.THINK_ANSWER_SYSTEM,
        ),
    }
    imported = stated("3.1: published", generate__source="import", data__path=f"{QUESTIONS}-{path}")
    return Block(
        (
            Step(name=teacher, stage="generate"),
            Step(name=f"verify_{teacher}", stage="verify", data=(teacher,)),
            Step(name=f"sft_{teacher}", stage="sft", data=(f"verify_{teacher}",)),
        ),
        (*within(teacher, imported), *within(f"sft_{teacher}", prompts[teacher])),
    )


def _grpo(name: str, policy: str = "") -> Block:
    return Block((Step(name=name, stage="grpo", policy=policy),), within(name, choices.GRPO))


TRAINED = (*choices.RUN, *choices.SFT, *choices.EVALUATE)
SFT_QWEN = _sft("qwen") + _evaluated("evaluate_sft_qwen", "sft_qwen", published="sft_qwen")
SFT_DISTILL = _sft("distill") + _evaluated("evaluate_sft_distill", "sft_distill", published="sft_distill")
ZERO = _grpo("grpo_zero") + _evaluated("evaluate_grpo_zero", "grpo_zero", published="grpo_zero")
COLD = (
    _sft("distill")
    + _grpo("grpo_cold", "sft_distill")
    + _evaluated("evaluate_grpo_cold", "grpo_cold", published="grpo_cold")
)
COLD_START = Choice(
    "steps.grpo_cold.policy",
    "sft_distill",
    why="which SFT policy Table 3 starts from is not stated: the better one of Table 2",
)
FIGURE7 = (
    _evaluated("evaluate_base", "")
    + _elsewhere("evaluate_base", "")
    + SFT_QWEN
    + _elsewhere("evaluate_sft_qwen", "sft_qwen")
    + SFT_DISTILL
    + _elsewhere("evaluate_sft_distill", "sft_distill")
    + ZERO
    + _elsewhere("evaluate_grpo_zero", "grpo_zero")
)


def _trained(name: str, about: str, block: Block, *more: Choice) -> PaperPreset:
    steps = (*block.steps, Step(name=f"report_{name}", stage="report"))
    return PaperPreset(about, steps, (*TRAINED, *block.choices, *more))


def _swept(name: str, about: str, block: Block, setting: str, numbers: tuple[int, ...], place: str) -> PaperPreset:
    """For `raml ablate`, in a run of its own: the block once for each number."""
    preset = _trained(name, about, block, *stated(place, ablate__space={setting: numbers}))
    return preset._replace(name=f"paper_{name}")


def _trajectories(name: str, teacher: str, max_tokens: int, gpus: int, *more: Choice) -> PaperPreset:
    """Trajectories of a teacher and their verdicts; each engine holds the teacher on so many GPUs of 80 GB."""
    return PaperPreset(
        f"Trajectories of {teacher}: 10,000 questions x 64",
        (
            Step(name="trajectories", stage="generate"),
            Step(name="verify", stage="verify", data=("trajectories",)),
            Step(name="report", stage="report"),
        ),
        (
            *choices.RUN,
            *stated("C.2, Table 5", policy__path=teacher, data__limit=10_000, generate__num_samples=64),
            *stated("Table 5", generate__temperature=0.7, generate__top_p=1.0, generate__top_k=50),
            *stated("Table 5", generate__max_tokens=max_tokens),
            *stated("C.2", prompt__instruction=paper_prompts.SOLVE_INSTRUCTION),
            *unstated(
                "a matter of machines",
                engine__tensor_parallel_size=gpus,
                engine__gpus_per_engine=gpus,
                engine__max_model_len=choices.PROMPT_TOKENS + max_tokens,
                generate__num_engines=[1, 8],
                generate__shard_questions=2,  # 128 responses: what a kill may cost
            ),
            Choice("data.limit", 10_000, why="the paper draws them at random; here the first that the filters leave"),
            *more,
        ),
        name,
    )


WHICH_TEACHER = Choice(
    "policy.path",
    "Qwen/Qwen2.5-72B-Instruct",
    why="the text names Qwen2.5-Math-72B-Instruct, whose window is shorter than the 8192 tokens of Table 5 and a prompt;"
    " the README and the published set name this one",
)
PUBLISHED = Block((), ())
for teacher in ("qwen", "distill"):
    both = _sft(teacher)
    PUBLISHED += Block(both.steps[:2], tuple(choice for choice in both.choices if f".{teacher}." in choice.setting))

PAPER: dict[str, PaperPreset] = {
    "paper_trajectories_qwen": _trajectories("paper_trajectories_qwen", WHICH_TEACHER.value, 8192, 4, WHICH_TEACHER),
    "paper_trajectories_distill": _trajectories(
        "paper_trajectories_distill", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 36784, 2
    ),
    "paper_sft_sets": PaperPreset(
        "The published trajectories of both teachers, judged by our judge",
        PUBLISHED.steps,
        (*TRAINED, *PUBLISHED.choices),
    ),
    "paper_sft_qwen": _trained("sft_qwen", "SFT on the short teacher's trajectories (Table 2)", SFT_QWEN),
    "paper_sft_distill": _trained("sft_distill", "SFT on the long teacher's trajectories (Table 2)", SFT_DISTILL),
    "paper_grpo_zero": _trained("grpo_zero", "GRPO from the base policy (Tables 2 and 3)", ZERO),
    "paper_grpo_cold": _trained("grpo_cold", "GRPO after SFT (Table 3)", COLD, COLD_START),
    "paper_fig7_domains": _trained("fig7", "Other domains (Fig. 7)", FIGURE7),
    **{
        f"paper_fig8_{teacher}": _swept(
            f"fig8_{teacher}",
            f"SFT on 1 to 32 trajectories per question, {teacher} (Fig. 8)",
            block,
            "sft.num_trajectories",
            (1, 2, 4, 8, 16, 32),
            "Fig. 8",
        )
        for teacher, block in (("qwen", SFT_QWEN), ("distill", SFT_DISTILL))
    },
    "paper_fig9_updates": _swept(
        "fig9",
        "GRPO that updates on 1 to 16 of 16 trajectories (Fig. 9)",
        ZERO,
        "steps.grpo_zero.grpo.num_updated",
        (1, 2, 4, 8, 16),
        "Fig. 9",
    ),
}
