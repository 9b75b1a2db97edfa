"""What the paper (arXiv 2505.19815v1) states of its settings, with the place, and what it does not, with our reason.

Presets are made of these lists, and `raml show PRESET --unstated` prints them: a value stands in one place. Where the paper
is silent we take the default of the code that it names (veRL of March 2025, OpenCompass), since its authors most likely
left it; what is a matter of machines alone is ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from raml_ray.text import paper_prompts

QUESTIONS = "paper:orz-math"
STUDENT = "Qwen/Qwen2.5-7B"
PROMPT_TOKENS, SFT_TOKENS, GRPO_TOKENS, PROBED_TOKENS = 1024, 18432, 16384, 32768
FIGURE3 = "paper:aime24-four"


class Choice(NamedTuple):
    """A setting's value with where it comes from: `Choice("sft.batch_size", 256, "Table 6")`."""

    setting: str
    value: Any
    place: str = ""
    """Where the paper states it; empty if it does not."""
    why: str = ""
    """Of what is not stated."""


def stated(place: str, **settings: Any) -> tuple[Choice, ...]:
    """Settings (`__` is a dot) that the paper states there."""
    return tuple(Choice(name.replace("__", "."), value, place=place) for name, value in settings.items())


def unstated(why: str, **settings: Any) -> tuple[Choice, ...]:
    """Settings (`__` is a dot) that the paper does not state."""
    return tuple(Choice(name.replace("__", "."), value, why=why) for name, value in settings.items())


