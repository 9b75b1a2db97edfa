"""GRPO with real learners and real rollout engines: weights that arrive, weights that do not, and a run that is killed."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from raml_ray import presets
from raml_ray.config import Config, ConfigError, Step, dump, load, override
from raml_ray.metrics_file import read_metrics
from raml_ray.miniature import base, task, tokenizer
from raml_ray.settings import BaseConfig
from raml_ray.stages import grpo, learners, training_set
from raml_ray.stages.context import Context, Counts
from raml_ray.stages.instruments import chosen, lhat
from raml_ray.stages.rollout_judge import RolloutJudge
from raml_ray.stages.rollouts import stop_token_ids
from raml_ray.storage import Folder
from raml_ray.text import prompts
from raml_ray.workers import fixed_probe, fresh, grpo_loop, weights
from raml_ray.workers import policy as policies
from raml_ray.workers.engine import Engine
from raml_ray.workers.rollouts import Groups, questions_of_step, requests_of_step
from raml_ray.workers.sampling import Sampling
from tests.stages.test_training_set import Row, teacher, verdicts
from tests.workers import ranks

NUM_STEPS = 4
DEADLINE_S = 400
MISMATCH = "grpo/mismatch_mean"

# Run by every process that the test's commands start: the tied head of the engine stays as it was before the sync.
PLANT = """
import importlib.abc, importlib.util, sys

