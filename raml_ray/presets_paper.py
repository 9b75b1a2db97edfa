"""The paper's data step at its own size (3.1, C.2): hub models, hub data sets, GPUs. None of it was run here."""

from raml_ray.config import Config, Step, override
from raml_ray.text import paper_prompts

QUESTIONS = "paper:orz-math"
PROMPT_TOKENS = 1024
"""Room for a question and its instruction."""


def paper_trajectories_qwen() -> Config:
    """The short teacher's trajectories: 10,000 questions x 64 rollouts of Qwen2.5-72B-Instruct. Not run here.

    The paper's text names Qwen2.5-Math-72B-Instruct; its README and the published set name Qwen2.5-72B-Instruct, whose
    window holds the 8192 response tokens. `policy.path=Qwen/Qwen2.5-Math-72B-Instruct` asks for the other. The paper
    drew its questions at random, here they are the first ones that the filters leave.
    """
    return _trajectories("paper_trajectories_qwen", "Qwen/Qwen2.5-72B-Instruct", max_tokens=8192, gpus=4)


def paper_trajectories_distill() -> Config:
    """The long teacher's trajectories: 10,000 questions x 64 rollouts of DeepSeek-R1-Distill-Qwen-14B. Not run here."""
    teacher = "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"
    return _trajectories("paper_trajectories_distill", teacher, max_tokens=36784, gpus=2)


def _trajectories(name: str, teacher: str, *, max_tokens: int, gpus: int) -> Config:
    """Trajectories of a teacher and their verdicts; each engine holds the teacher on so many GPUs of 80 GB."""
    return override(
        Config(
            name=name,
            steps=(
                Step(name="trajectories", stage="generate"),
                Step(name="verify", stage="verify", data=("trajectories",)),
                Step(name="report", stage="report"),
            ),
        ),
        {
            "policy.path": teacher,
            "data.path": QUESTIONS,
            "data.filters": ["verifiable", "complete", "no_image", "no_markup"],
            "data.limit": 10_000,
            "prompt.instruction": paper_prompts.SOLVE_INSTRUCTION,
            "generate.num_samples": 64,
            "generate.temperature": 0.7,
            "generate.top_p": 1.0,
            "generate.top_k": 50,
            "generate.max_tokens": max_tokens,
            "generate.num_engines": [1, 8],
            "generate.shard_questions": 2,  # 128 responses: what a kill may cost
            "engine.tensor_parallel_size": gpus,
            "engine.gpus_per_engine": gpus,
            "engine.dtype": "bfloat16",
            "engine.enforce_eager": False,
            "engine.max_model_len": PROMPT_TOKENS + max_tokens,
            "engine.start_timeout_s": 3600,  # loading takes minutes from a shared disk
            "verify.judge": "paper",
            "report.title": f"Trajectories of {teacher}",
        },
    )


def paper_sft_sets() -> Config:
    """The published rollouts of both teachers (64 per question), taken over and judged by our judge. Not run here.

    The verdicts are compared with the published ones. What stands in `verify_qwen` and `verify_distill` is what the
    paper's SFT sets are drawn from.
    """
    sources = {"qwen": f"{QUESTIONS}-qwen-72b-rollouts", "distill": f"{QUESTIONS}-distill-14b-rollouts"}
    steps = [
        step
        for teacher, path in sources.items()
        for step in (
            Step(name=teacher, stage="generate", overrides={"data.path": path}),
            Step(name=f"verify_{teacher}", stage="verify", data=(teacher,)),
        )
    ]
    return override(
        Config(name="paper_sft_sets", steps=tuple(steps)), {"generate.source": "import", "verify.judge": "paper"}
    )
