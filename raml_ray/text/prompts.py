"""How a question becomes the token ids that an engine continues and a learner trains on."""

from transformers import PreTrainedTokenizerBase

from raml_ray.settings import PromptConfig


def prompt_text(tokenizer: PreTrainedTokenizerBase, problem: str, prompt: PromptConfig) -> str:
    """The prompt's text, the forced beginning of the response included.

    Raises: ValueError if `prompt.template=chat` and the tokenizer has no chat template.
    """
    user = prompt.instruction.replace("{problem}", problem)
    if prompt.template == "plain":
        return user + prompt.response_prefix
    if not tokenizer.chat_template:
        raise ValueError(
            "prompt.template=chat, but the policy's tokenizer has no chat template: set prompt.template=plain"
        )
    messages = [{"role": "user", "content": user}]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": prompt.system})
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=prompt.thinking
    )
    return str(text) + prompt.response_prefix


def prompt_token_ids(tokenizer: PreTrainedTokenizerBase, problem: str, prompt: PromptConfig) -> list[int]:
    """The prompt's token ids, the forced beginning of the response included."""
    ids = tokenizer(prompt_text(tokenizer, problem, prompt), add_special_tokens=False)["input_ids"]
    return [int(i) for i in ids]


def special_token_in(tokenizer: PreTrainedTokenizerBase, problem: str) -> str | None:
    """The first special token whose text occurs in the question: a question must not be able to end its own turn."""
    return next((token for token in tokenizer.all_special_tokens if token in problem), None)


def response_text(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], prompt: PromptConfig) -> str:
    """The response as text: its forced beginning, then the sampled tokens without the end-of-sequence token."""
    ids = token_ids[:-1] if token_ids and token_ids[-1] == tokenizer.eos_token_id else token_ids
    return prompt.response_prefix + str(tokenizer.decode(ids, skip_special_tokens=False))
