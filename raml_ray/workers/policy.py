"""A policy as a Hugging Face folder: loading, naming, saving, and the log-probabilities of its tokens.

transformers' model classes are imported where they are used: they bring three CPU seconds of imports, which a driver
that only reads a tokenizer does without.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from raml_ray.workers import recurrent_forms
from raml_ray.workers.constant_keys import Constants

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
LOGITS_CHANGED_BY = ("logit_scale", "logits_scaling", "final_logit_softcapping", "attn_logit_softcapping")
"""Settings of Cohere, Granite and Gemma 2 that change logits behind the output head, or inside attention."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)


def load_model(
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    random_init: bool = False,
    without_weights: bool = False,
    device_map: dict[str, str] | None = None,
) -> "PreTrainedModel":
    """The causal LM of a folder or hub name, from safetensors only and without any code of the folder's.

    `random_init` takes the architecture and fresh weights (of torch's generator) instead; `without_weights` takes the
    architecture alone, on the meta device; `device_map` puts modules on devices as they are read.

    Raises: ValueError if a folder has no config.json or no safetensors, or the architecture changes its logits in a
    way that `token_logprobs` would miss.
    """
    from transformers import AutoModelForCausalLM, PreTrainedModel

    check_folder(path, weights=not random_init)
    config = load_config(path)
    _check_logits(config)
    recurrent_forms.keep_weights(config)
    kwargs = {"dtype": dtype, "trust_remote_code": False} | recurrent_forms.attention_of(config)
    if without_weights:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **kwargs)
    elif random_init:
        model = AutoModelForCausalLM.from_config(config, **kwargs)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, use_safetensors=True, device_map=device_map, **kwargs
        )
    assert isinstance(model, PreTrainedModel)
    return model


def _check_logits(config: PretrainedConfig) -> None:
    # token_logprobs takes the head's logits as they are, and torch's attention kernel those of attention.
    values = config.to_dict()
    changed = {name: values[name] for name in LOGITS_CHANGED_BY if values.get(name) not in (None, 1)}
    if changed:
        raise ValueError(
            f"architecture {config.model_type!r} changes logits ({changed}), which learners and probes do not follow yet:"
            " use a policy of another architecture (Qwen, Llama and Mistral change none)"
        )


def load_config(path: str) -> PretrainedConfig:
    """The architecture that a folder's or hub name's config.json describes."""
    from transformers import AutoConfig

    from raml_ray.miniature import twin_config  # noqa: F401 (makes the twins' architecture known)

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    assert isinstance(config, PretrainedConfig)
    return config


def check_folder(path: str, *, weights: bool) -> None:
    """Nothing, for a hub name or a folder with a config.json and, if they are wanted, weights.

    Raises: ValueError naming the folder, what it lacks, and the remedy.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute():
            raise ValueError(f"policy {path} is no folder: set policy.path to one, or to a Hugging Face name")
        return
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"policy folder {path} has no config.json: copy the model's there, or set policy.path to its folder"
        )
    if weights and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"policy folder {path} has no *.safetensors: convert its weights (other formats can run code), or start"
            " from random weights with policy.random_init=true"
        )


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer exactly as the folder's tokenizer.json describes it.

    transformers otherwise picks a class by config.json's model type, which replaces a pre-tokenizer of one's own.

    Raises: ValueError if a folder has none.
    """
    folder = Path(path)
    if not folder.is_dir() and folder.is_absolute():
        raise ValueError(f"policy {path} is no folder: set policy.path to one, or to a Hugging Face name")
    if folder.is_dir() and not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ValueError(
            f"policy folder {path} has no tokenizer: copy the model's tokenizer.json (and tokenizer_config.json) there"
        )
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def policy_id(path: str, name: str) -> str:
    """`name@fingerprint`: twelve hex digits of the folder's config.json and weights. A hub name is its own fingerprint.

    Raises: ValueError if a folder has no config.json or no safetensors.
    """
    check_folder(path, weights=True)
    folder = Path(path)
    if not folder.is_dir():
        return f"{name}@{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    total = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return f"{name}@{total.hexdigest()[:12]}"


