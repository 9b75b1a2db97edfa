"""`raml` with `--address`: commands that are sent to a cluster and answered from there, and the doctor of either.

Nothing heavy is imported before the settings have been checked here.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from raml_ray import environment, presets, reproductions
from raml_ray.config import STAGES, Config, ConfigError, override, parse_assignments
from raml_ray.redacted import without_secrets


def add_submit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The words of `raml submit`."""
    command = commands.add_parser("submit", help="the same command on a cluster, followed from here")
    add_address(command)
    command.add_argument("--no-wait", action="store_true", help="start it and print the job's id")
    command.add_argument(
        "--follow", default="", metavar="JOB", help="no new command: the log of this one, from its start"
    )
    command.add_argument("command_words", nargs=argparse.REMAINDER, metavar="COMMAND PRESET [name=value]")


def add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The words of `raml doctor`."""
    command = commands.add_parser(
        "doctor", help="does this machine, or every node of a cluster, have what a run needs?"
    )
    command.add_argument("--cluster", action="store_true", help="look at every node of the cluster")
    add_address(command)
    command.add_argument("words", nargs="*", metavar="name=value")


def add_address(command: argparse.ArgumentParser) -> None:
    """The word that sends a command to a cluster."""
    command.add_argument("--address", default="", help="the cluster's job API, http://HEAD:8265")


def submit(options: argparse.Namespace, parsed: Callable[[Sequence[str]], argparse.Namespace]) -> int:
    """Start a command on a cluster and pass on what it says; its exit status. `parsed` reads words as `raml` does."""
    words = list(options.command_words)
    if bool(words) == bool(options.follow):
        raise ConfigError("raml submit: give a command (raml submit run miniature root=...), or --follow JOB")
    if words:
        _refuse_secrets(words)
        _check(parsed(words))
    environment.prepare(options.address or "cluster")
    from raml_ray import submit as jobs

    client = jobs.client(options.address)
    job = options.follow or jobs.start(client, words)
    if options.no_wait:
        sys.stdout.write(f"{job}\n")
        return 0
    sys.stderr.write(f"raml: following job {job}; it goes on without this command (raml submit --follow {job})\n")
    return jobs.follow(client, job, _say)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _refuse_secrets(words: Sequence[str]) -> None:
    """Ray shows a job's command on its dashboard, in its logs and to `ps`. Raises: ConfigError that names the setting."""
    for word in words:
        if (shown := without_secrets(word)) != word:
            raise ConfigError(
                f"{shown} carries a secret, and Ray shows a job's command to all who see its dashboard or logs: leave it"
                " out, and give it to the cluster's hosts in their environment (MLFLOW_TRACKING_URI, or"
                " MLFLOW_TRACKING_USERNAME and _PASSWORD; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; HF_TOKEN) before"
                " `ray start`"
            )


def _check(options: argparse.Namespace) -> None:
    """Refuse here, before anything is sent, what the cluster would stumble over. Raises: ConfigError."""
    if options.command not in ("run", "ablate", "reproduce", *STAGES):
        known = f"run, ablate, reproduce and stages ({', '.join(STAGES)})"
        raise ConfigError(f"raml submit {options.command}: only {known} are sent")
    parts = [(options.command, options.words)]
    if options.command == "reproduce":
        name, *more = options.words
        found = reproductions.parts(name, more, quick=options.quick, rehearse=options.rehearse)
        parts = [(part.command, list(part.words)) for part in found]
    for command, words in parts:
        _check_part(command, words)


def _check_part(command: str, words: Sequence[str]) -> None:
    preset = words[0]
    if preset.endswith(".json") and (Path(preset).is_absolute() or ".." in Path(preset).parts):
        raise ConfigError(f"{preset} is not below the working directory, which is all that is sent: copy it there")
    if command == "ablate":
        from raml_ray.stages import sweep

        config = override(presets.from_words([preset]), sweep.parsed(words[1:])[0])
    else:
        config = presets.from_words(list(words))
    from raml_ray import storage

    if not storage.is_url(config.root) and not Path(config.root).is_absolute():
        raise ConfigError(
            f"root={config.root} is a folder of each host's own: name one that all hosts share by its absolute path, or a"
            " URL"
        )


def doctor(options: argparse.Namespace) -> int:
    """Say what this machine, or a cluster, lacks."""
    config = override(Config(), parse_assignments(options.words))
    if options.address:
        return asked(options.address, ["doctor", "--cluster", *options.words])
    from raml_ray import doctor as of_machine

    if not options.cluster:
        if options.words:
            raise ConfigError("raml doctor: settings are looked at with --cluster alone")
        return of_machine.main(of_machine.examine())
    address = os.environ.get("RAY_ADDRESS") or config.cluster.address
    if address == "local":
        raise ConfigError(
            "raml doctor --cluster: which one? --address http://HEAD:8265, or cluster.address=auto on a node"
        )
    environment.prepare(address)
    from raml_ray import doctor_cluster

    return of_machine.main(doctor_cluster.examine(config))


def status(options: argparse.Namespace) -> int:
    """Say which jobs a cluster has, or how far a run is that lies where the cluster sees it."""
    if options.watch:
        raise ConfigError("raml status --address: a cluster answers once; leave out --watch")
    if options.words:
        return asked(options.address, ["status", *options.words, *(["--json"] if options.json else [])])
    environment.prepare(options.address)
    from raml_ray import submit as jobs

    sys.stdout.write(jobs.listed(jobs.client(options.address)))
    return 0


def asked(address: str, words: Sequence[str]) -> int:
    """Print what a command says on a cluster; its exit status. Raises: ConfigError if its words carry a secret."""
    _refuse_secrets(words)
    environment.prepare(address)
    from raml_ray import submit as jobs

    client = jobs.client(address)
    said, code = jobs.answer(client, jobs.start(client, words))
    sys.stdout.write(said)
    return code
