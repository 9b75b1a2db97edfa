"""Who may import whom, and how long a file may get."""

import ast
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raml_ray import presets
from raml_ray.config import STAGES

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.py"))
PACKAGE = ROOT / "raml_ray"
MOST_LINES, MOST_FUNCTION_LINES = 300, 60

LAYERS = {
    "formulas": {"formulas"},
    "records": set(),
    "settings": set(),
    "recipes": {"settings"},
    "faults": set(),
    "stopping": {"storage"},
    "checks": {"settings", "faults", "published"},
    "checks_instruments": {"settings"},
    "config": {"settings", "checks", "checks_instruments", "published"},
    "published": set(),
    "presets": {"config", "presets_miniature", "presets_sweeps", "presets_paper", "presets_figures", "presets_between"},
    "presets_miniature": {"config"},
    "presets_sweeps": {"config", "presets_miniature"},
    "presets_between": {"config", "text"},
    "presets_paper": {"config", "text", "paper_choices"},
    "presets_figures": {"config", "text", "paper_choices", "presets_paper"},
    "paper_choices": {"text"},
    "rehearsal": {"config", "text"},
    "showing": {"config", "settings", "paper_choices", "presets", "formulas", "stages"},
    "reproductions": {"config"},
    "environment": {"config"},
    "storage": {"records", "config"},
    "policy_source": {"config", "records", "storage"},
    "metrics_file": {"storage"},
    "progress_file": {"storage"},
    "status": {"config", "storage", "progress_file"},
    "text": {"text", "records", "settings", "config"},
    "miniature": {"miniature", "records", "settings", "config"},
    "workers": {
        "workers",
        "formulas",
        "text",
        "miniature",
        "records",
        "settings",
        "config",
        "recipes",
        "faults",
        "storage",
    },
    "cluster": {"config", "storage"},
    "submit": {"config", "redacted"},
    "on_cluster": {
        "config",
        "doctor",
        "doctor_cluster",
        "environment",
        "presets",
        "redacted",
        "reproductions",
        "stages",
        "storage",
        "submit",
    },
    "redacted": set(),
    "provenance": {"config", "storage", "redacted"},
    "tracking_commands": {"storage"},
    "tracking": {"config", "storage", "metrics_file", "provenance", "redacted", "tracking_commands"},
    "stages": {
        "stages",
        "cluster",
        "tracking",
        "tracking_commands",
        "workers",
        "formulas",
        "text",
        "miniature",
        "config",
        "recipes",
        "settings",
        "records",
        "policy_source",
        "storage",
        "metrics_file",
        "progress_file",
        "provenance",
        "redacted",
        "memory",
        "faults",
        "stopping",
        "published",
    },
    "doctor_cluster": {"cluster", "config", "doctor", "provenance", "storage"},
    "doctor": {"cluster", "config", "environment", "storage", "tracking", "provenance", "redacted", "workers"},
    "__main__": {
        "presets",
        "showing",
        "rehearsal",
        "reproductions",
        "redacted",
        "environment",
        "config",
        "settings",
        "stages",
        "status",
        "storage",
        "tracking",
        "on_cluster",
        "ui",
    },
    "memory": set(),
    "ui": {"config", "storage", "tracking", "provenance", "redacted"},
    "__init__": set(),
}
"""A module, or all modules of a package -> what of ours it may import."""

ONLY_IN = {
    "ray": ("cluster.py", "submit.py", "stages/", "doctor.py", "doctor_cluster.py"),
    "mlflow": ("tracking.py",),
    "vllm": ("workers/engine",),
    "deepspeed": ("workers/sharding_deepspeed.py",),
    "peft": ("workers/lora.py",),
    "matplotlib": ("stages/report",),
    "math_verify": ("text/equality.py", "text/paper_judge.py"),
    "datasets": ("stages/sources.py",),
}

LONGER_FILES = {
    "settings.py": "one list of every setting with its meaning: to be read as one page",
}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), path, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "raml_ray":
                yield from (f"raml_ray.{alias.name}" for alias in node.names)


def test_layers_import_only_what_lies_below_them() -> None:
    wrong = []
    for name, _, tree in modules():
        layer = name.split("/")[0].removesuffix(".py")
        for module in imported(tree):
            parts = module.split(".")
            if (
                parts[0] == "raml_ray"
                and len(parts) > 1
                and parts[1] != "__version__"
                and parts[1] not in LAYERS[layer]
            ):
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_a_library_is_imported_in_its_place_alone() -> None:
    wrong = [
        f"{name} imports {module}"
        for name, _, tree in modules()
        for module in imported(tree)
        if (places := ONLY_IN.get(module.split(".")[0])) and not name.startswith(places)
    ]
    assert wrong == []


def test_the_formulas_need_torch_and_numpy_alone() -> None:
    code = (
        "import sys, pkgutil, importlib, raml_ray.formulas as f\n"
        "for m in pkgutil.iter_modules(f.__path__): importlib.import_module(f'raml_ray.formulas.{m.name}')\n"
        "heavy = {'ray', 'vllm', 'mlflow', 'transformers', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_and_functions_keep_to_their_budget() -> None:
    wrong = []
    for name, path, tree in modules():
        lines = len(path.read_text().splitlines())
        if lines > MOST_LINES and name not in LONGER_FILES:
            wrong.append(f"{name} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MOST_FUNCTION_LINES:
                    wrong.append(f"{name}: {node.name} has {length} lines")
    assert wrong == []


def test_no_file_is_named_after_nothing() -> None:
    assert [
        name for name, _, _ in modules() if Path(name).stem in {"utils", "common", "misc", "helpers", "base_utils"}
    ] == []


def test_jobs_hold_no_logic() -> None:
    for job in JOBS:
        assert len(job.read_text().splitlines()) <= 25, job


def test_every_command_that_is_sent_to_clusters_has_a_job() -> None:
    assert {job.stem for job in JOBS} == {"run", "ablate", "reproduce", *STAGES}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_a_job_is_the_command_of_its_name(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `ray job submit -- python jobs/NAME.py WORDS` runs it, as far as a dry run goes."""
    words, steps = ["smoke", "seed=1"], presets.from_words(["smoke"]).steps
    said = "".join(f"{step.name:<18} {step.stage}\n" for step in steps if job.stem in ("run", step.stage))
    if job.stem == "ablate":
        words, said = ["smoke", "seed=range(2)"], "2 trials, "
    elif job.stem == "reproduce":
        words, said = ["miniature", "--quick"], "raml ablate miniature_reproduction_quick\n"
    monkeypatch.setattr(sys, "argv", [str(job), *words, "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert said and (told.startswith(said) if job.stem in ("ablate", "reproduce") else told == said)
