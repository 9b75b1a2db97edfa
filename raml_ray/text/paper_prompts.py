"""The prompts of the paper (arXiv 2505.19815v1), in our own words: their structure is the paper's, their wording is not.

A constant called INSTRUCTION is a user turn (`prompt.instruction`, `{problem}` is the question), one called SYSTEM a
system turn (`prompt.system`) that goes with the question alone as the user turn.
"""

SOLVE_INSTRUCTION = "Solve this problem step by step, and write the final answer inside \\boxed{}.\n\n{problem}"
"""Trajectory synthesis (C.2, Table 5), and SFT on the trajectories of the Qwen teacher (data_process_sft.py): one user
turn of an instruction, an empty line and the question."""

REASON_INSTRUCTION = "{problem}\n\nReason step by step, and write the final answer inside \\boxed{}."
"""What trajectories are sampled with that L-hat is measured along (the released notebooks): the question, an empty line and
the request."""

THINK_ANSWER_SYSTEM = (
    "You are given a problem. First think about it as an inner monologue, as long as you need, then answer it.\n"
    "Put the monologue between <think> and </think>, and what the user is to read between <answer> and </answer>:\n"
    "<think>\nyour thoughts\n</think>\n<answer>\nyour answer\n</answer>"
)
"""SFT on the trajectories of the Distill teacher (data_process_sft.py)."""

_CONCLUDE = (
    "Then conclude between <conclusion> and </conclusion>: a short solution with the final answer inside \\boxed{}."
)
_CONCLUSION_LAYOUT = "<conclusion>\nyour conclusion, with \\boxed{your final answer}\n</conclusion>\nThe answer is \\boxed{your final answer}"

GRPO_SYSTEM = (
    "The user asks a question and you, the assistant, answer it.\n"
    "1. First reason about the question between <think> and </think>.\n"
    f"2. {_CONCLUDE}\n"
    "3. Keep to this layout, its last line included:\n"
    f"<think>\nyour reasoning\n</think>\n{_CONCLUSION_LAYOUT}"
)
"""Training by GRPO (C.2): a think block, a conclusion block, and a last line with the answer once more."""

EVALUATION_SYSTEM = (
    "The user asks a question and you, the assistant, answer it.\n"
    "1. First write down your reasoning.\n"
    f"2. {_CONCLUDE}\n"
    "3. Keep to this layout, its last line included:\n"
    f"your reasoning\n{_CONCLUSION_LAYOUT}"
)
"""Evaluation on every set but code (the released evaluation config): the layout of GRPO_SYSTEM without the think tags."""

CHOICE_INSTRUCTION = (
    "Which of the options answers this question? Reason step by step. The last line of your response has to be"
    ' "Answer: LETTER", where LETTER is the letter of one option.\n\n{problem}'
)
"""GPQA-Diamond (the released evaluation config): a question with four lettered options."""

CODE_INSTRUCTION = (
    "Write a Python program that solves this problem. It reads its input from standard input and prints its output,"
    " unless the problem gives a function to complete. Your response has to end with the whole program, in one block:\n"
    "```python\nyour program\n```\n\n{problem}"
)
"""LiveCodeBench (the released evaluation config): a task whose tests the program has to pass."""

SUMMARY_INSTRUCTION = (
    "{reasoning}\n\n\nSummarise the reasoning above without saying what it concludes or what the answer is. Write English"
    " alone."
)
"""Summaries of trajectories (4.2, the released notebook): the trajectory, three line breaks and the request. For
`shorter.summary_instruction`."""

NO_THINKING_PREFIX = "Therefore, after all this, I believe the answer is"
"""What QwQ-32B is made to begin with where it is not to think (3.3): its template has opened the think block, and
nothing closes it. For `prompt.response_prefix`."""

EMPTY_THOUGHT_PREFIX = "<think>\n\n</think>\n\n"
"""What Qwen3's own template puts there for `prompt.thinking=false`, for policies whose template does not know it."""

FORCED_ANSWER = "\n\n**Final Answer**\n\\boxed{"
"""What the paper puts behind thinking that was cut (Fig. 11), and before the answer when it measures L-hat (C.1)."""
