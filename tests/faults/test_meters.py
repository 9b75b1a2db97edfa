"""Prometheus reads at a node's metrics port what engines, pool, learners and judges say."""

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from raml_ray.config import Step
from raml_ray.stages import meters, verify
from raml_ray.stages.generate import run as generate
from tests.stages.contexts import context, finish

# Not a fault, but it wants a Ray of its own: `make test-cluster`.
pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

PATIENCE_S = 60.0


def scraped() -> str:
    node = ray.nodes()[0]
    with urllib.request.urlopen(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10
    ) as reply:
        return str(reply.read().decode())


def value_of(text: str, name: str, *tags: str) -> float:
    """The sum over all processes of a meter with these tags; -1 where there is none."""
    lines = [line for line in text.splitlines() if re.match(rf"ray_{name}(_total)?\{{", line)]
    found = [float(line.rpartition(" ")[2]) for line in lines if all(tag in line for tag in tags)]
    return sum(found) if found else -1.0


@ray.remote(num_cpus=0)
class Teller:
    """A process that says something and stays, so that it can be asked."""

    def tell(self) -> None:
        meters.show("raml_pool_engines", 3, state="healthy")
        meters.show("raml_pool_version", 7)
        meters.show("raml_learner", 0.25, step="sft", metric="sft/loss")


def test_a_node_serves_what_was_told_and_what_engines_and_judges_did(cluster: None, tmp_path: Path) -> None:
    teller = Teller.remote()
    ray.get(teller.tell.remote())
    (tmp_path / "q.jsonl").write_text(
        "".join(f'{{"problem": "Sum: {n} 2 3", "answer": "{n + 5}"}}\n' for n in range(4))
    )
    settings = {"data__path": str(tmp_path / "q.jsonl"), "generate__num_samples": 3, "verify__num_workers": 1}
    made = context(tmp_path / "run", Step(name="generate", stage="generate"), **settings)
    finish(made, generate(made))
    judged = context(tmp_path / "run", Step(name="verify", stage="verify", data=("generate",)), **settings)
    finish(judged, verify.run(judged))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        text = scraped()
        told = {
            "engines": value_of(text, "raml_pool_engines", 'state="healthy"'),
            "version": value_of(text, "raml_pool_version"),
            "loss": value_of(text, "raml_learner", 'step="sft"', 'metric="sft/loss"'),
            "responses": value_of(text, "raml_engine_responses"),
            "verdicts": value_of(text, "raml_judge_verdicts"),
        }
        if told == {"engines": 3, "version": 7, "loss": 0.25, "responses": 12, "verdicts": 12}:
            break
        assert time.monotonic() < deadline, told
        time.sleep(1)
    assert value_of(text, "raml_engine_tokens") >= 12
