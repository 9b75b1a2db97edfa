import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raml_ray.miniature import tokenizer as miniature
from raml_ray.text.batches import Example, collate
from raml_ray.workers import policy
from tests.workers import meters, tiny


def plain(model: PreTrainedModel, ids_BT: Tensor, temperature: float = 1.0) -> Tensor:
    logits_BTV = model(input_ids=ids_BT).logits.float() / temperature
    chosen_BT = logits_BTV[:, :-1].log_softmax(-1).gather(2, ids_BT[:, 1:, None]).squeeze(2)
    return torch.cat([torch.zeros(len(ids_BT), 1), chosen_BT], dim=1)


def positions(ids_BT: Tensor) -> Tensor:
    return torch.arange(ids_BT.shape[1]).expand(ids_BT.shape)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "policy"
    tiny.model().save_pretrained(path)
    miniature.build().save_pretrained(path)
    return path


@pytest.mark.parametrize("token_chunk", [1, 7, 1024])
def test_chunked_log_probabilities_and_gradients_are_the_plain_ones(token_chunk: int) -> None:
    ids_BT = torch.randint(tiny.VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(0))
    weight_BT = torch.randn(3, 11, generator=torch.Generator().manual_seed(1))
    gradients = []
    for chunked in (False, True):
        model = tiny.model()
        logprob_BT = (
            policy.token_logprobs(model, ids_BT, None, positions(ids_BT), temperature=0.7, token_chunk=token_chunk)
            if chunked
            else plain(model, ids_BT, 0.7)
        )
        (logprob_BT * weight_BT).mean().backward()
        gradients.append((logprob_BT.detach(), [p.grad for p in model.parameters()]))
    (expected_BT, expected), (found_BT, found) = gradients
    assert found_BT.dtype is torch.float32
    assert found_BT[:, 0].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(found_BT, expected_BT, atol=1e-6, rtol=1e-6)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_logits_exist_for_one_chunk_of_tokens_at_a_time_in_the_backward_pass_too() -> None:
    num_tokens, vocab_size, chunk = 4096, 8192, 1024
    config = Qwen2Config(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, attn_implementation="sdpa",
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    ids_BT = torch.randint(vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0))
    with meters.Largest() as chunked:
        policy.token_logprobs(model, ids_BT, None, positions(ids_BT), token_chunk=chunk).sum().backward()
    assert chunked.num_bytes == chunk * vocab_size * 4
    with meters.Largest() as whole:
        plain(model, ids_BT)
    assert whole.num_bytes == num_tokens * vocab_size * 4  # the meter sees what is avoided


def test_padding_and_neighbours_change_nothing() -> None:
    model = tiny.model()
    examples = [Example([3, 4], [5, 6, 7]), Example([8], [9, 10, 11, 12, 13, 14])]
    batch = collate(examples)
    together_BT = policy.token_logprobs(model, batch.input_ids_BT, batch.attention_mask_BT, batch.position_ids_BT)
    for row, example in enumerate(examples):
        ids_BT = torch.tensor([[*example.prompt_token_ids, *example.response_token_ids]])
        torch.testing.assert_close(together_BT[row, : len(example)], plain(model, ids_BT)[0], atol=1e-6, rtol=1e-6)


