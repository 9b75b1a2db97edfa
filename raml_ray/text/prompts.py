"""How a question becomes the token ids that an engine continues and a learner trains on."""

from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

from raml_ray import records
from raml_ray.records import Question
from raml_ray.settings import PromptConfig


def prompt_text(tokenizer: PreTrainedTokenizerBase, problem: str, prompt: PromptConfig) -> str:
    """The prompt's text, the forced beginning of the response included.

    Raises: ValueError if `prompt.template=chat` and the tokenizer has no chat template, or if `prompt.thinking=false`
    changes nothing.
    """
    user = prompt.instruction.replace("{problem}", problem)
    if prompt.template == "plain":
        if not prompt.thinking:
            raise ValueError(
                "prompt.thinking=false is said by a chat template, but prompt.template=plain uses none: leave it true"
                " and set prompt.response_prefix to the text of an empty thought"
            )
        return user + prompt.response_prefix
    if not tokenizer.chat_template:
        raise ValueError(
            "prompt.template=chat, but the policy's tokenizer has no chat template: set prompt.template=plain"
        )
    turns = [{"role": "user", "content": user}]
    if prompt.system:
        turns.insert(0, {"role": "system", "content": prompt.system})
    text = _templated(tokenizer, turns, thinking=prompt.thinking)
    if not prompt.thinking and text == _templated(tokenizer, turns, thinking=True):
        raise ValueError(
            "prompt.thinking=false, but the policy's chat template writes the same prompt with and without thinking:"
            " leave it true and set prompt.response_prefix to the text of an empty thought"
        )
    return text + prompt.response_prefix


def _templated(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, thinking: bool) -> str:
    return str(
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    )


def prompt_token_ids(tokenizer: PreTrainedTokenizerBase, problem: str, prompt: PromptConfig) -> list[int]:
    """The prompt's token ids, the forced beginning of the response included."""
    ids = tokenizer(prompt_text(tokenizer, problem, prompt), add_special_tokens=False)["input_ids"]
    return [int(i) for i in ids]


def request_token_ids(tokenizer: PreTrainedTokenizerBase, question: Question, prompt: PromptConfig) -> list[int]:
    """What an engine is asked to go on behind: the prompt, and what of the response is there."""
    return prompt_token_ids(tokenizer, question.problem, prompt) + records.begun_token_ids(question)


def special_token_in(tokenizer: PreTrainedTokenizerBase, problem: str) -> str | None:
    """The first special token whose text occurs in the question: a question must not be able to end its own turn."""
    return next((token for token in tokenizer.all_special_tokens if token in problem), None)


def response_text(
    tokenizer: PreTrainedTokenizerBase, token_ids: list[int], prompt: PromptConfig, stop_token_ids: Collection[int]
) -> str:
    """The response as text: its forced beginning, then the sampled tokens without the one that ended it."""
    ids = token_ids[:-1] if token_ids and token_ids[-1] in stop_token_ids else token_ids
    return prompt.response_prefix + str(tokenizer.decode(ids, skip_special_tokens=False))
