import string
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from raml_ray.miniature import task, tokenizer
from raml_ray.settings import MiniatureConfig

BUILT = tokenizer.build()
QUESTION = [{"role": "user", "content": "Sum: _ 3 8"}]


def texts() -> list[str]:
    settings = MiniatureConfig(reflection_probability=0.5, verification_probability=0.5)
    made = [
        string.printable,
        "I think 12 of 1234 + Sum mod Sum:_ 3\n\n\n</think",
        " 149 150",
        "caf\u00e9 \u221a2 \u4e8c",
        "  a\t\r\n b ",
    ]
    for name in task.SETS:
        for question in task.questions(name, settings, seed=0)[:5]:
            made += [question.problem, *task.oracle(question.problem, settings, num=5, seed=0)]
    return made


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole policy folder: its config.json says `qwen2`, so AutoTokenizer rebuilds Qwen2's own tokenizer."""
    folder = tmp_path_factory.mktemp("policy")
    config = Qwen2Config(
        vocab_size=len(BUILT), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    BUILT.save_pretrained(folder)
    return folder


def assert_same(other: PreTrainedTokenizerFast) -> None:
    for text in texts():
        ids = BUILT.encode(text, add_special_tokens=False)
        assert other.encode(text, add_special_tokens=False) == ids
        assert other.decode(ids) == text
    for thinking in (True, False):
        prompts = [
            each.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False, enable_thinking=thinking)
            for each in (BUILT, other)
        ]
        assert prompts[0] == prompts[1]
    assert (other.eos_token_id, other.pad_token_id, len(other)) == (BUILT.eos_token_id, BUILT.pad_token_id, len(BUILT))


def test_every_text_comes_back_from_its_tokens():
    assert_same(BUILT)


def test_the_tokenizer_of_a_policy_folder_survives_auto_tokenizer(policy_folder: Path):
    assert (policy_folder / "config.json").exists()
    assert_same(AutoTokenizer.from_pretrained(policy_folder))


def test_the_tokenizer_of_a_policy_folder_survives_the_plain_class(policy_folder: Path):
    assert_same(PreTrainedTokenizerFast.from_pretrained(policy_folder))


def test_every_slot_and_every_fixed_piece_is_one_token():
    assert [BUILT.decode([token]) for token in BUILT.encode("Sum: _ 3 12\n\n**Final Answer**\n\\boxed{12}")] == [
        *("Sum:", " _", " 3", " 12", "\n\n", "**Final Answer**", "\n", "\\boxed{", "1", "2", "}")
    ]


def test_the_largest_number_a_chain_can_slip_to_is_one_token():
    # Twelve nines, and each of the eleven lines off by the largest slip.
    assert 12 * 9 + 11 * task.LARGEST_SLIP < tokenizer.NUM_NUMBERS
    assert len(BUILT.encode(f" {tokenizer.NUM_NUMBERS - 1}")) == 1


def test_the_chat_prompt_ends_where_the_response_begins():
    prompt = BUILT.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>user\nSum: _ 3 8<|im_end|>\n<|im_start|>assistant\n"


def test_without_thinking_the_prompt_holds_an_empty_thought():
    prompt = BUILT.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_special_tokens_are_left_out_of_a_decoded_response():
    ids = BUILT.encode("\\boxed{11}<|im_end|><|endoftext|>")
    assert ids[-2:] == [BUILT.eos_token_id, BUILT.pad_token_id]
    assert BUILT.decode(ids, skip_special_tokens=True) == "\\boxed{11}"
