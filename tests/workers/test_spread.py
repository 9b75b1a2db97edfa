"""Where the parts of a policy lie that is spread over GPUs. None is here: what moves between them was not run."""

from pathlib import Path

import pytest
import torch

from raml_ray import presets
from raml_ray.config import Config, ConfigError, override
from raml_ray.stages import needs
from raml_ray.workers import policy, spread
from tests.stages import contexts


def test_layers_lie_in_equal_runs_and_all_else_on_the_first(tmp_path: Path) -> None:
    model = policy.load_model(contexts.policy(tmp_path / "policy"), without_weights=True)
    assert spread.device_map(model, 2) == {
        "model.layers.0": "cuda:0",
        "model.layers.1": "cuda:1",
        "model.embed_tokens": "cuda:0",
        "model.norm": "cuda:0",
        "model.rotary_emb": "cuda:0",
        "lm_head": "cuda:0",
    }
    with pytest.raises(ValueError, match=r"analyze.gpus_per_policy=3 exceeds the policy's 2 layers"):
        spread.device_map(model, 3)


def test_every_parameter_has_its_place_and_a_policy_read_that_way_computes_the_same(tmp_path: Path) -> None:
    path = contexts.policy(tmp_path / "policy")
    places = spread.device_map(policy.load_model(path, without_weights=True), 2)
    whole = policy.load_model(path).eval()
    for name, _ in whole.named_parameters():
        assert any(name.startswith(f"{module}.") for module in places), name
    placed = policy.load_model(path, device_map=dict.fromkeys(places, "cpu")).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(placed(input_ids=ids).logits, whole(input_ids=ids).logits)


SPREAD = {"analyze.gpus_per_policy": 2, "analyze.gpus_per_worker": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"analyze.gpus_per_worker": 2}, "set analyze.gpus_per_policy=2 to spread it"),
        ({"analyze.gpus_per_policy": 2}, "set analyze.gpus_per_worker=2"),
        (SPREAD | {"analyze.instrument": "pseudo_update"}, "pseudo-updates .* on one device"),
        (SPREAD | {"analyze.instrument": "landscape"}, "landscape.planes=update"),
    ],
)
def test_gpus_that_would_lie_idle_or_hold_too_little_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(Config(), settings)


def test_instruments_that_read_no_layers_inside_may_be_spread() -> None:
    for more in ({}, {"analyze.instrument": "landscape", "landscape.planes": ["random"]}):
        assert override(Config(), SPREAD | more).analyze.gpus_per_policy == 2


def test_a_spread_policy_asks_the_cluster_for_all_its_gpus() -> None:
    config = presets.by_name("paper_fig3_qwq").for_step("lhat_qwq")
    assert sum(need.total("GPU") for need in needs.asked(config, "analyze").values()) == 2
