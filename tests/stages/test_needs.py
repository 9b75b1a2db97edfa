"""What a step asks of the cluster: the room that a sweep keeps for each of its trials."""

import pytest

from raml_ray.config import Config, ConfigError, Stage, override
from raml_ray.stages import learners, needs


def total(stage: Stage, **settings: object) -> tuple[float, float]:
    """CPUs and GPUs together."""
    config = override(Config(), {name.replace("__", "."): value for name, value in settings.items()})
    asked = needs.asked(config, stage).values()
    return sum(one[0] for one in asked), sum(one[1] for one in asked)


def test_learners_engines_and_instruments_are_added_up_with_their_gpus() -> None:
    workers = {"train__num_workers": 2, "train__cpus_per_worker": 3, "train__gpus_per_worker": 1}
    engines = {"engine__cpus_per_engine": 2, "engine__gpus_per_engine": 1}
    assert total("grpo", grpo__num_engines=4, **workers, **engines) == (2 * 3 + 4 * 2, 2 + 4)
    assert total("sft", **workers) == (2 * 3 + 1, 2)
    assert total("evaluate", evaluate__num_engines=[1, 4], **engines) == (2 + 1, 1)
    assert total("analyze", analyze__num_workers=3, analyze__gpus_per_worker=1) == (3 + 1, 3)
    assert total("verify") == (1, 0)
    assert total("base", base__num_threads=2) == (2, 0)


@pytest.mark.ray
def test_learners_go_to_nodes_of_their_labels_and_labels_that_no_node_carries_are_refused(
    cluster: None,
) -> None:
    train = override(Config(), {"train.node_labels.zone": "nowhere"}).train
    assert learners._workers(train).label_selector == {"zone": "nowhere"}
    with pytest.raises(ConfigError, match=r"no node carries train.node_labels=\{'zone': 'nowhere'\}"):
        learners.check(train, "policy")
