"""The sweeps that come with the project, on the miniature: `raml ablate NAME`. What each claim makes of them: docs/claims.md.

Seeds are 1, 2 and 3, since seed 0 has been looked at (README). A seed has its own base policy, trajectories, questions and
training. All sweeps share one size of training, so that a figure of one can be held against another's; alone, they ask the
first 40 questions of each set (half an hour on two cores, by sums of what steps took: README), and together all 60.
"""

from collections.abc import Mapping

from raml_ray.config import Config, override
from raml_ray.presets_miniature import miniature

SEEDS = (1, 2, 3)
SIZE: dict[str, object] = {
    "steps.teacher.data.limit": 64,
    # The paper's 16 rollouts a question.
    "grpo.num_trajectories": 16,
    "grpo.num_updated": 16,
    "grpo.num_steps": 20,
    # These matrices are so small that a second thread saves little; a second trial beside the first does.
    "base.num_threads": 1,
    "train.cpus_per_worker": 1,
    "engine.cpus_per_engine": 1,
    "cluster.num_cpus": 4,
    "cluster.steps_at_once": 2,
}
FROM_TEACHER, ZERO = ("base", "teacher", "verify", "sft", "evaluate_sft"), ("base", "grpo_zero", "evaluate_grpo_zero")
COLD = ("base", "teacher", "verify", "sft", "grpo_zero", "grpo_cold")
EVALUATIONS = ("evaluate_base", "evaluate_sft", "evaluate_grpo_zero", "evaluate_grpo_cold")

Space = Mapping[str, tuple[object, ...]]


def miniature_policies() -> Config:
    """SFT, Zero-GRPO, and SFT then GRPO, in the domain, on deeper chains and in another domain (Tables 2 and 3, Fig. 7)."""
    return _sweep("policies", COLD + EVALUATIONS, {}, "Which source of trajectories, and whether a cold start helps")


def miniature_sft_trajectories() -> Config:
    """SFT on 1 to 32 distinct trajectories per question, always as many examples (Fig. 8)."""
    space = {"sft.num_trajectories": (1, 2, 4, 8, 16, 32)}
    return _sweep("sft_trajectories", FROM_TEACHER, space, "SFT on more trajectories per question")


def miniature_grpo_trajectories() -> Config:
    """GRPO that updates on 1 to 16 of 16 trajectories, and how much its gradient varies with the draw (Fig. 9)."""
    variance = {"grpo.gradient_variance_every": 10, "grpo.gradient_variance_draws": 4}
    space = {"grpo.num_updated": (1, 2, 4, 8, 16)}
    return _sweep("grpo_trajectories", ZERO, space, "GRPO on more trajectories per question", variance)


def miniature_grpo_trajectories_32() -> Config:
    """The same with 1 to 32 of 32 (Fig. 9, beyond the paper's 16)."""
    size = {"grpo.num_trajectories": 32, "grpo.num_updated": 32, "grpo.questions_per_step": 3, "grpo.num_steps": 12}
    space = {"grpo.num_updated": (1, 2, 4, 8, 16, 32)}
    return _sweep("grpo_trajectories_32", ZERO, space, "GRPO on up to 32 trajectories per question", size)


def miniature_grpo_matched() -> Config:
    """Fig. 9 at equal compute: fewer trajectories of a question, of more questions."""
    size = {"grpo.compute_matched": True, "grpo.questions_per_step": 4}
    space = {"grpo.num_updated": (1, 4, 16)}
    return _sweep("grpo_matched", ZERO, space, "GRPO on more trajectories per question, compute-matched", size)


def miniature_grpo_matched_32() -> Config:
    """The same with 1 to 32 of 32: a version updates on 32 trajectories, of one question or of as many as 32."""
    size = {"grpo.num_trajectories": 32, "grpo.num_updated": 32, "grpo.compute_matched": True}
    size |= {"grpo.questions_per_step": 1, "grpo.num_steps": 12}
    space = {"grpo.num_updated": (1, 2, 4, 8, 16, 32)}
    title = "GRPO on up to 32 trajectories per question, compute-matched"
    return _sweep("grpo_matched_32", ZERO, space, title, size)