def test_packed_sequences_do_not_see_each_other() -> None:
    model = tiny.model()
    first, second = [3, 4, 5, 6], [8, 9, 10]
    packed_BT = torch.tensor([first + second])
    places_BT = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    packed = policy.token_logprobs(model, packed_BT, None, places_BT)[0]
    assert packed[[0, 4]].tolist() == [0.0, 0.0]  # nothing comes before the first token of a sequence
    torch.testing.assert_close(packed[1:4], plain(model, torch.tensor([first]))[0, 1:], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(packed[5:7], plain(model, torch.tensor([second]))[0, 1:], atol=1e-6, rtol=1e-6)


def test_only_needed_tokens_are_scored() -> None:
    model, ids_BT = tiny.model(), torch.tensor([[3, 4, 5, 6]])
    needed_BT = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    found = policy.token_logprobs(model, ids_BT, None, positions(ids_BT), needed_BT=needed_BT)[0]
    assert found[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(found[2], plain(model, ids_BT)[0, 2], atol=1e-6, rtol=1e-6)


def test_with_no_token_needed_every_parameter_still_gets_a_zero_gradient() -> None:
    model, ids_BT = tiny.model(), torch.tensor([[3, 4, 5, 6]])
    none_BT = torch.zeros(1, 4)
    policy.token_logprobs(model, ids_BT, None, positions(ids_BT), needed_BT=none_BT).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_temperature_of_zero_is_refused() -> None:
    ids_BT = torch.tensor([[3, 4]])
    with pytest.raises(ValueError, match="temperature=0"):
        policy.token_logprobs(tiny.model(), ids_BT, None, positions(ids_BT), temperature=0.0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_policy_loads_elsewhere_with_the_same_log_probabilities(
    tmp_path: Path, folder: Path, tied: bool
) -> None:
    model, target = tiny.model(seed=5, tied=tied), tmp_path / "new"
    policy.save(model, model.config, str(folder), str(target))
    ids_BT = torch.tensor([[3, 4, 5, 6]])
    for loaded in (AutoModelForCausalLM.from_pretrained(target), policy.load_model(str(target))):
        assert torch.equal(plain(loaded, ids_BT), plain(model, ids_BT))
    assert json.loads((target / "config.json").read_text())["dtype"] == "float32"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()
    from safetensors import safe_open

    with safe_open(target / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is (not tied)  # noqa: SIM118


def test_saving_again_replaces_the_folder_and_leaves_no_other(tmp_path: Path, folder: Path) -> None:
    target = tmp_path / "new"
    for seed in (1, 2):
        model = tiny.model(seed)
        policy.save(model, model.config, str(folder), str(target))
    ids_BT = torch.tensor([[3, 4, 5]])
    assert torch.equal(plain(policy.load_model(str(target)), ids_BT), plain(tiny.model(2), ids_BT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "policy"]


def test_the_tokenizer_is_the_one_of_tokenizer_json(tmp_path: Path) -> None:
    """Beside a qwen2 config.json transformers replaces a pre-tokenizer: here one that cuts after every character."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = {"a": 0, "b": 1, "ab": 2, "?": 3}
    own = Tokenizer(models.WordLevel(words, unk_token="?"))
    own.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=own, unk_token="?").save_pretrained(tmp_path)
    tiny.model().save_pretrained(tmp_path)
    assert policy.load_tokenizer(str(tmp_path))("abb")["input_ids"] == [0, 1, 1]


def test_a_policy_is_named_by_its_weights_and_architecture(tmp_path: Path, folder: Path) -> None:
    named = policy.policy_id(str(folder), "base")
    assert named.startswith("base@") and len(named) == len("base@") + 12
    assert policy.policy_id(str(folder), "base") == named
    tiny.model(seed=9).save_pretrained(tmp_path / "other")
    assert policy.policy_id(str(tmp_path / "other"), "base") != named


def test_a_policy_has_the_same_name_wherever_it_was_made(tmp_path: Path, folder: Path) -> None:
    """Seeds are hashes of policy names: a path in config.json would make every sample depend on the run's folder."""
    names = set()
    for place in ("here", "there"):
        start = tmp_path / place / "start"
        shutil.copytree(folder, start)
        model = policy.load_model(str(start))
        policy.save(model, model.config, str(start), str(tmp_path / place / "made"))
        names.add(policy.policy_id(str(tmp_path / place / "made"), "made"))
    assert len(names) == 1


def test_random_weights_are_the_seeds(folder: Path) -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(next(policy.load_model(str(folder), random_init=True).parameters()))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_an_incomplete_policy_folder_is_refused_with_what_it_lacks(tmp_path: Path, folder: Path) -> None:
    bare = tmp_path / "bare"
    tiny.model().save_pretrained(bare)
    with pytest.raises(ValueError, match=r"bare has no tokenizer: copy"):
        policy.load_tokenizer(str(bare))
    with pytest.raises(ValueError, match=r"bare has no tokenizer: copy"):
        policy.save(tiny.model(), tiny.model().config, str(bare), str(tmp_path / "new"))
    (bare / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        policy.load_model(str(bare))
    (bare / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        policy.load_model(str(bare))
    with pytest.raises(ValueError, match="is no folder"):
        policy.load_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("cohere", "logit_scale"), ("granite", "logits_scaling"), ("gemma2", "final_logit_softcapping")],
)
def test_an_architecture_that_changes_its_logits_afterwards_is_refused_by_name(
    folder: Path, kind: str, setting: str
) -> None:
    config = AutoConfig.for_model(kind, **({"logits_scaling": 8.0} if kind == "granite" else {}))
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match=rf"architecture '{kind}' changes logits .*{setting}"):
        policy.load_model(str(folder), random_init=True)
