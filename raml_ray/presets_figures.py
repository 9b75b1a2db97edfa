"""The paper's figures on policies that others trained: L-hat, landscapes, modes, budgets. None of them was run here."""

from raml_ray import paper_choices as choices
from raml_ray.config import Step
from raml_ray.paper_choices import Choice, stated, unstated, within
from raml_ray.presets_paper import PaperPreset
from raml_ray.text import paper_prompts

QWQ, QWEN3 = "Qwen/QwQ-32B", "Qwen/Qwen3-32B"
COMMUNITY = {
    "dapo": "BytedTsinghua-SIA/DAPO-Qwen-32B",
    "sky_t1_preview": "NovaSky-AI/Sky-T1-32B-Preview",
    "sky_t1_flash": "NovaSky-AI/Sky-T1-32B-Flash",
    "limo": "GAIR/LIMO",
    "bespoke_stratos": "bespokelabs/Bespoke-Stratos-32B",
    "s1_1": "simplescaling/s1.1-32B",
    "r1_distill": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    "light_r1": "qihoo360/Light-R1-32B",
    "openthinker": "open-thoughts/OpenThinker-32B",
    "openthinker2": "open-thoughts/OpenThinker2-32B",
    "qwen_base": "Qwen/Qwen2.5-32B",
    "qwen_instruct": "Qwen/Qwen2.5-32B-Instruct",
}
"""Fig. 4's policies but VAPO-32B, whose weights are not published: the paper copied its number."""
BUDGETS = (1024, 2048, 4096, 8192, 16384, 32768)


def _sampled(name: str) -> tuple[Step, ...]:
    """Trajectories of the four questions and their verdicts."""
    return Step(name=name, stage="generate"), Step(name=f"verify_{name}", stage="verify", data=(name,))


def _instrument(instrument: str, of: str, data: str) -> tuple[Step, tuple[Choice, ...]]:
    name = f"{instrument}_{of}"
    chosen = stated("C.1", analyze__instrument=instrument)
    return Step(name=name, stage="analyze", data=(data,)), within(name, chosen)


def _preset(figure: str, about: str, model: str, steps: tuple[Step, ...], *more: Choice) -> PaperPreset:
    report = Step(name=f"report_{figure}", stage="report")
    policy = stated("3.3, C.1", policy__path=model)
    return PaperPreset(about, (*steps, report), (*choices.PROBED, *policy, *more))


def _curves(figure: str, about: str, model: str, of: str, *more: Choice) -> PaperPreset:
    """L-hat along correct trajectories."""
    lhat, chosen = _instrument("lhat", of, f"verify_{of}")
    return _preset(figure, about, model, (*_sampled(of), lhat), *chosen, *more)


def _modes(figure: str, about: str, model: str, of: str, direct: tuple[Choice, ...], *more: Choice) -> PaperPreset:
    """L-hat with thinking beside L-hat without."""
    other = f"{of}_direct"
    (lhat, one), (lhat_direct, two) = (_instrument("lhat", each, f"verify_{each}") for each in (of, other))
    prompts = [choice for step in (other, lhat_direct.name) for choice in within(step, direct)]
    asked = within(
        lhat_direct.name,
        unstated("the paper shows one AIME24 question and does not say which: all four", analyze__num_questions=4),
    )
    steps = (*_sampled(of), *_sampled(other), lhat, lhat_direct)
    return _preset(figure, about, model, steps, *one, *two, *prompts, *asked, *more)


def _words() -> PaperPreset:
    (lhat, one), (roles, two) = _instrument("lhat", "qwq", "verify_qwq"), _instrument("roles", "qwq", "lhat_qwq")
    words = ["Wait", "Therefore", "Alternatively", "Hold on", "Since"]
    stated_words = stated("Fig. 6", roles__paper_words=words)
    about = "What words do to L-hat (Fig. 6)"
    return _preset("fig6", about, QWQ, (*_sampled("qwq"), lhat, roles), *one, *two, *within(roles.name, stated_words))


def _landscape() -> PaperPreset:
    landscape, chosen = _instrument("landscape", "qwq", "verify_qwq")
    more = (
        *stated("Fig. 2", landscape__planes=["random"]),
        *stated("C.1, Alg. 4: from -1 to 1", landscape__radii=[1.0]),
        *unstated("the released notebook divides by whole tensors' norms", landscape__normalisation="tensor"),
        *unstated(
            "the notebook has 10 points a side, and none in the middle: the next odd number", landscape__num_points=11
        ),
        *unstated("the paper does not name the question: the first of the four", analyze__num_questions=1),
        *unstated("without the trajectory, as the notebook, and with all of it", landscape__num_prefixes=2),
        *unstated(
            "a matter of machines: beside the weights those of a point, and two directions in float32",
            analyze__gpus_per_worker=8,
            analyze__gpus_per_policy=8,
        ),
    )
    return _preset(
        "fig2",
        "L-hat around the policy's weights (Fig. 2)",
        QWQ,
        (*_sampled("qwq"), landscape),
        *chosen,
        *within(landscape.name, (*more, *stated("Fig. 2", analyze__num_correct=1))),
    )