def save(
    weights: Mapping[str, Tensor] | nn.Module, config: PretrainedConfig, tokenizer_folder: str, target: str
) -> None:
    """A folder that `AutoModelForCausalLM.from_pretrained` and vLLM load as it is; replaces an older one as a whole.

    Tied weights are written once. Tokenizer and generation settings are copied byte for byte.

    Raises: ValueError if `tokenizer_folder` has no tokenizer.
    """
    load_tokenizer(tokenizer_folder)
    tensors = untied(weights) if isinstance(weights, nn.Module) else dict(weights)
    partial = Path(f"{target}.{uuid.uuid4().hex[:8]}.tmp")
    partial.mkdir(parents=True)
    try:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial / "model.safetensors", {"format": "pt"})
        settings = config.to_dict() | {"dtype": str(next(iter(whole.values())).dtype).removeprefix("torch.")}
        settings.pop("_name_or_path", None)  # where it was made is no part of what it is
        (partial / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (source := Path(tokenizer_folder) / name).is_file():
                shutil.copyfile(source, partial / name)
        if Path(target).exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def untied(model: nn.Module) -> dict[str, Tensor]:
    """The model's persistent tensors by name, each that several names share under the first of them only."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


class TokenLogprobs(nn.Module):
    """A causal LM whose forward pass is `token_logprobs`: the unit that sharding wraps."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None,
        position_ids_BT: Tensor,
        needed_BT: Tensor | None = None,
        temperature: float = 1.0,
        constant_BT: Tensor | None = None,
        token_chunk: int = 1024,
    ) -> Tensor:
        return token_logprobs(
            self.model,
            input_ids_BT,
            attention_mask_BT,
            position_ids_BT,
            needed_BT=needed_BT,
            temperature=temperature,
            constant_BT=constant_BT,
            token_chunk=token_chunk,
        )


def token_logprobs(
    model: "PreTrainedModel",
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor | None,
    position_ids_BT: Tensor,
    *,
    needed_BT: Tensor | None = None,
    temperature: float = 1.0,
    constant_BT: Tensor | None = None,
    token_chunk: int = 1024,
) -> Tensor:
    """Log-probability of token t given the tokens before it, (B, T) float32, nats; column 0 is 0.

    Only tokens where `needed_BT` is not zero are scored (all, if it is None); the others are 0, and so is the first
    token of a sequence. Logits exist for `token_chunk` tokens at a time, in the backward pass too. Sequences packed into
    one row are given without an attention mask, their positions restarting at 0. No gradient goes through the keys and
    values of tokens where `constant_BT` is true.

    Raises: ValueError if temperature is not positive, or the architecture cannot be told what is constant.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature:g}: log-probabilities need one above 0")
    constants = None if constant_BT is None else Constants(model, constant_BT)
    hidden_BTD: Tensor = model.base_model(
        input_ids=input_ids_BT,
        attention_mask=attention_mask_BT,
        position_ids=position_ids_BT,
        use_cache=False,
        **(_sequences(position_ids_BT) if attention_mask_BT is None else {}),
        **({} if constants is None else {"constants": constants}),
    ).last_hidden_state
    if constants is not None:
        constants.check()
    wanted_BT = position_ids_BT != 0
    if needed_BT is not None:
        wanted_BT = wanted_BT & (needed_BT != 0)
    rows_N, columns_N = wanted_BT.nonzero(as_tuple=True)
    hidden_ND = hidden_BTD[rows_N, columns_N - 1]
    target_N = input_ids_BT[rows_N, columns_N]
    head = model.get_output_embeddings()
    # With no token wanted one empty chunk remains: every parameter still takes part in the backward pass, which
    # ranks that wait for each other's gradients rely on.
    *chunks, last = zip(torch.split(hidden_ND, token_chunk), torch.split(target_N, token_chunk), strict=True)
    parts = [checkpoint(_chunk_logprobs, head, *chunk, temperature, use_reentrant=False) for chunk in chunks]
    # The backward pass begins with the last chunk: its logits are needed at once, and are not computed again.
    parts.append(_chunk_logprobs(head, *last, temperature))
    logprob_BT = torch.zeros(input_ids_BT.shape, dtype=torch.float32, device=hidden_BTD.device)
    return logprob_BT.index_put((rows_N, columns_N), torch.cat(parts))


def _sequences(position_ids_BT: Tensor) -> dict[str, Any]:
    """Where the sequences of the rows lie, as transformers hands it down to attention: taken here once, not per layer."""
    starts_S = (position_ids_BT.flatten() == 0).nonzero()[:, 0]
    bounds_S = nn.functional.pad(starts_S, (0, 1), value=position_ids_BT.numel()).int()
    lengths = bounds_S.diff().tolist()
    return {
        "cu_seq_lens_q": bounds_S,
        "cu_seq_lens_k": bounds_S,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "packed_lengths": tuple(lengths),  # on the host: attention.packed would wait for the device in every layer
    }


def _chunk_logprobs(head: nn.Module, hidden_CD: Tensor, target_C: Tensor, temperature: float) -> Tensor:
    logits_CV: Tensor = head(hidden_CD).float()
    if temperature != 1.0:  # a pass over all logits
        logits_CV = logits_CV / temperature
    return -nn.functional.cross_entropy(logits_CV, target_C, reduction="none")
