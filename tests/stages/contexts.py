"""Steps to run by themselves: a folder, a tiny policy, and settings that need no model to answer."""

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from raml_ray.config import Config, Step, override
from raml_ray.miniature import tokenizer as miniature
from raml_ray.stages.context import Context, Outcome
from raml_ray.stages.pipeline import context_of
from raml_ray.storage import SUMMARY, Folder

SCRIPTED = {"engine.kind": "scripted", "engine.max_model_len": 64, "generate.max_tokens": 16}


def policy(folder: Path, hidden_size: int = 32) -> str:
    """A random policy that knows the miniature's tokens, with two heads: vLLM computes heads of 32 and more on CPU."""
    if not folder.exists():
        tokenizer = miniature.build()
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            eos_token_id=tokenizer.eos_token_id,
        )
        Qwen2ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def context(root: Path, step: Step, **settings: object) -> Context:
    """The step in the run folder `root`; settings are written with __ for dots."""
    changes: dict[str, object] = {**SCRIPTED, "policy.path": policy(root.parent / "policy")}
    changes |= {name.replace("__", "."): value for name, value in settings.items()}
    earlier = tuple(Step(name=name, stage="generate") for name in step.data)
    config = override(Config(steps=(*earlier, step)), changes)
    return context_of(config, step, Folder(str(root)))


def finish(context: Context, outcome: Outcome) -> Outcome:
    """Mark the step as finished, as the pipeline does."""
    outcome.counts.check()
    counts = {"rows_in": outcome.counts.rows_in, "rows_out": outcome.counts.rows_out}
    context.folder.write_json(SUMMARY, {"data": list(context.step.data), "counts": counts})
    return outcome
