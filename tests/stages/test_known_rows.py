"""The paper's sets from a mirror: whole, unchanged, in the shape that is asked."""

import hashlib
import json
from pathlib import Path

import pytest

from raml_ray.config import Config, ConfigError, Step, override
from raml_ray.stages import inputs, sources
from raml_ray.stages.sources import Found
from tests.stages import contexts

AIME = [{"problem": f"{i} + 1?", "answer": str(i + 1)} for i in range(30)]


def mirror(folder: Path, **sets: list[dict[str, object]]) -> Path:
    """A mirror of these sets (`__` is `-`)."""
    folder.mkdir(exist_ok=True)
    for name, rows in sets.items():
        (folder / f"{name.replace('__', '-')}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in folder.glob("*.jsonl")]
    (folder / "SHA256SUMS").write_text("".join(listed))
    return folder


def found(folder: Path, path: str, **changes: object) -> Found:
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    config = override(Config(), {"data.path": path, "data.mirror": str(folder)} | settings)
    return sources.questions(config, config.data, stage="evaluate")


def test_a_mirrored_set_is_read_whole(tmp_path: Path) -> None:
    taken = found(mirror(tmp_path, aime24=AIME), "paper:aime24")
    assert [question.answer for question in taken.questions] == [row["answer"] for row in AIME]


def test_a_part_of_a_set_is_refused_even_where_few_questions_are_wanted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="paper:aime24 has 30 rows, and here are 29"):
        found(mirror(tmp_path, aime24=AIME[1:]), "paper:aime24", data__limit=2)


def test_a_file_that_has_changed_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    folder = mirror(tmp_path, aime24=AIME)
    (folder / "aime24.jsonl").write_text((folder / "aime24.jsonl").read_text().replace('"30"', '"31"'))
    with pytest.raises(ConfigError, match=r"aime24.jsonl is [0-9a-f]{64} now in .*SHA256SUMS"):
        found(folder, "paper:aime24")
    (folder / "SHA256SUMS").write_text("")
    with pytest.raises(ConfigError, match=r"aime24.jsonl is not listed"):
        found(folder, "paper:aime24")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ConfigError, match=r"sha256sum"):
        found(folder, "paper:aime24")


def test_a_set_that_is_not_mirrored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no aime24.jsonl, aime24.parquet or folder aime24"):
        found(mirror(tmp_path), "paper:aime24")


def test_both_languages_of_livemathbench_are_one_set(tmp_path: Path) -> None:
    english = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(45)]
    chinese = [{"question": f"{i} + 2?", "answer": str(i + 2)} for i in range(42)]
    folder = mirror(tmp_path, livemathbench__hard__en=english, livemathbench__hard__cn=chinese)
    assert len(found(folder, "paper:livemathbench-hard").questions) == 87
    assert len(found(folder, "paper:livemathbench-hard-cn").questions) == 42


def test_of_math500_the_questions_of_other_levels_are_filtered_and_counted(tmp_path: Path) -> None:
    rows = [{"problem": f"{i} + 1?", "answer": str(i + 1), "level": 5 if i < 134 else 1} for i in range(500)]
    taken = found(mirror(tmp_path, math500=rows), "paper:math500-level5")
    assert len(taken.questions) == 134
    assert taken.figures()["filtered_reasons"] == {"level:1": 366}


def test_gpqa_asks_for_a_letter(tmp_path: Path) -> None:
    wrong = {f"Incorrect Answer {n}": f"w{n}" for n in (1, 2, 3)}
    rows: list[dict[str, object]] = [{"Question": f"{i}?", "Correct Answer": "r", **wrong} for i in range(198)]
    taken = found(mirror(tmp_path, gpqa__diamond=rows), "paper:gpqa-diamond", data__answers="choice", data__limit=2)
    assert [question.answer for question in taken.questions] == ["D", "C"]


def test_a_run_is_refused_before_its_first_step_if_a_later_ones_set_is_not_pinned(tmp_path: Path) -> None:
    steps = (Step(name="base", stage="base"), Step(name="evaluate", stage="evaluate", policy="base"))
    config = override(Config(steps=steps), {"evaluate.sets": {"aime": "paper:aime25"}})
    with pytest.raises(
        ConfigError, match=r"step 'evaluate', evaluate.sets.aime: .*data.revisions.opencompass/AIME2025"
    ):
        inputs.check(config, steps)
    inputs.check(override(config, {"data.revisions": {"opencompass/AIME2025": "abc"}}), steps)


def test_a_run_is_refused_before_its_first_step_if_a_later_one_probes_what_is_no_step() -> None:
    steps = (Step(name="base", stage="base"), Step(name="grpo", stage="grpo", policy="base"))
    config = override(Config(steps=steps), {"train.probe_every": 5, "train.probe_data": "verfy"})
    with pytest.raises(ConfigError, match=r"step 'grpo': train.probe_data='verfy' is no step of run 'run'"):
        inputs.check(config, steps)


def test_a_step_is_another_one_when_its_set_is(tmp_path: Path) -> None:
    def fingerprint(**settings: object) -> str:
        step = Step(name="generate", stage="generate")
        return inputs.fingerprints(contexts.context(tmp_path / "run", step, data__path="paper:aime24", **settings))[
            "data.path"
        ]

    folder = mirror(tmp_path / "mirror", aime24=AIME)
    pins = [fingerprint(data__revisions={"HuggingFaceH4/aime_2024": commit}) for commit in ("abc", "abd")]
    mirrored = fingerprint(data__mirror=str(folder))
    mirror(folder, aime24=[*AIME[1:], {"problem": "1?", "answer": "1"}])
    assert len({*pins, mirrored, fingerprint(data__mirror=str(folder))}) == 4
    assert fingerprint(data__revisions={"HuggingFaceH4/aime_2024": "abc", "other/set": "x"}) == pins[0]