def within(step: str, choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The choices in one step alone."""
    return tuple(choice._replace(setting=f"steps.{step}.{choice.setting}") for choice in choices)


def values(choices: Sequence[Choice]) -> Mapping[str, Any]:
    """Setting -> value, of all that are settings; which policy a step starts from is said where the steps are."""
    return {choice.setting: choice.value for choice in choices if not is_policy(choice)}


def is_policy(choice: Choice) -> bool:
    """Whether it says which step's policy a step starts from (`steps.grpo_cold.policy`)."""
    return choice.setting.startswith("steps.") and choice.setting.count(".") == 2


def not_stated(choices: Sequence[Choice]) -> Iterator[str]:
    """The choices that are ours, one after the other as text."""
    for choice in choices:
        if not choice.place:
            yield f"{choice.setting} = {choice.value!r}\n    {choice.why}"


LEARNERS = "a matter of machines: 7B parameters in bfloat16 on 8 GPUs of 80 GB (raml plan)"
ENGINES = "a matter of machines: one 7B engine per GPU of 80 GB"
RUN = (
    *unstated("the released data script's seed; the paper states none for training", seed=42),
    *unstated("the paper names Qwen2.5-7B-Base, the hub calls it so; no commit is stated", policy__path=STUDENT),
    *stated("3.1", data__path=QUESTIONS, verify__judge="paper"),
    *stated("3.1, C.2", data__filters=["verifiable", "complete", "no_image", "no_markup"]),
    *unstated(
        ENGINES,
        engine__gpus_per_engine=1,
        engine__dtype="bfloat16",
        engine__enforce_eager=False,
        engine__start_timeout_s=3600,
        engine__stall_timeout_s=1200,
    ),
    *unstated("room for a prompt of 2048 tokens: 1024 (Table 7) and the system turn", engine__max_model_len=18432),
)

SFT = (
    *stated("Table 6", sft__batch_size=256, sft__learning_rate=1e-5, sft__num_epochs=1),
    *stated("Table 6: responses of 18432 tokens; Table 7: prompts of 1024", sft__max_length=PROMPT_TOKENS + SFT_TOKENS),
    *stated("C.2: 64 rollouts of a question", sft__pad_to=64),
    *unstated("the count behind Tables 2 and 3 is not stated: the largest of Fig. 8", sft__num_trajectories=32),
    *unstated("the released data script: the first correct ones in the order of sampling", sft__selection="first"),
    *unstated(
        "veRL's SFT default: cosine, a tenth of the steps (about 184 of 1,836, 215 of 2,148) for warm-up",
        sft__schedule="cosine",
        sft__warmup_steps=200,
    ),
    *unstated(
        "veRL's SFT default", train__weight_decay=0.01, train__beta1=0.9, train__beta2=0.95, train__grad_clip=1.0
    ),
    *unstated(
        LEARNERS,
        train__num_workers=8,
        train__gpus_per_worker=1,
        train__dtype="bfloat16",
        train__activation_checkpointing=True,
        train__max_tokens_per_micro_batch=PROMPT_TOKENS + SFT_TOKENS,
        train__start_timeout_s=1800,
        train__collective_timeout_s=1800,
    ),
)

GRPO = (
    *stated("Table 7", grpo__num_trajectories=16, grpo__questions_per_step=1024, grpo__learning_rate=1e-6),
    *stated("Table 7", grpo__temperature=1.0, grpo__max_tokens=GRPO_TOKENS),
    *stated("Eq. 21", grpo__reward="paper"),
    *unstated(
        "what counts as well-formed is neither stated nor in the released code: the layout that the system turn (C.2) asks for",
        grpo__layout="paper",
    ),
    *stated("C.2", prompt__system=paper_prompts.GRPO_SYSTEM),
    *unstated(
        "one epoch (Table 7) of about 39,000 questions (3.1), the last part of a batch dropped", grpo__num_steps=38
    ),
    *unstated("all that are sampled, as in GRPO; Fig. 9 varies it", grpo__num_updated=16, grpo__selection="random"),
    *unstated("veRL's default: minibatches of 256 of the 1024 questions", grpo__num_minibatches=4),
    *unstated("veRL's default, and the released yaml's", grpo__clip_low=0.2, grpo__clip_high=0.2),
    *unstated("veRL's default, and the released yaml's: no KL loss", grpo__kl_coefficient=0.0),
    *unstated("the released yaml's default", grpo__entropy_coefficient=0.001),
    *unstated("veRL's: over all tokens of a minibatch", grpo__aggregation="token_mean", grpo__advantage="standardized"),
    *unstated("veRL had none", grpo__correction="none"),
    *unstated("veRL samples and updates in turn", grpo__max_staleness=0),
    *unstated("torch's AdamW as veRL's actor has it", train__weight_decay=0.01, train__beta2=0.999),
    *unstated(
        "a matter of machines: 8 GPUs learn, 8 sample",
        grpo__num_engines=8,
        grpo__weight_sync="nccl",
        grpo__sample_timeout_s=14400,
        train__checkpoint_every=5,
        train__max_tokens_per_micro_batch=2048 + GRPO_TOKENS,
        engine__request_timeout_s=1800,
    ),
)

MATH_SETS = {
    "aime24": "paper:aime24",
    "math500_level5": "paper:math500-level5",
    "livemathbench_hard": "paper:livemathbench-hard",
}
SAMPLED = stated("C.3", temperature=1.0, top_p=0.8, top_k=50, max_tokens=16384)
EVALUATE = (
    *(choice._replace(setting=f"evaluate.{choice.setting}") for choice in SAMPLED),
    *stated("3.1: Pass@8, mG-Pass@8", evaluate__k=8),
    *unstated("the n of the released evaluation config", evaluate__num_samples=32),
    *unstated(
        "the sets are stated (3.1, C.3), AIME24's copy is not: the paper links one of several years, the notebooks read this",
        evaluate__sets=MATH_SETS,
    ),
    *unstated("a matter of machines", evaluate__num_engines=8),
)
EVALUATION_PROMPT = (
    *unstated("filters are of training; a benchmark is asked whole", data__filters=[]),
    *unstated(
        "the released evaluation config's structure, for every policy", prompt__system=paper_prompts.EVALUATION_SYSTEM
    ),
    *unstated("the question alone behind the system turn", prompt__instruction="{problem}"),
)
CHOICE = (
    *stated("C.3", evaluate__sets={"gpqa_diamond": "paper:gpqa-diamond"}, data__answers="choice"),
    *unstated("the released evaluation config's structure", prompt__instruction=paper_prompts.CHOICE_INSTRUCTION),
)
CODE = (
    *stated(
        "C.3", evaluate__sets={"livecodebench": "paper:livecodebench-v4-v5"}, data__answers="code", data__filters=[]
    ),
    *unstated("the released evaluation config uses no system turn here", prompt__system=""),
    *unstated("own words for LiveCodeBench's request", prompt__instruction=paper_prompts.CODE_INSTRUCTION),
)
"""The judge of programs and of letters is not a choice of verify.judge."""

PROBED = (
    *stated("C.1: four questions of AIME24", data__path=FIGURE3, analyze__num_questions=4),
    *stated("C.1 and the released notebook", generate__num_samples=16, generate__temperature=0.6, generate__top_p=0.95),
    *stated(
        "C.1 and the released notebook", generate__top_k=40, generate__min_p=0.0, generate__max_tokens=PROBED_TOKENS
    ),
    *stated("the released notebook", seed=42, prompt__instruction=paper_prompts.REASON_INSTRUCTION),
    *stated("the released notebook: every position, behind </think> too", analyze__stride=1, analyze__until=""),
    *stated("C.1, Alg. 3", analyze__suffix="paper", lhat__ema_alpha=0.01),
    *stated("Fig. 3: four correct trajectories of each question", analyze__num_correct=4, analyze__num_wrong=0),
    *unstated("the notebook's score is OpenCompass' use of math-verify", verify__judge="paper"),
    *unstated(
        "a matter of machines: 32B parameters in bfloat16 on 2 GPUs of 80 GB, as many as the notebook used",
        engine__gpus_per_engine=2,
        engine__tensor_parallel_size=2,
        engine__dtype="bfloat16",
        engine__enforce_eager=False,
        engine__start_timeout_s=3600,
        engine__max_model_len=PROMPT_TOKENS + PROBED_TOKENS,
        engine__stall_timeout_s=1200,
        generate__shard_questions=1,
        analyze__gpus_per_worker=2,
        analyze__gpus_per_policy=2,
        analyze__dtype="bfloat16",
        analyze__probe_memory_mib=16384,
        analyze__shard_timeout_s=14400,
    ),
)

WITHOUT_SETTING = (
    "GRPO's learning rate is constant from the first step: warm-up and schedule are not stated, the released yaml has neither",
    "no prompt of GRPO is refused for its length while the engine holds it: Table 7 states 1,024 tokens, not what became of"
    " longer ones",
    "GRPO is asked all questions that pass data.filters, as the paper says (3.1); the released data script keeps answers of"
    " digits alone, as data.filters does with digits among them",
)
"""Choices of GRPO that no value of a setting shows."""