class Plant(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "raml_ray.workers.engine_extension":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def planted(module):
            run(module)
            module.repack_tied_head = lambda model: None
        spec.loader.exec_module = planted
        return spec

sys.meta_path.insert(0, Plant())
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of runs in which `undisturbed` has gone through base and grpo."""
    root = tmp_path_factory.mktemp("runs")
    done = raml(root, "undisturbed")
    assert done.returncode == 0, done.stderr[-3000:]
    yield root


def config_of(root: Path, name: str) -> Path:
    small = override(
        presets.smoke(),
        {
            "name": name,
            "root": str(root),
            "grpo.num_steps": NUM_STEPS,
            "grpo.num_updated": 4,
            "grpo.num_trajectories": 8,
            "tracking.enabled": False,
            # So easy that a policy of a few steps is right now and then: else no gradient.
            "miniature.num_slots": 3,
            "miniature.num_operands": 2,
            "miniature.deeper_operands": 3,
            "base.num_steps": 120,
        },
    )
    steps = (Step(name="base", stage="base"), Step(name="grpo", stage="grpo", policy="base"))
    path = root / f"{name}.json"
    path.write_text(dump(small.model_copy(update={"steps": steps})))
    return path


def command(root: Path, name: str) -> list[str]:
    return [sys.executable, "-m", "raml_ray", "run", str(config_of(root, name))]


def raml(root: Path, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(root, name),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        env=os.environ | environment,
    )


def metrics(root: Path, name: str) -> list[dict[str, float]]:
    return read_metrics(Folder(str(root / name / "grpo")))


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.faults  # beside those that are killed, which are held against the same run
def test_after_every_sync_engine_and_learner_agree(runs: Path) -> None:
    rows = metrics(runs, "undisturbed")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert max(row["grpo/sync_max_error"] for row in rows) < 1e-4
    assert max(row["grpo/mismatch_max"] for row in rows) < 1e-4
    assert rows[0]["grpo/grad_norm"] > 0
    summary = json.loads((runs / "undisturbed" / "grpo" / "summary.json").read_text())
    assert summary["figures"]["grpo/versions"] == NUM_STEPS
    assert (runs / "undisturbed" / "grpo" / "policy" / "model.safetensors").exists()


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.faults
def test_without_staleness_a_run_is_bit_for_bit_the_loop_of_one_engine_and_one_learner_in_turn(runs: Path) -> None:
    config, base_policy = str(config_of(runs, "undisturbed")), str(runs / "undisturbed" / "base" / "policy")
    (found,) = ranks.run(in_turn, 1, config, base_policy)
    keys = ("grpo/loss", "grpo/reward", "grpo/grad_norm", "grpo/response_tokens", "grpo/entropy", MISMATCH)
    assert [[row[key] for key in keys] for row in found] == [
        [row[key] for key in keys] for row in metrics(runs, "undisturbed")
    ]


def in_turn(path: str, policy_path: str) -> list[dict[str, float]]:
    """GRPO's loop without Ray, pool or overlap: an engine in the learner's own process is asked, then the learner updates,
    then the engine takes over the weights."""
    config = load(Path(path).read_text(), path)
    words = policies.load_tokenizer(policy_path)
    stop = stop_token_ids(policy_path, words)
    questions = task.questions("train", config.miniature, seed=config.seed)
    engine, judge = Engine(policy_path, config.engine, seed=config.seed), RolloutJudge(config, words, stop)
    learner = learners.loaded(policy_path, config)
    found: list[dict[str, float]] = []

    def sample(version: int) -> tuple[Groups, dict[str, float]]:
        asked = questions_of_step(questions, version, num=config.grpo.questions_per_step, seed=config.seed)
        prompted = [prompts.prompt_token_ids(words, question.problem, config.prompt) for question in asked]
        requests = requests_of_step(asked, prompted, version, num=config.grpo.num_trajectories, seed=config.seed)
        sampling = Sampling(config.grpo.temperature, 1.0, -1, config.grpo.max_tokens, stop)
        return judge.judged(asked, requests, engine.generate(requests, sampling)), {}

    def publish(version: int) -> dict[str, float]:
        engine.load_weights([weights.pack(learner.full_tensors())], version)
        return {}

    grpo_loop.train(
        learner, config.grpo, config.train, seed=config.seed, start_version=0, sample=sample, publish=publish,
        report=lambda version, told: found.append(dict(told)), save=lambda version: None,
    )  # fmt: skip
    judge.close()  # and not the engine, which would take the learner's process group along
    return found


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.faults
def test_a_stale_head_stops_the_run_and_is_named(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(PLANT)
    shutil.copytree(runs / "undisturbed" / "base", runs / "planted" / "base")
    done = raml(runs, "planted", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert "the first module whose output differs is lm_head" in done.stderr
    # Version 0 is what the engine was started with; version 1 is the first that it had to be sent.
    assert "after the sync of version 1" in done.stderr
    assert not (runs / "planted" / "grpo" / "summary.json").exists()


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_run_goes_on_with_the_losses_of_an_undisturbed_one(runs: Path) -> None:
    shutil.copytree(runs / "undisturbed" / "base", runs / "killed" / "base")
    first = subprocess.Popen(command(runs, "killed"), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + DEADLINE_S
    while len(metrics(runs, "killed")) < 2:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (runs / "killed" / "grpo" / "summary.json").exists()

    second = raml(runs, "killed")
    assert second.returncode == 0, second.stderr[-3000:]
    assert "base: finished before" in second.stderr
    resumed = json.loads((runs / "killed" / "grpo" / "summary.json").read_text())["figures"][
        "grpo/resumed_from_version"
    ]
    assert resumed >= 1
    # Entropy and mismatch are means over all tokens: a batch of the engine's that is made otherwise shows there first.
    keys = ("step", "grpo/loss", "grpo/reward", "grpo/grad_norm", "grpo/response_tokens", "grpo/entropy", MISMATCH)
    undisturbed = [[row[key] for key in keys] for row in metrics(runs, "undisturbed")]
    assert [[row[key] for key in keys] for row in metrics(runs, "killed")] == undisturbed


def learners_and_scripted_engines(folder: Path, **changes: object) -> Context:
    """A GRPO step of two learners on six rows: four questions, one without an answer, one too long."""
    words = tokenizer.build()
    model = fresh.model(BaseConfig(hidden_size=32, num_layers=1, num_heads=1, intermediate_size=32), words, seed=0)
    base.save(model, words, str(folder / "policy"))
    rows = [{"problem": f"Sum: {n} 2 3", "answer": str(n + 5)} for n in range(4)]
    rows += [{"problem": "Sum: 1 2 3", "answer": ""}, {"problem": "Sum:" + " 1" * 100, "answer": "100"}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, object] = {
        "root": str(folder),
        "policy.path": str(folder / "policy"),
        "data.path": str(folder / "questions.jsonl"),
        "data.max_rejected_fraction": 0.5,
        "engine.kind": "scripted",
        "engine.max_model_len": 64,
        "verify.num_workers": 1,
        "train.num_workers": 2,
        "train.max_failures": 0,
        "grpo.num_steps": 4,
        "grpo.sync_check_every": 2,
        "grpo.questions_per_step": 2,
        "grpo.num_trajectories": 2,
        "grpo.num_updated": 2,
        "grpo.max_tokens": 8,
    }
    step = Step(name="grpo", stage="grpo")
    named = {name.replace("__", "."): value for name, value in changes.items()}
    config = override(Config(steps=(step,)), settings | named)
    return Context(config, step, Folder(str(folder / "run")), config)


@pytest.mark.ray
def test_a_pool_that_died_behind_the_last_version_costs_its_nodes_and_not_the_step(
    cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    @ray.remote(num_cpus=0)
    class Pool:
        def nodes(self) -> list[str]:
            return ["n"]

    caplog.set_level(logging.WARNING, "raml_ray")
    pool = Pool.remote()  # type: ignore[attr-defined]
    assert grpo._engine_nodes(pool, 60) == {"engine_nodes": ["n"]}
    ray.kill(pool)
    with contextlib.suppress(RayActorError):  # killed is not dead at once
        while True:
            ray.get(pool.nodes.remote(), timeout=60)
    assert grpo._engine_nodes(pool, 60) == {}
    assert "the pool does not answer (ActorDiedError)" in caplog.text


@pytest.mark.parametrize(("ahead", "mode", "is_told"), [(2, "wait", True), (1, "wait", False), (2, "carry", False)])
def test_staleness_that_buys_no_speed_is_named(
    caplog: pytest.LogCaptureFixture, ahead: int, mode: str, is_told: bool
) -> None:
    caplog.set_level(logging.WARNING, "raml_ray")
    grpo.check(override(Config(), {"grpo.max_staleness": ahead, "grpo.partial_rollouts": mode}))
    assert ("set that, or grpo.partial_rollouts=carry" in caplog.text) == is_told


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("ahead", "strategy"),
    [(0, "fsdp"), pytest.param(0, "deepspeed", marks=pytest.mark.faults), (1, "fsdp")],  # for its time
)
def test_learners_are_given_trajectories_of_the_version_that_they_ask_for_or_as_old_as_they_allow(
    cluster: None, tmp_path: Path, ahead: int, strategy: str
) -> None:
    modes = {"grpo__max_staleness": ahead, "grpo__partial_rollouts": "carry" if ahead else "wait"}
    outcome = grpo.run(learners_and_scripted_engines(tmp_path, train__strategy=strategy, **modes))
    assert outcome.figures["grpo/versions"] == 4
    assert outcome.counts == Counts(rows_in=6, rows_out=4, rejected=1, filtered=1)
    rows = read_metrics(Folder(str(tmp_path / "run" / "grpo")))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # The first step has no older weights; later ones begin while learners still make the version before.
    assert [row["grpo/staleness_max"] for row in rows] == [0, ahead, ahead, ahead]
    assert {row["grpo/engines_healthy"] for row in rows} == {1}
    assert min(row["grpo/sync_gb_per_s"] for row in rows) > 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_whole_recipe_reaches_pool_and_learners(cluster: None, tmp_path: Path) -> None:
    recipe = {
        "grpo__loss": "dapo",
        "grpo__max_refills": 1,
        "grpo__overlong_tokens": 0,
        "grpo__reward": "paper",
        "grpo__layout": "think",
        "grpo__selection": "lhat_descent",
        "grpo__num_updated": 1,
        "grpo__kl_coefficient": 0.1,
        "grpo__gradient_variance_every": 2,
        "train__probe_every": 2,
        "train__probe_data": "verify",
    }
    texts = ["<think>\n _ 3 8\n _ _ 11\n</think>\n\n**Final Answer**\n\\boxed{11}", "<think>\n 8\n</think>\n\n11"]
    judged: list[Row] = [(f"q{place}", 0, text, "correct") for place, text in enumerate(texts)]
    teacher(tmp_path / "run", "long", judged)
    verdicts(tmp_path / "run", "verify", ("long", judged))
    context = learners_and_scripted_engines(tmp_path, grpo__num_steps=2, **recipe)
    grpo.run(context)
    first, *rows = read_metrics(Folder(str(tmp_path / "run" / "grpo")))
    assert [first["step"], *(row["step"] for row in rows)] == [0, 1, 2]
    # Fixed trajectories have the L-hat that an instrument measures along them, and keep it where nothing is learned.
    curves = gold_curves(context)
    wanted = {
        fixed_probe.START: (curves[0][0] + curves[1][0]) / 2,
        # `\n _ 3 8 \n _ _` without the answer behind <think>; the second never writes it while it thinks
        fixed_probe.BEFORE_LEAK: (curves[0][8] + curves[1][-1]) / 2,
        fixed_probe.END: (curves[0][-1] + curves[1][-1]) / 2,
    }
    for told in (first, rows[1]):
        assert {place: told[place] for place in wanted} == pytest.approx(wanted, abs=1e-5)
    assert not wanted.keys() & rows[0].keys()
    for row in rows:
        # Scripted tokens are no answers, and all alike in that: the two other questions are asked, and nothing is learned.
        assert (row["grpo/refills"], row["grpo/questions_left_out"], row["grpo/empty_minibatches"]) == (1.0, 4.0, 2.0)
        assert (row["grpo/accuracy"], row["grpo/well_formed_fraction"], row["grpo/unreadable_fraction"]) == (
            0.0,
            0.0,
            1.0,
        )
        assert row["grpo/reward"] == -1.0
        assert row["grpo/kl"] == 0.0
    assert ["grpo/gradient_variance" in row for row in rows] == [True, False]


def gold_curves(context: Context) -> list[list[float]]:
    """L-hat of the gold answers along the trajectories of `verify`, as the lhat instrument measures it of the step's policy."""
    reading = replace(context, step=context.step.model_copy(update={"data": ("verify",)}))
    rows, questions = training_set.judged(reading)
    asked = [
        row
        | {name: getattr(questions[row["question_id"]], name) for name in ("problem", "answer")}
        | {"foreign_text": None, "other_answers": []}
        for row in rows
    ]
    plain = override(context.config, {"lhat.num_foils": 0, "lhat.controls": []})
    curves = lhat.Curves(chosen.opened(context.policy_path, plain), plain)
    return [curve["lhat"] for curve in curves(asked, lambda row, reason: pytest.fail(str(reason)))]


def test_settings_that_no_engine_and_learner_could_do_together_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.dtype=float16: .* set engine\.dtype"):
        grpo.run(learners_and_scripted_engines(tmp_path, engine__dtype="float16"))
    impatient = learners_and_scripted_engines(tmp_path, grpo__sample_timeout_s=600)
    with pytest.raises(ConfigError, match=r"grpo\.sample_timeout_s=600 .*engine\.stall_timeout_s=300"):
        grpo.run(impatient)
    grpo.check(Config())


def test_the_driver_does_without_what_only_ranks_need() -> None:
    code = (
        "import sys, raml_ray.stages.grpo\n"
        "heavy = {'torch.distributed.fsdp', 'torch.distributed.checkpoint', 'transformers.modeling_utils'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
