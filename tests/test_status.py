"""How far a run is, as another shell reads it from the run's folder."""

import json
import os
import time
from pathlib import Path

import pytest

from raml_ray import __main__, progress_file, status
from raml_ray.config import Config, ConfigError, Step, dump
from raml_ray.metrics_file import progress_table, read_metrics
from raml_ray.stages import progress
from raml_ray.stages.pipeline import context_of
from raml_ray.stages.progress import Progress
from raml_ray.storage import SUMMARY, Folder

STEPS = tuple(Step(name=name, stage="generate") for name in ("done", "now", "stopped", "broken", "later"))


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "demo"))
    for name in ("done", "now", "stopped", "broken"):
        (folder / name).write_text("config.json", dump(Config(name="demo", root=str(tmp_path), steps=STEPS)))
    counts = {"rows_in": 9, "rows_out": 7, "rejected": 2, "filtered": 0}
    (folder / "done").write_json(SUMMARY, {"counts": counts, "seconds": {"total": 61.6}})
    told = {"done": 48, "total": 100, "rows_per_s": 4.0, "tokens_per_s": 250.4, "seconds_left": 13.0}
    progress_file.write(folder / "now", "now", "generate", "trajectories", told)
    progress_file.write(folder / "stopped", "stopped", "generate", "trajectories", {"done": 3, "total": 8})
    gone = progress_file.read(folder / "stopped") | {"started": "1"}  # its pid is another process's now
    (folder / "stopped").write_json(progress_file.PROGRESS, gone)
    (folder / "broken").write_text("failure.txt", "Traceback\nRuntimeError: no engine came up\n")
    return folder


def test_every_step_of_a_run_has_a_state_and_says_how_far_it_is(run: Folder) -> None:
    found = {row["step"]: (row["state"], row["detail"]) for row in status.steps(run)}
    assert found == {
        "done": ("finished", "7 rows, 2 rejected, 62 s"),
        "now": ("running", "48 of 100 trajectories, 4/s, 250 tokens/s, 13 s left"),
        "stopped": ("interrupted", "3 of 8 trajectories"),
        "broken": ("failed", "RuntimeError: no engine came up"),
        "later": ("waiting", ""),
    }


def test_the_command_takes_a_folder_or_a_preset_and_answers_as_a_table_or_as_json(
    run: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["status", run.path]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "done     generate  finished     7 rows, 2 rejected, 62 s"
    assert __main__.main(["status", "smoke", f"root={Path(run.path).parent}", "name=demo", "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)][:2] == ["finished", "running"]
    with pytest.raises(ConfigError, match="holds no run"):
        status.steps(run / "nothing")


def test_a_driver_on_another_host_is_alive_while_its_word_is_fresh() -> None:
    told = {"host": "another", "pid": os.getpid(), "started": "", "updated": time.time()}
    assert progress_file.is_alive(told)
    assert not progress_file.is_alive(told | {"updated": time.time() - 2 * progress_file.STALE_S})


def test_a_step_without_news_is_kept_fresh_and_what_it_said_last_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "REPORT_S", 0.01)
    monkeypatch.setattr(progress_file, "BEAT_S", 0.0)
    context = context_of(Config(steps=STEPS), STEPS[0], Folder(str(tmp_path)))
    with progress.shown(context):
        progress_file.write(context.folder, "done", "generate", "trajectories", {"done": 3, "total": 8})
        first = progress_file.read(context.folder)["updated"]
        deadline = time.monotonic() + 20
        while progress_file.read(context.folder)["updated"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
    told = progress_file.read(context.folder)
    assert told["updated"] > first and (told["done"], told["total"]) == (3, 8)


def test_rows_are_counted_with_those_of_earlier_attempts_and_told_in_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    folder = Folder(str(tmp_path))
    with Progress(folder, "generate", "generate", unit="trajectories", total=10**6, done=4) as rows:
        rows.add(2, tokens=20)
        rows.add(1, tokens=10)
    told = progress_file.read(folder)
    assert (told["done"], told["total"], told["tokens"], told["unit"]) == (7, 10**6, 30, "trajectories")
    assert told["seconds_left"] == pytest.approx((10**6 - 7) / told["rows_per_s"], rel=0.1)
    table = progress_table(read_metrics(folder))
    assert table["rows"] == [7.0] and set(table) == {"time", "rows", "rows_per_s", "tokens_per_s", "seconds_left"}


def test_nothing_finished_is_no_rate_and_no_forecast(tmp_path: Path) -> None:
    rows = Progress(Folder(str(tmp_path)), "verify", "verify", unit="verdicts", total=5)
    assert rows.figures()["seconds_left"] == -1 and rows.figures()["rows_per_s"] == 0
    assert progress_table([{"step": 1.0, "time": 2.0, "sft/loss": 3.0}]) == {}