def _community() -> PaperPreset:
    names = {model: f"evaluate_{model}" for model in COMMUNITY}
    steps = tuple(Step(name=name, stage="evaluate") for name in names.values())
    hub = "the paper gives no hub names: the publishers' own"
    paths = [c for model, name in names.items() for c in within(name, unstated(hub, policy__path=COMMUNITY[model]))]
    asked = (
        *stated("Fig. 4: 64 samples, Pass@32", evaluate__num_samples=64, evaluate__k=32),
        *stated("Fig. 4", evaluate__sets={"aime24": "paper:aime24"}),
        *stated("C.3", evaluate__temperature=1.0, evaluate__top_p=0.8, evaluate__top_k=50),
        *unstated(
            "the window of Qwen2.5-32B-Instruct and of policies tuned from it; 16,384 tokens would cut these policies",
            engine__max_model_len=32768,
        ),
        *unstated("that window, less 1,024 tokens for the prompt", evaluate__max_tokens=31744),
        *unstated("a matter of machines", evaluate__num_engines=[1, 4]),
    )
    return _preset("fig4", "Published policies on AIME24 (Fig. 4)", COMMUNITY["qwen_base"], steps, *paths, *asked)


SUMMARISED = (
    *stated("4.2, Fig. 11", analyze__instrument="shorter", shorter__summary_policy="Qwen/Qwen2.5-32B-Instruct"),
    *stated("Fig. 11", shorter__summary_published="qwen3_summarised"),
    *stated("4.2: four summaries of each trajectory", shorter__summary_draws=4),
    *stated(
        "the released notebook",
        shorter__summary_temperature=1.0,
        shorter__summary_instruction=paper_prompts.SUMMARY_INSTRUCTION,
        shorter__summary_reads=24576,
        shorter__summary_tokens=8192,
        answers__temperature=0.0,
        answers__max_tokens=20,
        answers__stop=["}"],
        answers__cut_text=paper_prompts.FORCED_ANSWER,
    ),
    *stated("Fig. 11: 16 samples", analyze__num_correct=16, analyze__num_wrong=16),
    *unstated("every question of the three sets, of which one has 42 or 45", analyze__num_questions=30 + 134 + 45),
    *unstated(
        "the notebook asks the summariser by QwQ's template, which opens a thought: here by its own",
        shorter__summary_template="chat",
    ),
    *unstated(
        "the summariser's window: beside all that it reads a summary has up to 100 tokens fewer than 8192",
        shorter__summary_max_model_len=32768,
    ),
    *unstated("greedy: one answer says all", shorter__num_samples=1),
    *unstated("the paper takes summaries whole, and cuts thinking by numbers of tokens", shorter__fractions=[]),
    *unstated("controls of as many tokens as each summary; the paper has none", shorter__ways=["truncation", "random"]),
    *unstated("a matter of machines", answers__num_engines=[1, 4]),
)
"""Answers behind summaries of the trajectories that think. Those without an answer that can be read are not summarised, and
summaries that say an answer are left out; the paper forbids the latter in the prompt alone."""


def _budgets() -> PaperPreset:
    forced = stated("Fig. 11", evaluate__budget_text=paper_prompts.FORCED_ANSWER)
    room = unstated(
        "room for the answer behind the longest budget",
        evaluate__max_tokens=36864,
        evaluate__budget_answer_tokens=64,
    )
    modes = {
        "thinking": stated("Fig. 11", evaluate__published="qwen3_thinking"),
        "no_thinking": stated("Fig. 11", prompt__thinking=False, evaluate__published="qwen3_no_thinking"),
        **{f"budget_{n}": (*stated("Fig. 11", evaluate__thinking_budget=n), *forced) for n in BUDGETS},
    }
    steps = tuple(Step(name=f"evaluate_{mode}", stage="evaluate") for mode in modes)
    own = [choice for mode, chosen in modes.items() for choice in within(f"evaluate_{mode}", chosen)]
    summarised = Step(name="shorter_thinking", stage="analyze", data=("evaluate_thinking",))
    sets = {"aime24": "paper:aime24", "math500_level5": "paper:math500-level5"}
    sets |= {"livemathbench_hard_en": "paper:livemathbench-hard-en"}
    asked = (
        *stated("Fig. 11: 16 samples", evaluate__num_samples=16, evaluate__k=16, evaluate__sets=sets),
        *unstated("as the trajectories that L-hat is measured along", evaluate__temperature=0.6, evaluate__top_p=0.95),
        *unstated("as the trajectories that L-hat is measured along", evaluate__top_k=40),
        *room,
        *unstated("a matter of machines", evaluate__num_engines=[1, 4], engine__max_model_len=38912),
    )
    own += within(summarised.name, SUMMARISED)
    return _preset("fig11", "Qwen3-32B with less thinking (Fig. 11)", QWEN3, (*steps, summarised), *own, *asked)


NO_THINKING_QWQ = stated("3.3", prompt__response_prefix=paper_prompts.NO_THINKING_PREFIX)
NO_THINKING_QWEN3 = stated("App. E and the released notebook", prompt__thinking=False)
WRONG = stated("Fig. 16", analyze__num_wrong=4)

FIGURES: dict[str, PaperPreset] = {
    "paper_fig2_landscape": _landscape(),
    "paper_fig3_qwq": _curves("fig3", "L-hat along correct trajectories of QwQ-32B (Figs. 3 and 12)", QWQ, "qwq"),
    "paper_fig4_community": _community(),
    "paper_fig5_modes": _modes("fig5", "QwQ-32B without thinking (Figs. 5 and 13)", QWQ, "qwq", NO_THINKING_QWQ),
    "paper_fig6_words": _words(),
    "paper_fig11_budgets": _budgets(),
    "paper_fig14_qwen3": _curves(
        "fig14", "L-hat along trajectories of Qwen3-32B, correct and wrong (Figs. 14 and 16)", QWEN3, "qwen3", *WRONG
    ),
    "paper_fig15_modes": _modes(
        "fig15", "Qwen3-32B without thinking (Fig. 15)", QWEN3, "qwen3", NO_THINKING_QWEN3, *WRONG
    ),
}
