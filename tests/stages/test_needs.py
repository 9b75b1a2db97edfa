"""What a step asks of the cluster: the room that a sweep keeps for each of its trials."""

import pytest

from raml_ray.cluster import Need, check_fits
from raml_ray.config import Config, ConfigError, Stage, override
from raml_ray.stages import ablate, learners, needs


def total(stage: Stage, **settings: object) -> tuple[float, float]:
    """CPUs and GPUs together."""
    config = override(Config(), {name.replace("__", "."): value for name, value in settings.items()})
    asked = needs.asked(config, stage).values()
    return sum(one.total("CPU") for one in asked), sum(one.total("GPU") for one in asked)


def test_learners_engines_and_instruments_are_added_up_with_their_gpus() -> None:
    workers = {"train__num_workers": 2, "train__cpus_per_worker": 3, "train__gpus_per_worker": 1}
    engines = {"engine__cpus_per_engine": 2, "engine__gpus_per_engine": 1}
    assert total("grpo", grpo__num_engines=4, **workers, **engines) == (2 * 3 + 4 * 2, 2 + 4)
    assert total("sft", **workers) == (2 * 3 + 1, 2)
    assert total("sft", **(workers | {"train__gpus_per_worker": 0.5})) == (2 * 3 + 1, 1)
    assert total("evaluate", evaluate__num_engines=[1, 4], **engines) == (2 + 1, 1)
    assert total("analyze", analyze__num_workers=3, analyze__gpus_per_worker=1) == (3 + 1, 3)
    assert total("verify") == (1, 0)
    assert total("base", base__num_threads=2) == (2, 0)


def test_trials_run_side_by_side_as_their_greediest_steps_fit() -> None:
    training = {"train.num_workers": Need(2, cpus=3, gpus=1), "sft": Need(1, cpus=1)}  # 7 CPUs, 2 GPUs
    evaluation = {"evaluate.num_engines": Need(4, cpus=2, gpus=1)}  # 8 CPUs, 4 GPUs
    assert ablate.room_for([training, evaluation], {"CPU": 64, "GPU": 16}) == 4
    assert ablate.room_for([training, evaluation], {"CPU": 26, "GPU": 16}) == 3
    assert ablate.room_for([training, evaluation], {"CPU": 64, "GPU": 3}) == 0
    assert ablate.room_for([{"verify": Need(1, cpus=1)}], {"CPU": 2}) == 2, (
        "GPUs that no step asks for are none's limit"
    )


@pytest.mark.ray
def test_what_no_node_has_room_for_is_refused_with_who_asks_for_how_much_of_which_nodes(cluster: None) -> None:
    config = override(Config(), {"train.num_workers": 2, "train.cpus_per_worker": 3})
    with pytest.raises(
        ConfigError, match=r"^7 logical CPUs are asked, 6 \(train.num_workers=2 .* \+ 1 \(.* Ray has 4:"
    ):
        check_fits(needs.asked(config, "sft"), 0)
    config = override(config, {"train.num_workers": 1, "train.node_labels.zone": "nowhere"})
    assert learners._workers(config.train).label_selector == {"zone": "nowhere"}
    with pytest.raises(ConfigError, match=r"^3 .* Ray has 0 on nodes that carry zone=nowhere \(there are: none\):"):
        check_fits(needs.asked(config, "sft"), 0)
    check_fits(needs.asked(override(Config(), {"train.cpus_per_worker": 3}), "sft"), 0)
