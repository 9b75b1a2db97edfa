"""The batch script under Slurm itself: a controller and two machines as hosts of their own, real runs, their exit statuses.

Needs root and `apt-get install slurm-wlm munge`; nothing of the machine's own Slurm, if it has one, is touched.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from raml_ray import presets
from raml_ray.config import Step, dump, override
from tests.faults import hosts
from tests.faults.hosts import Host, waited_for

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(7200)]

ROOT = Path(__file__).parents[2]
MACHINES = ("one", "two")
CONFIGURATION = """
ClusterName=raml
SlurmctldHost=control
SlurmUser=root
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
ReturnToService=2
FirstJobId={first_job}
NodeName={machines} CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""
PATIENCE_S = 2400.0
VERSIONS = 5
NUM_JOBS = 3


class Slurm(NamedTuple):
    """Where `sbatch` is typed, in which folder, with what environment."""

    control: Host
    clone: Path
    environment: dict[str, str]
    root: Path

    def submitted(self, words: str, said: Path, options: str = "") -> "subprocess.Popen[str]":
        """The command of docs/deploy.md; its status is the job's."""
        command = f"sbatch --wait --nodes=2 {options} --output={said} deploy/slurm/raml.sbatch {words} root={self.root}"
        return self.control.start(f"cd {self.clone} && {command}", self.environment, said.with_suffix(".sbatch"))

    def tokens(self) -> list[Path]:
        return list(self.clone.glob(".raml-token*"))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        pytest.skip("no Slurm here; type: sudo apt-get install slurm-wlm munge")
    if why := hosts.missing():
        pytest.skip(f"no network namespaces: {why}")
    folder = tmp_path_factory.mktemp("slurm")
    clone, root = folder / "clone", folder / "runs"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    root.mkdir()
    (folder / "munge").mkdir(mode=0o711)
    (folder / "munge" / "key").write_bytes(os.urandom(64))
    (folder / "munge" / "key").chmod(0o600)
    cpus = os.cpu_count() or 1
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, machines=",".join(MACHINES), cpus=cpus, first_job=os.getpid())
    )
    munge = {name: f"--{name}={folder}/munge/{name}" for name in ("socket", "pid-file", "log-file", "seed-file")}
    command = ["munged", "--foreground", "--force", f"--key-file={folder}/munge/key", *munge.values()]
    munged = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "RAY_raylet_start_wait_time_s": "500",
        "RAY_agent_register_timeout_ms": "500000",
    }
    try:
        with hosts.behind_one_switch(["control", *MACHINES], folder) as found:
            found["control"].start("slurmctld -D", environment, folder / "control.out")
            for name in MACHINES:
                found[name].start(f"slurmd -D -N {name}", environment, folder / f"{name}.out")

            def are_idle() -> bool:
                told = found["control"].run("sinfo --noheader --format=%D.%t || true", environment, 60).stdout
                return told == f"{len(MACHINES)}.idle\n"

            waited_for("machines that are idle", are_idle, 120)
            yield Slurm(found["control"], clone, environment, root)
    finally:
        munged.terminate()
        munged.wait()
        for job in range(NUM_JOBS):
            shutil.rmtree(f"/tmp/ray-{os.getpid() + job}", ignore_errors=True)


def test_a_run_that_fails_gives_the_job_its_status(slurm: Slurm, tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert slurm.submitted("run smoke grpo.nonsense=1", said).wait(PATIENCE_S) == 2, said.read_text()
    assert "Ray on 2 machines, its head on one" in said.read_text()
    assert "nonsense" in said.read_text()
    assert slurm.tokens() == [], "the token goes with its job"


def test_a_run_that_is_told_that_its_time_is_up_saves_and_goes_on_when_sent_again(slurm: Slurm, tmp_path: Path) -> None:
    small = override(presets.smoke(), {"grpo.num_steps": VERSIONS, "train.probe_every": 0, "tracking.enabled": False})
    steps = (Step(name="base", stage="base"), Step(name="grpo", stage="grpo", policy="base"))
    (slurm.root / "small.json").write_text(dump(small.model_copy(update={"steps": steps})))
    words, run = f"run {slurm.root}/small.json", slurm.root / "smoke"
    began = time.monotonic()
    job = slurm.submitted(words, tmp_path / "first")

    def is_learning() -> bool:
        assert job.poll() is None, (tmp_path / "first").read_text()[-5000:]
        return (run / "grpo" / "metrics.jsonl").exists()

    waited_for("first version", is_learning, PATIENCE_S)
    there = psutil.process_iter(["name", "cmdline"])  # a zombie has no words, and says so by None
    raylets = [process for process in there if "raylet" in process.info["name"]]
    of_job = [process for process in raylets if any("/tmp/ray-" in word for word in process.info["cmdline"] or ())]
    assert [len(process.cpu_affinity()) for process in of_job] == [os.cpu_count()] * 2, "a node is bound to fewer cores"
    [token] = slurm.tokens()
    assert token.stat().st_mode & 0o777 == 0o600
    secret = token.read_bytes()
    slurm.control.run("scancel --batch --signal=TERM --name=raml", slurm.environment, 60)
    assert job.wait(PATIENCE_S) == 128 + signal.SIGTERM, (tmp_path / "first").read_text()[-5000:]
    saved = len((run / "grpo" / "metrics.jsonl").read_text().splitlines())
    assert 0 < saved < VERSIONS and not (run / "grpo" / "summary.json").exists()

    assert slurm.submitted(words, tmp_path / "second").wait(PATIENCE_S) == 0, (tmp_path / "second").read_text()[-5000:]
    print(f"\nsubmitted, ended and sent again: {time.monotonic() - began:.0f} s")
    figures = json.loads((run / "grpo" / "summary.json").read_text())["figures"]
    assert figures["grpo/versions"] == VERSIONS and figures["grpo/resumed_from_version"] >= saved
    assert slurm.tokens() == []
    holders = [
        path for path in (*tmp_path.iterdir(), *run.rglob("*")) if path.is_file() and secret in path.read_bytes()
    ]
    assert holders == [], "the token stands in a file of the run"
