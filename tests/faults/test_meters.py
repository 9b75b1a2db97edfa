"""Prometheus reads at a node's metrics port what engines, pool, learners and judges say."""

import re
import threading
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
import ray

from raml_ray import presets
from raml_ray.config import Config, Step, override
from raml_ray.metrics_file import read_metrics
from raml_ray.stages import meters, pipeline
from raml_ray.storage import Folder

# Not a fault, but it wants a Ray of its own: `make test-cluster`.
pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1800)]

PATIENCE_S = 60.0
FORGOTTEN_S = 20.0
"""Ray's agent drops a gauge that its process has not set for so long."""
VERSIONS = 8


def scraped() -> str:
    node = ray.nodes()[0]
    with urllib.request.urlopen(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=PATIENCE_S
    ) as reply:
        return str(reply.read().decode())


def value_of(text: str, name: str, *tags: str) -> float:
    """The sum over all processes of a meter with these tags; -1 where there is none."""
    lines = [line for line in text.splitlines() if re.match(rf"ray_{name}(_total)?\{{", line)]
    found = [float(line.rpartition(" ")[2]) for line in lines if all(tag in line for tag in tags)]
    return sum(found) if found else -1.0


def seen(value: float, name: str, *tags: str) -> float:
    """When the port first had this value. Raises: AssertionError after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := value_of(scraped(), name, *tags)) != value:
        assert time.monotonic() < deadline, f"{name} is {found}, not {value}"
        time.sleep(0.5)
    return time.monotonic()


@ray.remote(num_cpus=0)
class Teller:
    """A process that says something once and stays."""

    def tell(self) -> None:
        meters.show("raml_pool_version", 7)
        meters.show("raml_pool_engines", 2, state="healthy")
        meters.show("raml_pool_engines", 3, state="healthy")
        meters.show("raml_pool_engines", 1, state="dead")


def test_a_gauge_that_was_set_once_is_served_while_its_process_lives_and_no_longer(cluster: None) -> None:
    teller = Teller.remote()
    ray.get(teller.tell.remote())
    until = seen(7, "raml_pool_version") + 2 * FORGOTTEN_S
    while time.monotonic() < until:
        text = scraped()
        assert value_of(text, "raml_pool_version") == 7
        assert value_of(text, "raml_pool_engines", 'state="healthy"') == 3
        assert value_of(text, "raml_pool_engines", 'state="dead"') == 1
        time.sleep(1)
    ray.kill(teller)
    seen(-1, "raml_pool_version")


def small(root: Path) -> Config:
    """Sixteen questions, twice answered and judged; then GRPO on 4 questions x 4 trajectories in each version."""
    steps = (
        Step(name="base", stage="base"),
        Step(name="generate", stage="generate", policy="base"),
        Step(name="verify", stage="verify", data=("generate",)),
        Step(name="grpo", stage="grpo", policy="base"),
    )
    sizes = {"base.num_steps": 10, "grpo.num_steps": VERSIONS, "root": str(root), "tracking.enabled": False}
    return override(presets.smoke().model_copy(update={"steps": steps}), sizes)


def test_a_run_tells_of_its_engines_its_pool_its_learners_and_its_judges(cluster: None, tmp_path: Path) -> None:
    run = threading.Thread(target=pipeline.run, args=(small(tmp_path),), daemon=True)
    run.start()
    found: dict[str, set[float]] = defaultdict(set)
    while run.is_alive():
        text = scraped()
        found["responses"].add(value_of(text, "raml_engine_responses"))
        found["tokens"].add(value_of(text, "raml_engine_tokens"))
        found["verdicts"].add(value_of(text, "raml_judge_verdicts"))
        found["healthy"].add(value_of(text, "raml_pool_engines", 'state="healthy"'))
        found["version"].add(value_of(text, "raml_pool_version"))
        found["reward"].add(value_of(text, "raml_learner", 'step="grpo"', 'metric="grpo/reward"'))
        found["step_s"].add(value_of(text, "raml_learner", 'step="grpo"', 'metric="time/step_s"'))
        time.sleep(0.5)
    for name, values in found.items():
        print(f"\n{name}: {sorted(values)}")
        values.discard(-1)
        assert values, name
    written = read_metrics(Folder(str(tmp_path / "smoke" / "grpo")))
    assert len(written) == VERSIONS
    assert found["reward"] <= {row["grpo/reward"] for row in written}
    assert found["step_s"] <= {row["time/step_s"] for row in written}
    assert found["healthy"] <= {0, 1} and 1 in found["healthy"]
    assert found["version"] <= set(range(VERSIONS + 1)) and max(found["version"]) > 0
    # A process that ends takes along what it has not told yet: at most the last ten seconds.
    generated, rollouts = 16 * 2, VERSIONS * 4 * 4
    assert generated < max(found["responses"]) <= generated + rollouts
    assert generated < max(found["verdicts"]) <= generated + rollouts
    assert max(found["tokens"]) >= max(found["responses"])
