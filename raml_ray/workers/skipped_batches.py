"""Batches whose optimizer step was left out, as files to look at: `skipped/0-step-00000012.rank-1.safetensors`."""

import json
import logging
from collections.abc import Mapping, Sequence

import torch
from safetensors import safe_open
from safetensors.torch import save

from raml_ray.storage import Folder
from raml_ray.text.batches import Example

logger = logging.getLogger(__name__)

MOST_KEPT = 3
"""Files of each rank; later batches are not written."""


def keep(folder: str, step: int, rank: int, examples: Sequence[Example], figures: Mapping[str, float]) -> None:
    """Write a rank's share of a batch, with its figures as metadata; nothing if it has none, or wrote enough before."""
    number = len(Folder(folder).names(suffix=f".rank-{rank}.safetensors"))
    logger.warning("step %d was left out: %s", step, dict(figures))
    if not examples or number >= MOST_KEPT:
        return
    tensors = {
        "prompt_lengths": torch.tensor([len(example.prompt_token_ids) for example in examples]),
        "response_lengths": torch.tensor([len(example.response_token_ids) for example in examples]),
        "prompt_token_ids": torch.cat([torch.tensor(example.prompt_token_ids) for example in examples]),
        "response_token_ids": torch.cat([torch.tensor(example.response_token_ids) for example in examples]),
    } | {
        f"fields.{name}": torch.cat([torch.tensor(example.fields[name]).float() for example in examples])
        for name in examples[0].fields
    }
    with Folder(folder).writing(f"{number}-step-{step:08d}.rank-{rank}.safetensors") as file:
        told = {"step": str(step), **{name: json.dumps(value) for name, value in figures.items()}}
        file.write(save(tensors, told))


def read(path: str) -> tuple[list[Example], dict[str, float]]:
    """The examples of such a file, and its step and figures."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        figures = {name: float(json.loads(value)) for name, value in (file.metadata() or {}).items()}
    prompts = tensors["prompt_token_ids"].split(tensors["prompt_lengths"].tolist())
    lengths = tensors["response_lengths"].tolist()
    responses = tensors["response_token_ids"].split(lengths)
    fields = {
        name.removeprefix("fields."): values.split(lengths)
        for name, values in tensors.items()
        if name.startswith("fields.")
    }
    examples = [
        Example(prompt.tolist(), response.tolist(), {name: rows[place].tolist() for name, rows in fields.items()})
        for place, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    return examples, figures
