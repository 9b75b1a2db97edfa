"""A pass that has no room is refused before anything starts."""

from pathlib import Path

import pytest
import ray

from raml_ray import cluster, presets
from raml_ray.config import Config, ConfigError, override
from raml_ray.formulas import architecture, memory
from raml_ray.stages import room
from raml_ray.stages.room import Longest, tokens_of_a_pass
from raml_ray.workers import policy as policies
from tests.stages import contexts

MANY = Longest("sft.max_length", 512, 64)


def config(**settings: object) -> Config:
    return override(Config(), {f"train.{name}": value for name, value in settings.items()})


def test_a_pass_has_the_budget_or_one_longer_example_but_never_more_than_there_is() -> None:
    assert tokens_of_a_pass(config().train, MANY) == 8192
    assert tokens_of_a_pass(config().train, Longest("sft.max_length", 30_000, 64)) == 30_000
    assert tokens_of_a_pass(config().train, Longest("sft.max_length", 100, 8)) == 800
    assert tokens_of_a_pass(config(num_workers=4).train, Longest("sft.max_length", 100, 6)) == 200


def test_the_estimate_is_of_the_strategy_that_is_set(tmp_path: Path) -> None:
    made = architecture.of(policies.load_config(contexts.policy(tmp_path / "policy")).to_dict())
    assert made
    assert room.split_of(config().train, made) == memory.Split(num_ranks=1, dtype_bytes=4)
    gpus = {"gpus_per_worker": 1, "dtype": "bfloat16", "num_workers": 8}
    zero = config(**gpus, strategy="deepspeed", offload=True, activation_checkpointing=True)
    assert room.split_of(zero.train, made) == memory.Split(8, 2, stage=3, offload=True, recompute=True)
    assert room.split_of(config(strategy="deepspeed", zero_stage=1).train, made).stage == 1


def test_what_does_not_fit_is_refused_with_the_longest_that_does(tmp_path: Path) -> None:
    policy = contexts.policy(tmp_path / "policy")
    room.check(config(memory_gib=1.4), policy, MANY)
    assert room.SPARE > 2.56 / 2.22  # as docs/memory.md has them
    with pytest.raises(
        ConfigError, match=r"there are 1\.18 GiB \(train\.memory_gib\).* set it to that at most"
    ) as error:
        room.check(config(memory_gib=1.18), policy, MANY)
    fitting = int(str(error.value).split("fits is train.max_tokens_per_micro_batch=")[1].split(";")[0])
    assert 512 < fitting < 8192
    room.check(config(memory_gib=1.18, max_tokens_per_micro_batch=fitting), policy, MANY)
    with pytest.raises(ConfigError):
        room.check(config(memory_gib=1.18, max_tokens_per_micro_batch=fitting + 1), policy, MANY)
    with pytest.raises(ConfigError, match=r"set both it and sft\.max_length to that"):
        room.check(config(memory_gib=1.18), policy, Longest("sft.max_length", 60_000, 64))
    with pytest.raises(ConfigError, match="not one token fits"):
        room.check(config(memory_gib=1.1), policy, MANY)


def test_the_miniature_fits_into_two_gibibytes(tmp_path: Path) -> None:
    whole = presets.miniature()
    made = tmp_path / "policy"
    contexts.policy(made, hidden_size=whole.base.hidden_size)
    small = override(whole, {"train.memory_gib": 2})
    room.check(small, str(made), Longest("sft.max_length", whole.sft.max_length, whole.sft.batch_size))


@pytest.mark.ray
def test_a_worker_s_share_is_of_the_node_that_it_shares_with_as_many_as_have_cpus(cluster: None) -> None:
    (node,) = (node["Resources"] for node in ray.nodes() if node["Alive"])
    assert shares(1, 1) == int(node["memory"])
    assert shares(2, 1) == int(node["memory"] / 2)
    assert shares(8, 2) == int(node["memory"] / 2)  # four CPUs have room for two at once
    assert shares(1, 1) > memory.GIB


def shares(num_workers: int, cpus: int) -> int:
    return cluster.host_bytes(num_workers, cpus)
