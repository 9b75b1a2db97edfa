"""`raml reproduce`: a list of commands, each of which stays done."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raml_ray import reproductions
from raml_ray.__main__ import main
from raml_ray.config import Config, Step, dump
from raml_ray.reproductions import REPRODUCTIONS, Part, Reproduction


def small(monkeypatch: pytest.MonkeyPatch, folder: Path, *parts: Part, quick: tuple[Part, ...] = ()) -> None:
    monkeypatch.setitem(REPRODUCTIONS, "small", lambda: Reproduction("for a test", parts, quick))


def preset(folder: Path, name: str) -> str:
    """A run of one step that makes a policy of random weights."""
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps({"problem": f"1 + {n}?", "answer": str(1 + n)}) + "\n" for n in range(8)))
    config = Config(name=name, root=str(folder / "runs"), steps=(Step(name="base", stage="base"),))
    tree = json.loads(dump(config))
    tree["base"] |= {"kind": "random", "hidden_size": 32, "num_layers": 1, "num_heads": 1, "intermediate_size": 32}
    tree["data"]["path"] = str(questions)
    tree["tracking"]["enabled"] = False
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree))
    return str(path)


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_part_of_every_reproduction_is_a_command_in_order(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", name, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("raml ")] == [part.line for part in reproductions.parts(name)]


def test_words_behind_the_name_hold_in_every_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = Part("run", ("smoke",), "a"), Part("ablate", ("smoke", "sft.num_trajectories=grid(1,2)"), "b")
    small(monkeypatch, tmp_path, *parts)
    assert main(["reproduce", "small", "seed=3", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "raml run smoke seed=3",
        "    a",
        "raml ablate smoke 'sft.num_trajectories=grid(1,2)' seed=3",
        "    b",
    ]


def test_a_part_that_does_not_fit_is_found_before_the_first_one_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch, tmp_path, Part("run", (preset(tmp_path, "first"),), "a"), Part("run", ("smoke", "sed=1"), "b"))
    assert main(["reproduce", "small"]) == 2
    assert "raml run smoke sed=1: no setting 'sed'; did you mean 'seed'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_names_and_quicker_ways_that_are_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch, tmp_path, Part("run", ("smoke",), "a"))
    assert main(["reproduce", "smal"]) == 2
    assert "did you mean 'small'?" in capsys.readouterr().err
    assert main(["reproduce", "small", "--quick"]) == 2
    assert "no quicker way" in capsys.readouterr().err


@pytest.mark.ray
def test_parts_are_run_in_order_and_what_is_finished_stays(
    cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = [preset(tmp_path, name) for name in ("first", "second", "third")]
    quick = (Part("run", (whole[2],), "c"),)
    small(monkeypatch, tmp_path, *(Part("run", (path,), "") for path in whole[:2]), quick=quick)
    assert main(["reproduce", "small", "base.vocab_size=261"]) == 0
    finished = {name: tmp_path / "runs" / name / "base" / "summary.json" for name in ("first", "second", "third")}
    assert finished["first"].stat().st_mtime_ns < finished["second"].stat().st_mtime_ns
    assert not finished["third"].exists()
    written = {name: path.read_bytes() for name, path in finished.items() if path.exists()}
    finished["second"].unlink()  # as a kill leaves it
    assert main(["reproduce", "small", "base.vocab_size=261"]) == 0
    assert finished["first"].read_bytes() == written["first"]
    assert finished["second"].exists()
    assert main(["reproduce", "small", "base.vocab_size=261", "--quick"]) == 0
    assert finished["third"].exists()


@pytest.mark.parametrize("words", [["run", "smoke"], ["ablate", "miniature_length"], ["reproduce", "miniature"]])
def test_ray_is_not_imported_before_what_it_reads_as_it_is_imported_is_set(words: list[str]) -> None:
    code = f"""if True:
        import sys
        from raml_ray import __main__, environment
        def prepare(address="local"):
            sys.exit(30 + ("ray" in sys.modules))
        environment.prepare = prepare
        __main__.main({words})
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 30
