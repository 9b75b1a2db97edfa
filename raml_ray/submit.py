"""Commands that run on a cluster: sent over Ray's job API with the code, and followed from here.

The command's driver runs on the cluster. This process, its machine and the connection may go; what was started goes on.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from raml_ray.config import ConfigError
from raml_ray.redacted import without_secrets

EXCLUDED = [
    *(".git", ".venv", "__pycache__", "runs", "docs", ".raml-token*"),
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.db", "*.whl"),
]
"""Of the working directory what no job needs, beside what its .gitignore names. Policies come from `policy.path`, tables of
trajectories and questions from a root or a store that all nodes see."""
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Where Ray looks for one, whatever it was told."""
STARTED = "Running entrypoint for job "
"""Ray's last line in a job's log before the job's own."""
ANSWERS_S = 20.0
"""A cluster that is there has answered by then."""
QUIET_S = 20.0
"""A job that says nothing for so long is asked whether it still runs: a lost connection is silent, too."""
RETRY_S = 3.0
STARTS_S = 120.0
"""A cluster that answers takes jobs by then: the head's agent comes up after what lists them."""
NOT_YET = "No available agent"
"""In Ray's words until then."""
LOST_S = 3600.0
"""So long a cluster that does not answer is asked again."""

Say = Callable[[str], None]


class Client(JobSubmissionClient):
    """Ray's client, which would wait for an answer for ever where the connection is cut while it waits."""

    def _do_request(self, method: str, endpoint: str, **named: Any) -> requests.Response:
        answer: requests.Response = super()._do_request(method, endpoint, **({"timeout": ANSWERS_S} | named))
        return answer

    def drivers_place(self) -> dict[str, str]:
        """The label selector that keeps a driver off a head without CPUs, where Ray would put it; else empty.

        No CPUs are asked for the driver: a cluster that a run fills must still answer `raml status`.

        Raises: RuntimeError if the cluster does not say which node is its head.
        """
        try:
            heads = list_nodes(
                self.get_address(),
                filters=[("is_head_node", "=", True), ("state", "=", "ALIVE")],
                timeout=round(ANSWERS_S),
            )
        except RayStateApiException as error:
            raise RuntimeError(f"the cluster does not tell its nodes: {_first_line(error)}") from None
        without_cpus = [head.node_id for head in heads if not (head.resources_total or {}).get("CPU")]
        return {"ray.io/node-id": f"!{without_cpus[0]}"} if without_cpus else {}


def client(address: str) -> Client:
    """A connection to the cluster's job API, `http://HEAD:8265`; an empty address is what RAY_API_SERVER_ADDRESS says.

    Raises: ConfigError if there is none, or it does not let us in.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address {address!r} is no cluster: give --address http://HEAD:8265, or export RAY_API_SERVER_ADDRESS"
        )
    for handler in logging.getLogger("ray").handlers:  # every step of the upload is told at length
        handler.setLevel(logging.ERROR)
    try:
        with _no_other_cluster():
            return Client(address)
    except AuthenticationError as error:
        raise ConfigError(f"{address} refuses this token: {_first_line(error)}") from None
    except (ConnectionError, requests.RequestException) as error:
        raise ConfigError(f"{address} does not answer ({_first_line(error)}): is the head node up?") from None


@contextlib.contextmanager
def _no_other_cluster() -> Iterator[None]:
    """Ray's client puts what the environment says in the place of the address that it is given."""
    set_aside = {name: os.environ.pop(name) for name in ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(set_aside)


def start(to: Client, words: Sequence[str], working_dir: str = ".") -> str:
    """Start `raml WORDS...` on the cluster, in a copy of the working directory, and return the job's id.

    The driver runs on the head, unless the head has no CPUs: then on a node that is not the head.

    Raises: ValueError, in Ray's words, if the working directory holds more than Ray takes; RuntimeError, in Ray's words, if
    the cluster does not take it.
    """
    environment = {"working_dir": working_dir, "excludes": EXCLUDED, "env_vars": {"PYTHONUNBUFFERED": "1"}}
    command = shlex.join(words)
    deadline = time.monotonic() + STARTS_S
    while True:
        try:
            return str(
                to.submit_job(
                    entrypoint=f"python -m raml_ray {command}",
                    runtime_env=environment,
                    metadata={"raml": command},
                    entrypoint_label_selector=to.drivers_place(),
                )
            )
        except RuntimeError as error:
            if NOT_YET not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)


def answer(of: Client, job: str) -> tuple[str, int]:
    """What a job has printed, when it has ended, without what Ray says of its start; and its exit status."""
    pieces: list[str] = []
    status = follow(of, job, pieces.append)
    said = "".join(pieces)
    return said.partition(f"{STARTED}{job}")[2].partition(os.linesep)[2] or said, status


def follow(of: Client, job: str, say: Say) -> int:
    """Pass the job's log on to `say` until it ends; its exit status. A lost connection is made again, and nothing is
    said twice.

    Raises: RuntimeError if the cluster has not answered for LOST_S seconds, or does not know the job.
    """
    return asyncio.run(_followed(of, job, say))


async def _followed(of: Client, job: str, say: Say) -> int:
    shown, lost = 0, 0.0
    while True:
        try:
            async for text, end in _texts(of, job):
                say(text[max(0, shown - (end - len(text))) :])
                shown, lost = max(shown, end), 0.0
            details = await asyncio.to_thread(of.get_job_info, job)
            lost = 0.0
            if details.status.is_terminal():
                text = await asyncio.to_thread(of.get_job_logs, job)
                say(text[shown:])
                if details.status != JobStatus.SUCCEEDED:
                    sys.stderr.write(f"raml: job {job} {details.status.value}: {_first_line(details.message or '')}\n")
                return _exit_status(details)
        except (OSError, aiohttp.ClientError, requests.RequestException) as error:
            now = time.monotonic()
            if not lost:
                sys.stderr.write(f"raml: connection lost ({_first_line(error)}); the job goes on, and is looked for\n")
                lost = now
            if now - lost > LOST_S:
                raise RuntimeError(
                    f"the cluster has not answered for {LOST_S:g} s; once it does: raml submit --follow {job}"
                ) from None
        await asyncio.sleep(RETRY_S)


async def _texts(of: Client, job: str) -> Any:
    """Pieces of the job's log from its beginning, each with the number of characters up to its end.

    Ends with the log, after QUIET_S seconds without a word, or with the connection.
    """
    end, stream = 0, of.tail_job_logs(job)
    # RuntimeError: Ray's word for a connection that broke.
    with contextlib.suppress(TimeoutError, StopAsyncIteration, RuntimeError):
        while True:
            text = await asyncio.wait_for(anext(stream), QUIET_S)
            end += len(text)
            yield text, end


def _exit_status(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return int(details.driver_exit_code or 1)


def listed(of: Client) -> str:
    """The cluster's jobs, newest first: id, state, when it was started, command without secrets."""
    lines = []
    for details in sorted(of.list_jobs(), key=lambda one: one.start_time or 0, reverse=True):
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime((details.start_time or 0) / 1000))
        command = (details.metadata or {}).get("raml")
        said = without_secrets(f"raml {command}" if command else details.entrypoint)
        lines.append(f"{details.submission_id or details.job_id}  {details.status.value:<9}  {began}  {said}\n")
    return "".join(lines) or "no jobs\n"


def _first_line(told: object) -> str:
    return without_secrets(str(told).strip().partition(os.linesep)[0])
