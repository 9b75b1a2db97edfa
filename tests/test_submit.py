"""Following a job: nothing is said twice, whatever becomes of the connection."""

import io
import os
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import requests
from ray.job_submission import JobStatus

from raml_ray import environment, submit
from raml_ray.__main__ import main
from raml_ray.config import ConfigError

ROOT = Path(__file__).parents[1]
LOG = "".join(f"line {number}\n" for number in range(10))


class Details:
    """What the job API says of a job."""

    def __init__(self, status: JobStatus, code: int) -> None:
        self.status, self.driver_exit_code, self.message = status, code, "why it ended"


class Past(Details):
    """What the job API says of a job among others."""

    def __init__(self, job: str, start_time: int, entrypoint: str, command: str = "") -> None:
        super().__init__(JobStatus.SUCCEEDED, 0)
        self.submission_id, self.job_id, self.start_time = job, None, start_time
        self.entrypoint, self.metadata = entrypoint, {"raml": command} if command else None


class Busy:
    """A cluster that has had these jobs."""

    def __init__(self, *jobs: Past) -> None:
        self._jobs = list(jobs)

    def list_jobs(self) -> list[Past]:
        return self._jobs


class Flaky:
    """A cluster whose connection breaks after so many characters, each time a different way, and then holds."""

    def __init__(self, breaks: list[tuple[int, Exception]], status: JobStatus, code: int) -> None:
        self._breaks, self._details, self.asked = breaks, Details(status, code), 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.asked += 1
        end, error = self._breaks.pop(0) if self._breaks else (len(LOG), None)
        for start in range(0, end, 7):
            yield LOG[start : min(start + 7, end)]
        if error:
            raise error

    def get_job_info(self, job: str) -> Any:
        if self._breaks:
            raise ConnectionError("no route to host")
        return self._details

    def get_job_logs(self, job: str) -> str:
        return LOG


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "RETRY_S", 0.0)


class Young:
    """A head that answers before it can start a job."""

    def __init__(self, *refusals: str) -> None:
        self._refusals = list(refusals)

    def submit_job(self, **named: object) -> str:
        if self._refusals:
            raise RuntimeError(self._refusals.pop(0))
        return f"job of {named['entrypoint']}"

    def drivers_place(self) -> dict[str, str]:
        return {}


def test_a_cluster_that_has_just_started_is_asked_again_and_any_other_refusal_is_told() -> None:
    not_yet = "Request failed with status code 500: No available agent to submit job, please try again later."
    young = Young(not_yet, not_yet)
    assert submit.start(young, ["run", "smoke"]) == "job of python -m raml_ray run smoke"  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no room"):
        submit.start(Young("no room"), ["run", "smoke"])  # type: ignore[arg-type]


class Packs(submit.Client):
    """Ray's client, as far as it packs a working directory; what it would send stays here."""

    sent: frozenset[str] = frozenset()

    def __init__(self) -> None:
        pass

    def submit_job(self, **named: Any) -> str:
        self._upload_working_dir_if_needed(named["runtime_env"])
        return "job"

    def drivers_place(self) -> dict[str, str]:
        return {}

    def _package_exists(self, package_uri: str) -> bool:
        return False

    def _do_request(self, method: str, endpoint: str, **named: Any) -> requests.Response:
        with zipfile.ZipFile(io.BytesIO(named["data"])) as package:
            self.sent = frozenset(name for name in package.namelist() if not name.endswith("/"))
        taken = requests.Response()
        taken.status_code = 200
        return taken


