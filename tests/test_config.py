"""The settings tree: names, overrides, errors that name the remedy."""

import json
import subprocess
import sys

import pytest

from raml_ray import config as configs
from raml_ray import presets
from raml_ray.config import Config, ConfigError, differences, dump, flatten, load, override, parse_assignments


def test_every_preset_survives_the_trip_through_its_json() -> None:
    for make in presets.PRESETS.values():
        assert load(dump(make()), "config.json") == make()


def test_an_override_changes_one_setting_and_nothing_else() -> None:
    before = Config()
    after = override(before, {"grpo.num_updated": "4"})
    assert list(differences(before, after)) == ["grpo.num_updated: 32 -> 4"]


def test_one_entry_of_a_mapping_is_set_by_its_name() -> None:
    changed = override(Config(), {"data.columns.problem": "question"})
    assert changed.data.columns == {"problem": "question"}


def test_a_value_that_looks_like_json_is_read_as_json_and_another_as_text() -> None:
    assert parse_assignments(["a=[1, 2]", "b=null", "c=7", "d=x=y"]) == {"a": [1, 2], "b": None, "c": "7", "d": "x=y"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grpo.num_update": 3}, "did you mean 'grpo.num_updated'"),
        ({"grpo": 3}, "group of settings"),
        ({"seed": "x"}, "seed='x': Input should be a valid integer"),
        ({"grpo.num_updated": 64}, "grpo.num_updated=64 exceeds grpo.num_trajectories=32"),
        ({"evaluate.k": 17}, "evaluate.k=17 exceeds evaluate.num_samples=16"),
        ({"grpo.num_trajectories": 1}, "greater than or equal to 2"),
        ({"grpo.weight_sync": "nccl"}, "grpo.weight_sync=nccl sends from GPU to GPU, and engine.gpus_per_engine=0"),
        ({"grpo.weight_sync": "nccl", "engine.gpus_per_engine": 1}, "and train.gpus_per_worker=0 has none of its own"),
        ({"grpo.partial_rollouts": "carry"}, "grpo.partial_rollouts=carry has no effect with grpo.max_staleness=0"),
        ({"miniature.deeper_operands": 7}, "miniature.deeper_operands=7 exceeds miniature.num_slots=6"),
        ({"base.num_heads": 5}, "base.hidden_size=96 is no multiple of base.num_heads=5"),
        ({"name": "../elsewhere"}, "name='../elsewhere'"),
        ({"train.dtype": "float64"}, "train.dtype='float64'"),
        (
            {"steps": [{"name": "sft", "stage": "sft", "policy": "base"}]},
            "'sft' builds on 'base', which is no earlier step",
        ),
        ({"steps": [{"name": "a", "stage": "base"}, {"name": "a", "stage": "base"}]}, "two are named 'a'"),
        ({"engine.pipeline_parallel_size": 2}, "engine.gpus_per_engine=0 gives none: set engine.gpus_per_engine=2"),
        (
            {"engine.tensor_parallel_size": 4, "engine.pipeline_parallel_size": 2, "engine.gpus_per_engine": 4},
            "engine.gpus_per_engine=4 differs from engine.tensor_parallel_size=4 times engine.pipeline_parallel_size=2",
        ),
        ({"engine.gpus_per_engine": 2}, "set engine.gpus_per_engine=1"),
        ({"train.zero_stage": 2}, "train.zero_stage=2 has no effect under train.strategy=fsdp"),
        ({"train.offload": True}, "train.gpus_per_worker=0 gives none: set train.gpus_per_worker=1"),
        ({"train.attention": "flash_attention_2"}, "set train.dtype=bfloat16 train.gpus_per_worker=1"),
        ({"generate.min_tokens": 129}, "generate.min_tokens=129 exceeds generate.max_tokens=128"),
        (
            {"evaluate.stop": ["."], "engine.kind": "scripted"},
            "evaluate.stop=['.']: the tokens of engine.kind=scripted",
        ),
        ({"sft.answer_pattern": "A: (.*)"}, "sft.answer_pattern='A: (.*)' has no effect on sft.outer_loss=all_tokens"),
        ({"sft.answer_pattern": "A", "sft.outer_loss": "answer_only"}, "sft.answer_pattern='A' has no group"),
        ({"train.lora_targets": ["q_proj"]}, "train.lora_targets=('q_proj',) has no effect on train.lora_rank=0"),
        ({"generate.stop": ["a", ""]}, "generate.stop=['a', '']: an empty text"),
        ({"grpo.layout": "think"}, "grpo.layout=think has an effect with grpo.reward=paper alone"),
        ({"grpo.correction": "none", "grpo.correction_cap": 3}, "grpo.correction_cap=3.0 has an effect with"),
        ({"train.probe_every": 5}, "train.probe_every=5 and train.probe_data='' need each other"),
        ({"grpo.kl_estimator": "k2"}, "grpo.kl_estimator=k2 has an effect with grpo.kl_coefficient above 0 alone"),
        ({"grpo.gradient_variance_draws": 9}, "with grpo.gradient_variance_every above 0 alone"),
        ({"grpo.overlong_tokens": 97}, "grpo.overlong_tokens=97 exceeds grpo.max_tokens=96"),
        ({"grpo.compute_matched": True, "grpo.num_updated": 3}, "no multiple of grpo.num_updated=3"),
        ({"grpo.selection": "lhat_descent", "data.answers": "code"}, "grpo.selection=lhat_descent asks"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        override(Config(), changes)
    assert message in str(error.value)


def test_an_engine_may_use_a_part_of_a_gpu_or_one_per_part_of_the_model() -> None:
    sizes = {"engine.tensor_parallel_size": 2, "engine.pipeline_parallel_size": 2}
    assert override(Config(), {"engine.gpus_per_engine": 0.5}).engine.gpus_per_engine == 0.5
    assert override(Config(), sizes | {"engine.gpus_per_engine": 4}).engine.gpus_per_engine == 4


def test_a_text_may_begin_like_json_and_broken_json_is_refused_with_its_name() -> None:
    assert parse_assignments(["prompt.instruction={problem} Answer."]) == {"prompt.instruction": "{problem} Answer."}
    with pytest.raises(ConfigError, match=r"data.columns='\{\"a\": ': Input should be a valid dictionary"):
        override(Config(), parse_assignments(['data.columns={"a": ']))


def test_an_assignment_without_a_sign_is_refused() -> None:
    with pytest.raises(ConfigError, match="not of the form name=value"):
        parse_assignments(["seed"])


@pytest.mark.parametrize("name", ["math/500", "/", ""])
def test_a_set_s_name_that_would_mix_up_the_ids_of_its_questions_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.sets\..*rename"):
        override(Config(), {"evaluate.sets": {name: "miniature:test"}})
    assert override(Config(), {"evaluate.sets": {"math500": "a/b"}}).evaluate.sets == {"math500": "a/b"}


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'miniature'"):
        presets.by_name("minature")


def test_an_unknown_step_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'grpo_zero'"):
        presets.miniature().step("grpo_zer")


def test_a_file_that_is_no_configuration_is_refused(tmp_path: pytest.TempPathFactory) -> None:
    with pytest.raises(ConfigError, match="is not JSON"):
        load("{", "x.json")
    with pytest.raises(ConfigError, match="expected an object"):
        load("[]", "x.json")
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        load('{"sed": 1}', "x.json")


def test_a_setting_with_a_group_name_and_one_without_flatten_to_dotted_names() -> None:
    flat = flatten(Config())
    assert flat["seed"] == 0
    assert flat["grpo.num_updated"] == 32
    assert not any(isinstance(value, configs.Settings) for value in flat.values())


def test_every_setting_says_what_it_means_or_has_a_name_that_does() -> None:
    from raml_ray.showing import describe

    for entry in describe(presets.miniature()).split("\n    ")[1:]:
        assert "None" not in entry.split("\n")[0]


def raml(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "raml_ray", *words], capture_output=True, text=True, check=False)


def test_help_and_errors_import_nothing_heavy() -> None:
    code = (
        "import sys; from raml_ray.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'vllm', 'mlflow', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for words in (["--help"], ["run", "miniatur"], ["grpo", "miniature", "grpo.num_update=1"], ["show", "miniature"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_command_line_answers_a_typo_with_status_2_and_the_nearest_name() -> None:
    done = raml("run", "miniature", "grpo.num_update=3")
    assert done.returncode == 2
    assert done.stderr == "raml: no setting 'grpo.num_update'; did you mean 'grpo.num_updated'?\n"


def test_a_password_in_an_address_is_in_no_error() -> None:
    done = raml("generate", "gsm8k", "data.path=https://someone:canary-4711@127.0.0.1:1/questions.jsonl")
    assert done.returncode == 2
    assert "https://***@127.0.0.1:1/questions.jsonl" in done.stderr
    assert "canary-4711" not in done.stderr + done.stdout


def test_words_may_come_after_options() -> None:
    assert raml("run", "smoke", "--dry-run", "seed=1").returncode == 0
    assert raml("run", "smoke", "--dry-run", "--sed").returncode == 2


def test_show_prints_what_can_be_given_back() -> None:
    printed = raml("show", "smoke", "seed=9").stdout
    assert json.loads(printed)["seed"] == 9
    assert load(printed, "printed") == override(presets.smoke(), {"seed": 9})


def test_a_sweep_is_not_run_as_if_it_were_one_run() -> None:
    done = raml("run", "miniature_policies", "seed=4")
    assert (done.returncode, done.stderr) == (
        2,
        "raml: miniature_policies is a sweep: raml ablate miniature_policies seed=4\n",
    )
