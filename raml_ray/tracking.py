"""MLflow, the only module that knows it: one run per step under one run per folder, sent by a thread of its own.

The step folder's metrics.jsonl is the source of truth. The thread follows it, and a tracking server that is slow or
down costs one warning: nothing here waits for the network but `close`, and that no longer than its timeout.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING

import fsspec

from raml_ray.config import Config, dump, fingerprint, flatten
from raml_ray.metrics_file import MetricsTail, progress_table
from raml_ray.provenance import git_revision, identity_of, mlflow_name, tracking_uri, version_tags
from raml_ray.redacted import without_secrets
from raml_ray.storage import Folder, absolute, is_url
from raml_ray.tracking_commands import Finish, Start, Status, TrialPlace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

logger = logging.getLogger(__name__)

POLL_S = 2.0
"""Time between two looks at metrics.jsonl, seconds."""
RETRY_S = 15.0
"""Time until a server that did not answer is asked again, seconds."""
QUEUE_SIZE, PARAM_CHARS, TAG_CHARS, METRICS_PER_BATCH, PARAMS_PER_BATCH = 256, 6000, 8000, 1000, 100
# Of MLflow's own client, which by default tries for four minutes; here the sender tries again, later.
CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its INFO lines are no events of a run
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# What a later attempt may mend; every other error is the request's own fault.
TRANSIENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


@dataclass(slots=True)
class _Live:
    """A run that the server knows and that is not finished."""

    run_id: str
    tail: MetricsTail
    resumed: bool
    sent: dict[str, set[int]] = field(default_factory=dict)
    """Training steps that the server holds, by metric: nothing is sent twice."""


class TrackedStep:
    """A started step; say how it ended."""

    def __init__(self, tracker: "Tracker", name: str) -> None:
        self._tracker, self._name = tracker, name

    def finish(self, status: Status, figures: Mapping[str, float], artifacts: Sequence[str]) -> None:
        """End the step's run with its figures (by dotted name) and copies of the files (or folders) given."""
        self._tracker._open.discard(self._name)
        self._tracker._put(Finish(self._name, status, dict(figures), list(artifacts)))
        if status != "FINISHED":
            self._tracker.status = status


class Tracker:
    """The MLflow run of a run's folder, with one child per step; does nothing where tracking.enabled is false.

    No method raises or waits for a server, except that `close` waits up to its timeout for what is not sent yet.
    """

    def __init__(self, config: Config, run_folder: Folder, trial: TrialPlace | None = None) -> None:
        """Of the run in that folder, or of one of its trials."""
        self.status: Status = "FINISHED"  # of the whole run, until a step says otherwise
        self.figures: Mapping[str, float] = {}
        """Of the whole run, sent as it is closed."""
        self._folder, self._seed = run_folder, str(config.seed)
        self._sender: _Sender | None = None
        self._open: set[str] = set()
        uri = tracking_uri(config)
        if uri is None:
            return
        self._sender = _Sender(uri, config.tracking.experiment, absolute(config.root))
        text = without_secrets(dump(config)) + "\n"
        tags = {"raml.run": f"{config.name}@{fingerprint(config)}", "raml.seed": self._seed} | version_tags()
        if trial is None:
            self._put(Start("", run_folder, flatten(config), tags, config=text))
        else:
            self._put(Start("", trial.folder, dict(trial.values), tags, config=text, parent=run_folder))
        self._sender.start()

    def start_step(self, name: str, stage: str, params: Mapping[str, object], tags: Mapping[str, str]) -> TrackedStep:
        """Begin (or continue) the step's run, and follow the metrics.jsonl of its folder."""
        self._open.add(name)
        own = {"raml.step": name, "raml.stage": stage, "raml.seed": self._seed}
        self._put(Start(name, self._folder / name, dict(params), own | version_tags() | dict(tags)))
        return TrackedStep(self, name)

    def close(self, timeout: float = 20.0) -> None:
        """Send what is left and end the whole run, and as KILLED the steps that are under way; after `timeout` seconds
        leave the rest to metrics.jsonl."""
        if self._sender is None:
            return
        for name in list(self._open):
            TrackedStep(self, name).finish("KILLED", {}, [])
        self._put(Finish("", self.status, self.figures, []))
        self._sender.closing.set()
        self._sender.join(timeout)
        if self._sender.is_alive():
            self._sender.abandoned.set()
            logger.warning("MLflow did not take everything within %.0f s; metrics.jsonl holds all", timeout)
        self._sender = None

    def _put(self, command: Start | Finish) -> None:
        if self._sender is not None:
            self._sender.put(command)