def miniature_length() -> Config:
    """SFT on short, medium and long trajectories of one teacher, of the same questions (the confound of Table 2 removed)."""
    size = {"sft.match_length": True}
    space = {"sft.length": ("short", "medium", "long")}
    return _sweep("length", FROM_TEACHER, space, "Trajectory length at one teacher", size)


def miniature_sft_selection() -> Config:
    """Which 4 of a question's trajectories SFT draws (open question E1)."""
    space = {"sft.selection": ("first", "random", "shortest", "longest", "diverse")}
    return _sweep("sft_selection", FROM_TEACHER, space, "Choosing SFT's support set", {"sft.num_trajectories": 4})


def miniature_grpo_selection() -> Config:
    """Which 4 of a question's 16 trajectories GRPO updates on (open question E1)."""
    space = {"grpo.selection": ("random", "max_variance", "difficulty", "diverse", "lhat_descent")}
    return _sweep("grpo_selection", ZERO, space, "Choosing GRPO's support set", {"grpo.num_updated": 4})


def miniature_domains() -> Config:
    """SFT on plain sums and sums modulo 10 in several proportions (open question E3)."""
    space = {"steps.teacher.miniature.transfer_fraction": (0.0, 0.25, 0.5, 0.75, 1.0)}
    return _sweep("domains", FROM_TEACHER, space, "The proportion of two domains")


def miniature_outer_losses() -> Config:
    """The loss of all tokens, of answers, and of answers without its second-order path (Eq. 8)."""
    space = {"sft.outer_loss": ("all_tokens", "answer_only", "answer_only_detached")}
    return _sweep("outer_losses", FROM_TEACHER, space, "Three outer losses")


def miniature_reproduction() -> Config:
    """Tables 2 and 3 and Figs. 7, 8 and 9 in one run and one report; what they share is made once."""
    return _together("reproduction", SEEDS, (1, 2, 8, 32), (1, 4, 16))


def miniature_reproduction_quick() -> Config:
    """The same with one seed and the ends of each sweep: it shows that everything runs, and decides little."""
    return _together("reproduction_quick", SEEDS[:1], (1, 32), (1, 16))


def _sweep(
    name: str, steps: tuple[str, ...], space: Space, title: str, settings: Mapping[str, object] | None = None
) -> Config:
    """Those steps of the miniature over the space, and over seeds."""
    whole = override(_of_size(name, title), {"evaluate.limit": 40, **(settings or {})})
    kept = tuple(step for step in whole.steps if step.name in (*steps, "report"))
    return override(whole.model_copy(update={"steps": kept}), {"ablate.space": {**space, "seed": SEEDS}})


def _together(name: str, seeds: tuple[int, ...], sft: tuple[int, ...], grpo: tuple[int, ...]) -> Config:
    whole = _of_size(name, "RaML's core experiments on the miniature")
    kept = tuple(step for step in whole.steps if step.name in (*COLD, *EVALUATIONS, "report"))
    grids = {
        "policies": {"steps": EVALUATIONS},
        "sft_trajectories": {"steps": ("evaluate_sft",), "space": {"sft.num_trajectories": sft}},
        "grpo_trajectories": {"steps": ("evaluate_grpo_zero",), "space": {"grpo.num_updated": grpo}},
    }
    return override(whole.model_copy(update={"steps": kept}), {"ablate.grids": grids, "ablate.space": {"seed": seeds}})


def _of_size(name: str, title: str) -> Config:
    """The miniature whose SFT learns from the teacher alone, at the sweeps' size."""
    whole = miniature()
    steps = tuple(
        step.model_copy(update={"data": ("teacher",)}) if step.name == "verify" else step for step in whole.steps
    )
    whole = whole.model_copy(update={"name": f"miniature_{name}", "steps": steps})
    return override(whole, {**SIZE, "report.title": f"{title}: the miniature"})
