"""Users who serve the policy folder talk to it in text: vLLM's own tokenizer must read and write what ours does."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from raml_ray.miniature import base, tokenizer
from raml_ray.settings import BaseConfig

QUESTIONS = ["Sum: _ 3 8 2 4 2", "Sum: 1 2 3 4 5 6", "Sum mod 10: _ 9 9 9 9 9", "Sum: _ _ _ _ 0 7"]


@pytest.mark.vllm
def test_vllm_chats_in_text_with_a_policy_folder_as_it_is(tmp_path: Path) -> None:
    # In a process of its own: vLLM leaves a process group behind, and keeps the environment that it first saw.
    process = multiprocessing.get_context("spawn").Process(target=chat, args=(tmp_path,))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0


def chat(tmp_path: Path) -> None:
    built = tokenizer.build()
    model = base.initial(BaseConfig(num_layers=2), built, seed=0).eval()
    base.save(model, built, tmp_path)
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(tmp_path),
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=4,
        kv_cache_memory_bytes=2**26,
    )
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    outputs = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    for conversation, output in zip(conversations, outputs, strict=True):
        prompt = built.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        prompt_ids = built.encode(prompt)
        assert output.prompt_token_ids == prompt_ids
        with torch.no_grad():
            greedy = model.generate(torch.tensor([prompt_ids]), max_new_tokens=8, do_sample=False)[0, len(prompt_ids) :]
        assert list(output.outputs[0].token_ids) == greedy.tolist()
        assert output.outputs[0].text == built.decode(greedy, skip_special_tokens=True)
