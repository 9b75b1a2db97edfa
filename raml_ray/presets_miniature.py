"""The miniature: an embedded arithmetic task, a policy trained from scratch on it, and everything done with both."""

from raml_ray.config import Config, Step, override

PROBED: dict[str, object] = {"train.probe_every": 10, "train.probe_data": "verify"}
"""L-hat of 16 right trajectories while steps behind `verify` learn: a second in all."""
WORDS: dict[str, object] = {"interventions.neutral": ["re: _"], "interventions.num_samples": 4}
"""The miniature's only words without a role are its empty slots."""


def miniature() -> Config:
    """The whole way on one machine: an embedded arithmetic task, a policy trained from scratch, every stage."""
    evaluated = ("base", "sft", "grpo_zero", "grpo_cold")
    return override(
        Config(
            name="miniature",
            steps=(
                Step(name="base", stage="base"),
                Step(name="generate", stage="generate", policy="base", overrides={"data.limit": 128}),
                Step(
                    name="teacher",
                    stage="generate",
                    overrides={"generate.source": "oracle", "generate.num_samples": 32, "data.limit": 128},
                ),
                Step(name="verify", stage="verify", data=("teacher", "generate")),
                Step(name="sft", stage="sft", policy="base", data=("verify",), overrides=PROBED),
                Step(name="grpo_zero", stage="grpo", policy="base"),
                Step(name="grpo_cold", stage="grpo", policy="sft", overrides=PROBED),
                *(Step(name=f"evaluate_{name}", stage="evaluate", policy=name) for name in evaluated),
                Step(name="analyze", stage="analyze", policy="sft", data=("evaluate_sft",)),
                Step(name="report", stage="report"),
            ),
        ),
        {
            "data.path": "miniature:train",
            "sft.policies": ["oracle"],
            # In synchronous GRPO learner and engine take turns: each may use both cores.
            "engine.cpus_per_engine": 2,
            "train.cpus_per_worker": 2,
            "cluster.num_cpus": 5,
            "evaluate.sets": {name: f"miniature:{name}" for name in ("in_domain", "deeper", "transfer")},
            "report.title": "RaML on the miniature",
        },
    )


def smoke() -> Config:
    """The miniature at the smallest size that still runs every line: seconds of training, figures without meaning."""
    return override(
        miniature(),
        {
            "name": "smoke",
            "base.num_steps": 30,
            "miniature.num_train": 16,
            "miniature.num_eval": 8,
            "generate.num_samples": 2,
            "generate.shard_questions": 8,
            "sft.max_steps": 4,
            "sft.batch_size": 16,
            "grpo.num_steps": 2,
            "grpo.questions_per_step": 4,
            "grpo.num_trajectories": 4,
            "grpo.num_updated": 2,
            "evaluate.num_samples": 4,
            "evaluate.k": 2,
            "analyze.num_questions": 4,
            "train.checkpoint_every": 1,
        },
    )


def miniature_modes() -> Config:
    """One policy that thinks as long as it likes, not at all, or until its thinking is cut (the paper's Figs. 5 and 11)."""
    whole = miniature()
    budgets = (8, 16, 32)
    modes: dict[str, dict[str, object]] = {"thinking": {}, "no_thinking": {"prompt.thinking": False}}
    modes |= {f"budget_{budget}": {"evaluate.thinking_budget": budget} for budget in budgets}
    steps = (
        whole.step("base"),
        whole.step("teacher"),
        whole.step("verify").model_copy(update={"data": ("teacher",)}),
        whole.step("sft"),
        *(
            Step(name=f"evaluate_{mode}", stage="evaluate", policy="sft", overrides=overrides)
            for mode, overrides in modes.items()
        ),
        *(
            Step(name=f"lhat_{mode}", stage="analyze", policy="sft", data=(f"evaluate_{mode}",), overrides=modes[mode])
            for mode in ("thinking", "no_thinking")
        ),
        Step(name="report", stage="report"),
    )
    return override(
        whole.model_copy(update={"name": "miniature_modes", "steps": steps}),
        {"report.title": "Thinking, no thinking and cut thinking on the miniature"},
    )


