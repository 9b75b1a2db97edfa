"""The miniature's tokenizer: bytes, and above them one token for every slot and every fixed piece of the task's text.

It is a Qwen2Tokenizer because transformers makes one of whatever tokenizer lies beside a config.json of model type
`qwen2`, with Qwen2's own pre-tokenizer. The task's pieces are therefore added tokens: they are matched before any
pre-tokenizer sees the text, and the folder reads the same with and without its config.json.
"""

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
NUM_NUMBERS = 150
"""Numbers 0 .. 149 are one token as a slot: more than twelve nines and their slips come to."""
WORDS = (
    "<think>",
    "</think>",
    "**Final Answer**",
    "\\boxed{",
    "\n\n",
    "system",
    "user",
    "assistant",
    "Sum:",
    "Sum mod 10:",
    "Wait",
    "Alternatively",
    " _",
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)
"""Qwen3's: `<think>` belongs to the response; `enable_thinking=False` answers for the policy with an empty thought."""


def build() -> PreTrainedTokenizerFast:
    """The tokenizer; every text comes back from its tokens as it was (after Unicode's NFC), whatever it holds.

    A response ends with the end-of-sequence token `<|im_end|>`; padding is `<|endoftext|>`.
    """
    tokenizer = Qwen2Tokenizer(
        vocab={character: token for token, character in enumerate(sorted(ByteLevel.alphabet()))},
        merges=[],
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    pieces = (*WORDS, *(f" {number}" for number in range(NUM_NUMBERS)))
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in pieces])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
