import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from raml_ray.config import Config, ConfigError, dump, override
from raml_ray.metrics_file import read_metrics
from raml_ray.miniature import tokenizer as miniature
from raml_ray.stages import example_shards, learners, sft
from raml_ray.storage import Folder
from raml_ray.text.batches import Example, table
from raml_ray.text.suffix import AnswerSuffix
from raml_ray.workers import fixed_probe, probe, sft_loop, sft_plan, sharding
from raml_ray.workers.probe_text import Probe
from tests.workers import ranks, tiny

ROOT = Path(__file__).parents[2]
NUM_STEPS = 60


def prepared(folder: Path, **changes: object) -> tuple[Folder, Folder, str, Config]:
    """Examples, a step folder, a policy, and settings for 60 short steps with a checkpoint after every fifth."""
    tiny.model().save_pretrained(folder / "base")
    miniature.build().save_pretrained(folder / "base")
    examples = Folder(str(folder / "examples"))
    rows = table(tiny.examples(480))
    shards = [
        example_shards.write_shard(examples, name, part)
        for name, part in {"part-0.parquet": rows.slice(0, 200), "part-1.parquet": rows.slice(200)}.items()
    ]
    example_shards.write_index(examples, example_shards.Index.of(shards))
    settings: dict[str, object] = {
        "train.checkpoint_every": 5,
        "train.max_tokens_per_micro_batch": 400,
        "sft.batch_size": 32,
        "sft.num_epochs": 4,
    }
    config = override(Config(), settings | {name.replace("__", "."): value for name, value in changes.items()})
    return examples, Folder(str(folder / "step")), str(folder / "base"), config


def losses(folder: Folder) -> list[tuple[int, float]]:
    return [(int(row["step"]), row["sft/loss"]) for row in read_metrics(folder) if "sft/loss" in row]


def undisturbed(config: Config) -> list[float]:
    """The losses of one rank in this process, without Ray."""
    found: list[float] = []
    plan = sft_plan.plan([480], config.sft, config.seed)
    with ranks.alone():
        sft_loop.train(
            sharding.wrap(tiny.model(), config.train),
            plan,
            tiny.shares(plan, tiny.examples(480), 0, 0, 1),
            config.sft,
            config.train,
            seed=config.seed,
            start_step=0,
            report=lambda step, metrics: found.append(metrics["sft/loss"]),
            save=lambda step: None,
        )
    return found


PROBED, LENGTHS, SUFFIX = (
    ([3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8]),
    (1, 2, 4),
    AnswerSuffix([8, 7, 6], [False, True, True]),
)
"""Trajectories, tokens of each that stand at the probe's three places, and what follows there."""


def probed_examples() -> list[Example]:
    """As fixed_probe.examples makes them; these tokens are none of the miniature's."""
    return [
        Example([*ids[:length], 8], [7, 6], {name: [0.5 * (name == place)] * 2 for name in fixed_probe.PLACES})
        for ids in PROBED
        for length, place in zip(LENGTHS, fixed_probe.PLACES, strict=True)
    ]


def probed_directly(policy: PreTrainedModel) -> list[float]:
    """Mean L-hat at each place, nats per answer token."""
    found = probe.answer_nll(policy, [Probe(ids, LENGTHS, [SUFFIX]) for ids in PROBED], memory_mib=64)
    return [float(value) for value in np.mean([lhat_K for (lhat_K,) in found], axis=0)]