def miniature_open() -> Config:
    """What the miniature's task leaves out: early answers that mean something, reflection that can help, transfer that can
    happen (docs/miniature.md).

    The base policy is asked for early answers half of the time and corrects most of its teacher's errors; a second SFT takes
    steps a tenth as long; every policy is also evaluated without the word `Wait`.
    """
    whole = miniature()
    without = {"evaluate.bad_words": ["Wait"]}
    policies = ("base", "sft", "sft_gentle", "grpo_zero")
    steps = (
        whole.step("base"),
        whole.step("teacher"),
        whole.step("verify").model_copy(update={"data": ("teacher",)}),
        whole.step("sft"),
        Step(name="sft_gentle", stage="sft", policy="base", data=("verify",), overrides={"sft.learning_rate": 2e-4}),
        whole.step("grpo_zero"),
        *(Step(name=f"evaluate_{name}", stage="evaluate", policy=name) for name in policies),
        *(
            Step(name=f"evaluate_{name}_no_wait", stage="evaluate", policy=name, overrides=without)
            for name in policies
            if name != "sft"
        ),
        *(
            Step(name=f"lhat_{name}", stage="analyze", policy=name, data=(f"evaluate_{name}",))
            for name in policies
            if name != "sft"
        ),
        _features(("evaluate_base",), "base"),
        # Of all policies here, base writes `Wait` most often.
        _instrument("roles", ("lhat_base",), policy="base"),
        _instrument("interventions", ("evaluate_base",), WORDS, policy="base"),
        Step(name="report", stage="report"),
    )
    return override(
        whole.model_copy(update={"name": "miniature_open", "steps": steps}),
        {
            "base.num_steps": 600,
            "base.early_answer_fraction": 0.5,
            "base.noticed_fraction": 0.8,
            # The sweeps' size: 16 rollouts a question, 20 versions.
            "grpo.num_trajectories": 16,
            "grpo.num_updated": 16,
            "grpo.num_steps": 20,
            # A policy's own errors are its sampling's: at 0.6 few are left to be reflected on.
            "evaluate.temperature": 1.0,
            "evaluate.sets": {"in_domain": "miniature:in_domain", "transfer": "miniature:transfer"},
            "report.title": "What the miniature leaves open",
        },
    )


def miniature_science() -> Config:
    """Every instrument on the miniature's fine-tuned policy, along its own correct and wrong trajectories; its base policy
    beside twins of other attention, along the same."""
    whole = miniature()
    tried = ("evaluate_sft",)
    twins = ("linear", "delta")
    # These matrices are so small that a second thread saves nothing; a second step beside it does.
    alone: dict[str, object] = {"base.num_threads": 1}
    short: dict[str, object] = alone | {"base.num_steps": 200}
    few: dict[str, object] = {"analyze.num_questions": 12, "pseudo_update.num_positions": 8}
    instruments = (
        Step(name="lhat", stage="analyze", policy="sft", data=tried),
        _instrument("roles", ("lhat",)),
        _instrument("pseudo_update", tried),
        _instrument("real_updates", tried, {"analyze.num_questions": 10}),
        _instrument("interventions", tried, WORDS),
        _instrument("modes", tried),
        _instrument("shorter", tried),
        _instrument("landscape", tried, {"analyze.num_questions": 3}),
        _features(tried),
        *(
            _instrument("pseudo_update", tried, few, policy=policy).model_copy(
                update={"name": f"pseudo_update_{policy}"}
            )
            for policy in ("base", *(f"base_{kind}" for kind in twins))
        ),
    )
    steps = (
        whole.step("base").model_copy(update={"overrides": whole.step("base").overrides | alone}),
        *(Step(name=f"base_{kind}", stage="base", overrides=short | {"base.attention": kind}) for kind in twins),
        whole.step("teacher"),
        whole.step("verify").model_copy(update={"data": ("teacher",)}),
        whole.step("sft"),
        whole.step("evaluate_sft"),
        *instruments,
        Step(name="report", stage="report"),
    )
    return override(
        whole.model_copy(update={"name": "miniature_science", "steps": steps}),
        {
            # The other domain is what shared features are tested in; the other instruments look at the first set alone.
            "evaluate.sets": {"in_domain": "miniature:in_domain", "transfer": "miniature:transfer"},
            "report.title": "What tokens do: the miniature under every instrument",
            "cluster.steps_at_once": 2,
            # Half of the miniature's, as in the sweeps: ten minutes for all.
            "steps.teacher.data.limit": 64,
        },
    )


def _features(data: tuple[str, ...], policy: str = "sft") -> Step:
    """Probes on all questions of both domains, and answers without what they read in the middle and at the end."""
    size = {"analyze.num_questions": 60, "analyze.num_correct": 4, "analyze.num_wrong": 4}
    step = _instrument(
        "features", data, {"features.results": "miniature", "features.max_tokens": 96, "features.rank": 9, **size}
    )
    return step.model_copy(update={"policy": policy})


def _instrument(
    name: str, data: tuple[str, ...], overrides: dict[str, object] | None = None, policy: str = "sft"
) -> Step:
    """A step of that instrument, named after it."""
    settings = {"analyze.instrument": name} | (overrides or {})
    return Step(name=name, stage="analyze", policy=policy, data=data, overrides=settings)
