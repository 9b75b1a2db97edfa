"""The miniature's base policy, trained from scratch: it knows the format and single reductions, and reasons poorly."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from raml_ray import records
from raml_ray.miniature import documents, tokenizer
from raml_ray.miniature.documents import Document
from raml_ray.miniature.twin_config import TwinConfig
from raml_ray.miniature.twins import TwinForCausalLM
from raml_ray.settings import BaseConfig, MiniatureConfig

logger = logging.getLogger(__name__)

INITIALIZER_RANGE = 0.1
"""Five times transformers' default: the chain is learned after hundreds of steps instead of thousands."""
MAX_POSITIONS = 512
ROW_TOKENS = 96
"""Documents are packed into rows of so many tokens (of the longest document's, if one is longer)."""
REPORT_EVERY = 10
FINAL_RATE = 0.1
"""Of the peak learning rate, at the last step."""


class Batch(NamedTuple):
    """Packed documents: each sees itself alone, and has positions of its own."""

    token_BT: Tensor
    position_BT: Tensor
    document_BT: Tensor
    """Number of the document within its row; -1 is padding."""
    learned_BT: Tensor


def train(
    miniature: MiniatureConfig,
    base: BaseConfig,
    *,
    seed: int,
    report: Callable[[int, Mapping[str, float]], None],
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """The base policy and its tokenizer after `base.num_steps` steps; the same for the same seed and thread count.

    `report` gets the number of finished steps and base/loss (nats per learned token), base/learning_rate (Muon's)
    and base/tokens_per_s, every tenth step and at the last.
    """
    made = tokenizer.build()
    with _threads(base.num_threads):
        model = initial(base, made, seed=records.seed_of(seed, "base", "weights"))
        optimizers = _optimizers(model, base)
        schedulers = [torch.optim.lr_scheduler.LambdaLR(each, _schedule(base)) for each in optimizers]
        reading = documents.batches(miniature, base, made, seed=records.seed_of(seed, "base", "documents"))
        num_tokens, since = 0, time.perf_counter()
        model.train()
        for step in range(1, base.num_steps + 1):
            batch = packed(next(reading), pad=int(made.pad_token_id))
            learning_rate = float(schedulers[0].get_last_lr()[0])
            loss = mean_loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                with InFloat32():
                    optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
            num_tokens += int((batch.document_BT >= 0).sum())
            if step % REPORT_EVERY == 0 or step == base.num_steps:
                now = time.perf_counter()
                values = {"base/loss": loss.item(), "base/learning_rate": learning_rate}
                report(step, values | {"base/tokens_per_s": num_tokens / (now - since)})
                num_tokens, since = 0, now
    return model.eval(), made


def initial(base: BaseConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2ForCausalLM:
    """The untrained policy; the global random state is left as it was."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": base.hidden_size,
        "intermediate_size": base.intermediate_size,
        "num_hidden_layers": base.num_layers,
        "num_attention_heads": base.num_heads,
        "num_key_value_heads": base.num_kv_heads,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": INITIALIZER_RANGE,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": torch.float32,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if base.attention == "softmax":
            return Qwen2ForCausalLM(Qwen2Config(**shape))
        return TwinForCausalLM(TwinConfig(**shape, twin_attention=base.attention))


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """A policy folder, as `AutoModelForCausalLM`, `AutoTokenizer` and vLLM load it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def packed(documents: Sequence[Document], *, pad: int) -> Batch:
    """The documents in as few rows as longest-first packing makes of them, (B, T)."""
    num_columns = max(ROW_TOKENS, *(len(document.token_ids) for document in documents))
    rows: list[list[Document]] = []
    free: list[int] = []
    for document in sorted(documents, key=lambda document: -len(document.token_ids)):
        length = len(document.token_ids)
        place = next((place for place, space in enumerate(free) if space >= length), len(rows))
        if place == len(rows):
            rows.append([])
            free.append(num_columns)
        rows[place].append(document)
        free[place] -= length
    token, position, number, learned = [], [], [], []
    for row, space in zip(rows, free, strict=True):
        token.append([one for document in row for one in document.token_ids] + [pad] * space)
        position.append([at for document in row for at in range(len(document.token_ids))] + [0] * space)
        number.append([index for index, document in enumerate(row) for _ in document.token_ids] + [-1] * space)
        learned.append([one for document in row for one in document.learned] + [False] * space)
    return Batch(torch.tensor(token), torch.tensor(position), torch.tensor(number), torch.tensor(learned))


def mean_loss(model: Qwen2ForCausalLM, batch: Batch) -> Tensor:
    """Negative log-likelihood of the learned tokens, nats per token."""
    T = batch.token_BT.shape[1]
    same_BTT = batch.document_BT[:, :, None] == batch.document_BT[:, None, :]
    mask_B1TT = (same_BTT & torch.ones(T, T, dtype=torch.bool).tril())[:, None]
    hidden_BTH = model.model(
        input_ids=batch.token_BT, position_ids=batch.position_BT, attention_mask=mask_B1TT, use_cache=False
    ).last_hidden_state
    learned_BT = batch.learned_BT[:, 1:]
    logits_NV = model.lm_head(hidden_BTH[:, :-1][learned_BT])
    return torch.nn.functional.cross_entropy(logits_NV, batch.token_BT[:, 1:][learned_BT])


class InFloat32(TorchFunctionMode):
    """torch's Muon orthogonalises in bfloat16, always; a CPU without instructions for it multiplies matrices of the
    miniature's size 30 to 50 times slower in it than in float32, and the optimizer was 72 % of every step."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.bfloat16:
            return args[0].clone()  # what is made of it is changed in place
        return function(*args, **(kwargs or {}))


def _optimizers(model: Qwen2ForCausalLM, base: BaseConfig) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the (tied) embedding, norms and biases."""
    hidden: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (hidden if parameter.ndim == 2 and "embed_tokens" not in name else others).append(parameter)
    return [
        torch.optim.Muon(hidden, lr=base.muon_learning_rate, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=base.learning_rate, weight_decay=0.0, betas=(0.9, 0.95), foreach=True),
    ]


def _schedule(base: BaseConfig) -> Callable[[int], float]:
    """Factor of the learning rate by finished steps: linear warm-up, then linear decay to FINAL_RATE."""
    decay_steps = max(1, base.num_steps - base.warmup_steps)

    def factor(step: int) -> float:
        if step < base.warmup_steps:
            return (step + 1) / base.warmup_steps
        return 1 - (1 - FINAL_RATE) * min(1.0, (step - base.warmup_steps) / decay_steps)

    return factor


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