def wait_for_steps(folder: Folder, count: int, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while len(read_metrics(folder)) < count:
        assert time.monotonic() < deadline, f"{len(read_metrics(folder))} of {count} steps in {timeout_s} s"
        time.sleep(0.01)


def is_learner(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # one that another test killed, and that nobody has waited for yet
        return False


def kill_a_learner(folder: Folder, killed: list[int]) -> None:
    wait_for_steps(folder, 12)
    workers = [p for p in psutil.Process().children(recursive=True) if is_learner(p)]
    workers[-1].send_signal(signal.SIGKILL)
    killed.append(workers[-1].pid)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.faults
def test_two_workers_one_of_which_is_killed_lose_what_one_undisturbed_does(cluster: None, tmp_path: Path) -> None:
    examples, folder, base, config = prepared(tmp_path, train__num_workers=2)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_learner, args=(folder, killed))
    killer.start()
    figures = sft.train_policy(examples, folder, base, config)
    killer.join()
    assert len(killed) == 1
    assert 10 <= figures["sft/resumed_from_step"] < NUM_STEPS
    assert figures["sft/steps"] == NUM_STEPS
    assert [step for step, _ in losses(folder)] == list(range(1, NUM_STEPS + 1))
    assert [loss for _, loss in losses(folder)] == pytest.approx(undisturbed(config), abs=1e-5)
    trained = AutoModelForCausalLM.from_pretrained(folder.file("policy"))
    assert not trained.model.norm.weight.equal(tiny.model().model.norm.weight)


@pytest.mark.ray
@pytest.mark.slow
def test_deepspeeds_learners_lose_what_fsdps_do_and_leave_the_same_policy(cluster: None, tmp_path: Path) -> None:
    zero: dict[str, object] = {"train.strategy": "deepspeed", "train.zero_stage": 3, "train.num_workers": 2}
    probing: dict[str, object] = {"train.probe_every": 4, "train.probe_data": "verify"}
    examples, folder, base, config = prepared(tmp_path, sft__max_steps=8)
    figures = sft.train_policy(examples, folder, base, override(config, zero | probing), probed_examples())
    assert figures["sft/steps"] == 8
    assert [loss for _, loss in losses(folder)] == pytest.approx(undisturbed(config), abs=1e-5)
    trained = AutoModelForCausalLM.from_pretrained(folder.file("policy"))
    assert trained.state_dict().keys() == tiny.model().state_dict().keys()
    assert not trained.model.norm.weight.equal(tiny.model().model.norm.weight)
    # What learners tell of fixed trajectories on the way is the probe's, of what they begin with and of what they leave.
    told = {row["step"]: row for row in read_metrics(folder) if fixed_probe.START in row}
    assert list(told) == [0, 4, 8]
    for step, policy in ((0, tiny.model()), (8, trained.eval())):
        found = [told[step][place] for place in fixed_probe.PLACES]
        assert found == pytest.approx(probed_directly(policy), abs=1e-5)
    assert len({told[step][fixed_probe.END] for step in told}) == 3


DRIVER = """
import sys
import ray
from raml_ray.config import load
from raml_ray.stages import sft
from raml_ray.storage import Folder

ray.init("local", num_cpus=2, object_store_memory=100 * 2**20, log_to_driver=False)
examples, folder, base = sys.argv[1:4]
sft.train_policy(Folder(examples), Folder(folder), base, load(sys.stdin.read(), "stdin"))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_driver_run_again_goes_on_to_identical_losses(cluster: None, tmp_path: Path) -> None:
    examples, folder, base, config = prepared(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, examples.path, folder.path, base],
        stdin=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert driver.stdin
    driver.stdin.write(dump(config))
    driver.stdin.close()
    wait_for_steps(folder, 12)
    driver.kill()
    driver.wait()
    time.sleep(3)  # until the killed driver's workers have noticed
    before = dict(losses(folder))
    figures = sft.train_policy(examples, folder, base, config)
    after = dict(losses(folder))
    resumed = int(figures["sft/resumed_from_step"])
    assert resumed >= 10
    assert {step: after[step] for step in before if step <= len(after)} == before  # repeated ones bit for bit
    assert [after[step] for step in range(1, NUM_STEPS + 1)] == pytest.approx(undisturbed(config), abs=1e-6)
    # What every life of the learners would refuse, the first one ends the step with: no worker dies of it.
    with pytest.raises(ConfigError, match=r"start it anew with --redo step") as refused:
        sft.train_policy(examples, folder, base, override(config, {"seed": 1}))
    assert refused.value.__cause__ is None


def test_what_every_worker_would_stumble_over_is_refused_before_any_starts(tmp_path: Path) -> None:
    examples, folder, base, config = prepared(tmp_path)
    with pytest.raises(ValueError, match="has no examples"):
        sft.train_policy(Folder(str(tmp_path / "none")), folder, base, config)
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        sft.train_policy(examples, folder, base, config)


def test_a_worker_validates_the_configuration_again() -> None:
    config = Config()
    assert learners.started({"config": dump(config)}) == config
    with pytest.raises(ValueError, match=r"train\.num_workers"):
        learners.started({"config": dump(config).replace('"num_workers": 1', '"num_workers": 0')})