class _Sender(threading.Thread):
    """Does what it is told in that order, and between commands sends new metrics. Owns the client."""

    def __init__(self, uri: str, experiment: str, root: str) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.closing, self.abandoned = threading.Event(), threading.Event()
        self._uri, self._experiment = uri, experiment
        # Of a database without a server; MLflow's own default is the present directory.
        local = f"{root}/mlflow-artifacts" if is_url(root) else Path(root, "mlflow-artifacts").as_uri()
        self._artifact_root = local if uri.startswith("sqlite:") else None
        self._commands: Queue[Start | Finish] = Queue(QUEUE_SIZE)
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._live: dict[str, _Live] = {}
        self._warned = False

    def put(self, command: Start | Finish) -> None:
        try:
            self._commands.put_nowait(command)
        except Full:
            self._warn("its queue is full")

    def run(self) -> None:
        os.environ |= {name: os.environ.get(name, value) for name, value in CLIENT_ENVIRONMENT.items()}
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        command: Start | Finish | None = None
        while True:
            try:
                command = command or self._commands.get(timeout=0 if self.closing.is_set() else POLL_S)
            except Empty:
                if self.closing.is_set():
                    return
            try:
                self._execute(command)
                command = None
            except (MlflowException, SQLAlchemyError, OSError) as error:
                if isinstance(error, MlflowException) and error.error_code not in TRANSIENT:
                    logger.warning("MLflow refused: %s", without_secrets(str(error)))
                    command = None
                    continue
                self._warn(f"{type(error).__name__}: {error}")
                if self._gives_up():
                    return

    def _gives_up(self) -> bool:
        """Wait for the next attempt; once closing, only a server that has answered before gets one."""
        if not self.closing.is_set():
            self.closing.wait(RETRY_S)
            return False
        return self._client is None or self.abandoned.wait(1.0)

    def _warn(self, cause: str) -> None:
        if not self._warned:
            self._warned = True
            where, why = without_secrets(self._uri), without_secrets(cause)[:300]
            logger.warning("MLflow at %s: %s; going on without, metrics.jsonl holds all", where, why)

    def _execute(self, command: Start | Finish | None) -> None:
        client = self._connected()
        if isinstance(command, Start):
            self._start(client, command)
        elif isinstance(command, Finish):
            self._finish(client, command)
        else:
            for live in self._live.values():
                self._send_metrics(client, live)

    def _connected(self) -> "MlflowClient":
        """The client, once the experiment is found or made."""
        if self._client is None:
            from mlflow import MlflowClient

            if self._uri.startswith("sqlite:///"):
                Path(self._uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            client, name = MlflowClient(self._uri), self._experiment
            found = client.get_experiment_by_name(name)
            self._experiment_id = found.experiment_id if found else client.create_experiment(name, self._artifact_root)
            self._client = client
        return self._client

    def _start(self, client: "MlflowClient", command: Start) -> None:
        from mlflow.entities import Param, RunTag

        identity = identity_of(command.folder)
        own = {"raml.folder": identity}
        if command.step and "" in self._live:
            own["mlflow.parentRunId"] = self._live[""].run_id
        found = self._run_of(client, command.folder)
        if command.parent and (whole := self._run_of(client, command.parent)):
            own["mlflow.parentRunId"] = whole[0].info.run_id
        run = (
            found[0]
            if found
            else client.create_run(self._experiment_id, None, own, command.step or command.folder.name)
        )
        live = _Live(run.info.run_id, MetricsTail(command.folder), resumed=bool(found))
        if found:
            client.update_run(live.run_id, "RUNNING")
        params = {mlflow_name(k): without_secrets(str(v))[:PARAM_CHARS] for k, v in command.params.items()}
        missing = [Param(name, value) for name, value in params.items() if name not in run.data.params]
        for start in range(0, len(missing), PARAMS_PER_BATCH):
            client.log_batch(live.run_id, params=missing[start : start + PARAMS_PER_BATCH])
        tags = dict(command.tags) | git_revision()
        client.log_batch(live.run_id, tags=[RunTag(mlflow_name(k), v[:TAG_CHARS]) for k, v in tags.items()])
        if command.config:
            client.log_text(live.run_id, command.config, "config.json")
        self._live[command.step] = live

    def _run_of(self, client: "MlflowClient", folder: Folder) -> "Sequence[Run]":
        """The run that belongs to a folder, if there is one yet."""
        wanted = f"tags.`raml.folder` = '{identity_of(folder)}'"
        return list(client.search_runs([self._experiment_id], wanted, max_results=1))

    def _send_metrics(self, client: "MlflowClient", live: _Live) -> None:
        """Send what metrics.jsonl holds and the server does not."""
        from mlflow.entities import Metric

        batch, rows = [], live.tail.read()
        for row in rows:
            step, milliseconds = int(row["step"]), int(row["time"] * 1000)
            for name in row.keys() - {"step", "time"}:
                if step not in self._held(client, live, mlflow_name(name)):
                    batch.append(Metric(mlflow_name(name), row[name], milliseconds, step))
        _log(client, live.run_id, batch)
        for metric in batch:
            live.sent[metric.key].add(metric.step)
        new = {metric.step for metric in batch}
        if table := progress_table(row for row in rows if row["step"] in new):
            client.log_table(live.run_id, table, "progress.json")
        live.tail.advance()

    def _held(self, client: "MlflowClient", live: _Live, name: str) -> set[int]:
        """Training steps for which the server has the metric."""
        if name not in live.sent:
            history = client.get_metric_history(live.run_id, name) if live.resumed else []
            live.sent[name] = {metric.step for metric in history}
        return live.sent[name]

    def _finish(self, client: "MlflowClient", command: Finish) -> None:
        from mlflow.entities import Metric

        live = self._live.get(command.step)
        if live is None:
            return  # its start was refused, and that was said
        self._send_metrics(client, live)
        figures = [Metric(mlflow_name(name), value, command.milliseconds, 0) for name, value in command.figures.items()]
        _log(client, live.run_id, figures)
        for path in command.artifacts:
            _send_artifact(client, live.run_id, path)
        client.set_terminated(live.run_id, command.status)
        del self._live[command.step]


def _log(client: "MlflowClient", run_id: str, metrics: "Sequence[Metric]") -> None:
    for start in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_BATCH])


def _send_artifact(client: "MlflowClient", run_id: str, path: str) -> None:
    local = fsspec.open_local(f"simplecache::{path}", simplecache={"same_names": True}) if is_url(path) else path
    if os.path.exists(local):
        client.log_artifact(run_id, local)
    else:
        logger.warning("MLflow: no artifact %s", path)
