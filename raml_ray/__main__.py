"""The command line: `raml run PRESET`, `raml STAGE PRESET name=value …`, `raml submit`, `raml status|show|ui|doctor`."""

import argparse
import json
import logging
import os
import sys
import time
import webbrowser
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from raml_ray import __version__, environment, on_cluster, presets, rehearsal, reproductions, showing
from raml_ray.config import STAGES, Config, ConfigError, Stage, dump, override
from raml_ray.redacted import without_secrets

logger = logging.getLogger("raml_ray")

EPILOG = """\
PRESET is one of: {presets}; or the path of a config.json that a run left behind.
Every setting has one dotted name: raml run miniature seed=1 grpo.num_updated=8
  raml show PRESET      prints them all, raml show PRESET --describe with what they mean
"""


def parser() -> argparse.ArgumentParser:
    """The words that `raml` understands."""
    root = argparse.ArgumentParser(
        prog="raml",
        description="LLM reasoning as meta-learning, on Ray.",
        epilog=EPILOG.format(presets=", ".join(presets.PRESETS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words in {"run": "all steps of a preset, in order, from where they stopped"}.items():
        _add_run(commands.add_parser(name, help=words))
    for stage in STAGES:
        _add_run(commands.add_parser(stage, help=f"only the steps of stage {stage}"))
    ablate = commands.add_parser(
        "ablate", help="every combination of settings given as NAME=grid(1,2,4) or NAME=range(3)"
    )
    ablate.add_argument("words", nargs="+", metavar="PRESET [name=value] NAME=grid(...)")
    ablate.add_argument("--dry-run", action="store_true", help="print the trials and their steps, and stop")
    reproduce = commands.add_parser("reproduce", help="all that a reproduction runs, from where it stopped")
    reproduce.add_argument(
        "words",
        nargs="+",
        metavar="NAME [name=value]",
        help=f"NAME is one of: {', '.join(reproductions.REPRODUCTIONS)}",
    )
    reproduce.add_argument("--quick", action="store_true", help="the quicker way, where there is one")
    reproduce.add_argument(
        "--rehearse", action="store_true", help="on this machine, with random weights and short lengths (rehearsal.py)"
    )
    reproduce.add_argument("--dry-run", action="store_true", help="print the commands that it stands for, and stop")
    on_cluster.add_submit(commands)
    status = commands.add_parser("status", help="how far a run is, from any shell that sees its folder, or a cluster")
    on_cluster.add_address(status)
    status.add_argument("words", nargs="*", metavar="FOLDER | PRESET [name=value]")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument("--watch", action="store_true", help="again every two seconds, until it is interrupted")
    plan = commands.add_parser("plan", help="what a preset will take: steps, memory, tokens, hours, storage")
    plan.add_argument("words", nargs="+", metavar="PRESET [name=value]")
    plan.add_argument(
        "--gpus", default="8xH100", metavar="NxNAME", help="devices that it is to run on (default 8xH100)"
    )
    plan.add_argument("--response", type=float, default=0.5, help="mean over longest response (default 0.5)")
    show = commands.add_parser("show", help="print a preset's settings as JSON")
    show.add_argument("words", nargs="+", metavar="PRESET [name=value]")
    show.add_argument(
        "--unstated",
        action="store_true",
        help="of a preset of the paper: what the paper does not state, and why it is so",
    )
    show.add_argument("--describe", action="store_true", help="one line per setting, with what it means")
    ui = commands.add_parser("ui", help="MLflow's pages on this machine's runs")
    ui.add_argument("words", nargs="*", metavar="PRESET [name=value]")
    ui.add_argument("--port", type=int, default=5000)
    on_cluster.add_doctor(commands)
    return root


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("words", nargs="+", metavar="PRESET [name=value]")
    command.add_argument("--step", default="", help="only the step of this name")
    command.add_argument(
        "--redo", action="append", default=[], metavar="STEP", help="start a step anew, and what builds on it"
    )
    command.add_argument("--dry-run", action="store_true", help="print the steps and stop")


class _WithoutSecrets(logging.Formatter):
    """Lines without the passwords that addresses in them carry."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 2 for a setting to correct, 1 for a step that failed, 130 after Ctrl-C.

    Raises: SystemExit(143) after SIGTERM.
    """
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_WithoutSecrets("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("raml_ray").setLevel(logging.INFO)
    options = parsed(arguments)
    try:
        return _command(options)
    except ConfigError as error:
        sys.stderr.write(f"raml: {without_secrets(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        # Said plainly; where it happened stands in the step's failure.txt.
        logging.getLogger(__name__).debug("", exc_info=True)
        sys.stderr.write(f"raml: {type(error).__name__}: {without_secrets(str(error))}\n")
        return 1


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's words and options, in any order. Raises: SystemExit(2) for what is no option."""
    words = parser()
    options, late = words.parse_known_args(arguments)
    for word in late:  # argparse leaves words that come after an option
        if word.startswith("-") or "words" not in options:
            words.error(f"unrecognized argument: {word}")
        options.words.append(word)
    return options


def _command(options: argparse.Namespace) -> int:
    if options.command == "doctor":
        return on_cluster.doctor(options)
    if options.command == "ui":
        config = presets.from_words(options.words or ["miniature"])
        from raml_ray import ui

        return ui.serve(config, options.port)
    if options.command == "submit":
        return on_cluster.submit(options, parsed)
    if options.command == "status" and options.address:
        return on_cluster.status(options)
    if options.command == "status":
        return status(options.words, as_json=options.json, watch=options.watch)
    if options.command == "ablate":
        return ablate(swept(options.words), dry_run=options.dry_run)
    if options.command == "reproduce":
        return reproduce(options.words, quick=options.quick, rehearse=options.rehearse, dry_run=options.dry_run)
    config = presets.from_words(options.words)
    if options.command == "plan":
        sys.stdout.write(showing.plan(config, options.gpus, options.response))
        return 0
    if options.command == "show" and options.unstated:
        sys.stdout.write(showing.unstated(options.words[0], config))
        return 0
    if options.command == "show":
        sys.stdout.write((showing.describe(config) if options.describe else dump(config)) + "\n")
        return 0
    if (config.ablate.space or config.ablate.grids) and not options.words[0].endswith(".json"):
        raise ConfigError(f"{options.words[0]} is a sweep: raml ablate {' '.join(options.words)}")
    stage: Stage | None = options.command if options.command in STAGES else None
    return run(config, stage=stage, step=options.step, redo=tuple(options.redo), dry_run=options.dry_run)


def run(
    config: Config, *, stage: Stage | None, step: str = "", redo: tuple[str, ...] = (), dry_run: bool = False
) -> int:
    """Run a preset's steps and say where their results are."""
    from raml_ray.stages import chosen

    steps = chosen.steps(config, only=step, stage=stage)
    for name in redo:
        config.step(name)
    if dry_run:
        sys.stdout.write("".join(f"{s.name:<18} {s.stage}\n" for s in steps))
        return 0
    environment.prepare(config.cluster.address)
    # Imported only now: a typo above costs half a second, not a cluster start.
    from raml_ray.stages import pipeline

    folder = pipeline.run(config, only=step or None, stage=stage, redo=redo)
    report = next((folder / s.name for s in config.steps if s.stage == "report" and (folder / s.name).exists()), None)
    sys.stdout.write(f"{report.file('report.html') if report else folder.path}\n")
    desktop = sys.stdout.isatty() and ({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
    if report and desktop and not step and Path(report.path).exists():
        webbrowser.open(Path(report.file("report.html")).as_uri())
    return 0


def ablate(config: Config, *, dry_run: bool = False) -> int:
    """Run the sweep of ablate.space over a preset's steps and say where its report is."""
    from raml_ray.stages import sweep

    found = sweep.expanded(config, config.ablate.space)
    if dry_run:
        counts = Counter(step.stage for step in found.config.steps)
        of_stages = ", ".join(f"{counts[stage]} {stage}" for stage in STAGES if counts[stage])
        lines = [f"{len(found.trials)} trials, {counts.total()} steps: {of_stages}"]
        lines += [f"shared: {' '.join(found.shared())}"]
        lines += [f"{trial.name}: {' '.join(found.own(trial))}" for trial in found.trials]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    environment.prepare(config.cluster.address)
    from raml_ray.stages import ablate as stage

    folder = stage.run(config)
    report = next(step.name for step in found.config.steps if step.stage == "report")
    sys.stdout.write(f"{(folder / report).file('report.html')}\n")
    return 0


def swept(words: Sequence[str]) -> Config:
    """`PRESET name=value NAME=grid(...)` as a configuration whose ablate.space holds what is searched over."""
    from raml_ray.stages import sweep

    fixed, space = sweep.parsed(words[1:])
    config = override(presets.from_words([words[0]]), fixed)
    return override(config, {"ablate.space": dict(config.ablate.space) | space})


def reproduce(words: Sequence[str], *, quick: bool, rehearse: bool, dry_run: bool) -> int:
    """Run the parts of a reproduction one after the other; the first that fails ends it."""
    parts = reproductions.parts(words[0], words[1:], quick=quick, rehearse=rehearse)
    configs = [_in_order(part, rehearse=rehearse, dry_run=dry_run) for part in parts]
    if dry_run:
        sys.stdout.write("".join(f"{part.line}\n    {part.shows}\n" for part in parts))
        return 0
    if rehearse:
        for mirror in {config.data.mirror for config in configs}:
            rehearsal.write_mirror(Path(mirror))
    for number, (part, config) in enumerate(zip(parts, configs, strict=True), 1):
        logger.info("%d of %d (%s): %s", number, len(parts), part.shows, part.line)
        if part.command == "ablate":
            ablate(config)
        else:
            run(config, stage=None)
    return 0


def _in_order(part: reproductions.Part, *, rehearse: bool, dry_run: bool) -> Config:
    """The part's configuration: what does not fit the last of them is not found out hours later.

    Raises: ConfigError that names the part.
    """
    try:
        config = presets.from_words(list(part.words)) if part.command == "run" else swept(part.words)
        if rehearse:
            return rehearsal.rehearsed(config)
        if part.command == "ablate":
            from raml_ray.stages import sweep

            sweep.expanded(config, config.ablate.space)
        if not dry_run:
            environment.prepare(config.cluster.address)
            from raml_ray.stages import inputs

            inputs.check(config, config.steps)
        return config
    except ConfigError as error:
        raise ConfigError(f"{part.line}: {error}") from None


def status(words: Sequence[str], *, as_json: bool, watch: bool) -> int:
    """Say how far the run in that folder, or of that preset, is."""
    from raml_ray import status as of_run
    from raml_ray import storage

    if not words:
        raise ConfigError("raml status: name a run's folder or a preset, or a cluster with --address")
    folder = storage.Folder(storage.absolute(words[0]))
    if len(words) > 1 or not folder.exists() or words[0].endswith(".json"):
        config = presets.from_words(list(words))
        folder = storage.run_folder(config.root, config.name)
    while True:
        rows = of_run.steps(folder)
        sys.stdout.write(json.dumps(rows) + "\n" if as_json else of_run.table(rows))
        sys.stdout.flush()
        if not watch:
            return 0
        time.sleep(2)
        sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main())