@pytest.mark.parametrize("has_gitignore", [True, False])
def test_code_and_questions_are_sent_and_results_weights_and_secrets_stay(tmp_path: Path, has_gitignore: bool) -> None:
    goes = {
        "my.json",
        "questions.jsonl",
        "questions.parquet",
        "jobs/run.py",
        "raml_ray/__init__.py",
        "tests/data/gsm8k/test.jsonl",
    }
    stays = {".git/config", ".venv/bin/raml", "raml_ray/__pycache__/cluster.pyc", "docs/figure.png", ".raml-token-4711"}
    stays |= {"runs/smoke/config.json", "mlflow.db", "torch-2.13.0.whl"}
    stays |= {f"policy/model.{ending}" for ending in ("safetensors", "bin", "pt", "pth", "gguf")}
    for name in goes | stays:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    os.truncate(tmp_path / "policy" / "model.bin", 2**30)  # of holes; more than Ray would take
    if has_gitignore:
        (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    client = Packs()
    submit.start(client, ["run", "smoke"], str(tmp_path))
    assert client.sent - {".gitignore"} == goes


def test_of_this_checkout_all_sources_jobs_and_the_slice_of_questions_are_sent() -> None:
    client = Packs()
    submit.start(client, ["run", "smoke"], str(ROOT))
    needed = [path for folder in ("raml_ray", "jobs", "tests/data/gsm8k") for path in (ROOT / folder).rglob("*.*")]
    names = {str(path.relative_to(ROOT)) for path in needed if path.is_file() and "__pycache__" not in path.parts}
    assert "raml_ray/stages/report.css" in names and names <= client.sent


@pytest.mark.parametrize(("status", "code"), [(JobStatus.SUCCEEDED, 0), (JobStatus.FAILED, 2), (JobStatus.FAILED, 143)])
def test_a_log_whose_connection_breaks_is_told_once_and_to_its_end(status: JobStatus, code: int) -> None:
    said: list[str] = []
    breaks: list[tuple[int, Exception]] = [(10, RuntimeError("closed")), (3, OSError("reset")), (45, TimeoutError())]
    cluster = Flaky(breaks, status, code)
    assert submit.follow(cluster, "job", said.append) == code  # type: ignore[arg-type]
    assert "".join(said) == LOG
    assert cluster.asked >= 3


def test_a_cluster_that_stays_away_is_given_up_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LOST_S", -1.0)
    cluster = Flaky([(3, OSError("reset"))] * 2, JobStatus.RUNNING, 0)
    with pytest.raises(RuntimeError, match="raml submit --follow job"):
        submit.follow(cluster, "job", lambda text: None)  # type: ignore[arg-type]


def test_jobs_are_listed_newest_first_in_the_words_they_were_sent_with_and_without_secrets() -> None:
    began = 1_000_000_000_000  # ms: 2001-09-09 01:46:40 UTC
    jobs = [
        Past("first", began, "python jobs/run.py smoke tracking.uri=http://me:hunter2@host"),
        Past("second", began + 60_000, "python -m raml_ray run smoke", "run smoke data.path=https://h/x?token=hunter2"),
    ]
    at = [time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) for seconds in (1_000_000_000, 1_000_000_060)]
    assert submit.listed(Busy(*jobs)) == (  # type: ignore[arg-type]
        f"second  SUCCEEDED  {at[1]}  raml run smoke data.path=https://h/x?token=***\n"
        f"first  SUCCEEDED  {at[0]}  python jobs/run.py smoke tracking.uri=http://***@host\n"
    )
    assert submit.listed(Busy()) == "no jobs\n"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        ["submit", "run", "smoke", "root=/x", "tracking.uri=http://me:hunter2@host"],
        ["submit", "run", "smoke", "root=s3://key:hunt/er2@bucket"],
        ["submit", "grpo", "smoke", "root=/x", "--step", "https://host/x?token=hunter2"],
        ["status", "smoke", "root=s3://key:hunt/er2@bucket"],
        ["doctor", "--cluster", "tracking.uri=http://me:hunter2@host"],
    ],
)
def test_a_secret_among_words_that_ray_would_show_is_refused_by_name_and_not_repeated(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], "--address", "http://127.0.0.1:1", *words[1:]]) == 2
    said = capsys.readouterr().err
    shown = words[-1].partition(":")[0]
    assert said.startswith(f"raml: {shown}") and "before `ray start`" in said
    assert "er2" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "smoke"], "root=runs is a folder of each host's own"),
        (["run", "smok", "root=/x"], "did you mean 'smoke'"),
        (["grpo", "smoke", "root=/x", "grpo.num_update=3"], "did you mean 'grpo.num_updated'"),
        (["run", "/elsewhere/config.json", "root=/x"], "not below the working directory"),
        (["reproduce", "miniature", "--quick"], "root=runs is a folder of each host's own"),
        (["reproduce", "miniature", "--quick", "root=/x", "grpo.num_update=3"], "did you mean 'grpo.num_updated'"),
        (["reproduce", "miniatur", "root=/x"], "did you mean 'miniature'"),
        (["reproduce", "miniature", "--quick", "root=/x", "seed=1"], "http://127.0.0.1:1 does not answer"),
        (["grpo", "smoke", "--step", "grpo_zero", "root=/x"], "http://127.0.0.1:1 does not answer"),
        (["doctor"], "only run, ablate, reproduce and stages"),
        ([], "give a command"),
    ],
)
def test_what_the_cluster_would_stumble_over_is_refused_here(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "4711")
    assert main(["submit", "--address", "http://127.0.0.1:1", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_address_that_was_given_is_asked_and_the_environment_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    before = dict(os.environ)
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1 does not answer \(.*127\.0\.0\.1:1"):
        submit.client("http://127.0.0.1:1")
    assert dict(os.environ) == before


def test_a_cluster_is_never_joined_without_saying_with_which_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    with pytest.raises(ConfigError, match="export RAY_AUTH_TOKEN"):
        environment.prepare("http://head:8265")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    environment.prepare()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
