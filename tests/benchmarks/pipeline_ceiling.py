"""How many trajectories per second the pipeline itself can carry: the stage `generate` with engines that only sleep.

    python -m tests.benchmarks.pipeline_ceiling [--engines 1,2,4,8] [--rows 1000,10000,100000] [--json FILE]

First table: engines of a known speed (each sleeps SECONDS_PER_STEP per step), so that an engine more should bring as
many rows more. Second table: engines that take no time, over more and more rows: what is left is the pipeline, and its
memory should not grow with the rows (`--rows 1000000` takes eight minutes). Every line is a fresh driver with a fresh Ray. Rates are those between a tenth and
nine tenths of the committed shards. Prints Markdown.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

SECONDS_PER_STEP = 0.05
TOKENS = (20, 60)
"""Fewest and most of a response, 40 in the mean."""
MAX_NUM_SEQS = 256
NUM_SAMPLES = 8
SHARD_QUESTIONS = 16
ROWS_PER_ENGINE = 4096
"""Of the first table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="1,2,4,8", help="engines of each line of the first table")
    parser.add_argument("--rows", default="1000,10000,100000", help="rows of each line of the second table")
    parser.add_argument("--rows-engines", type=int, default=2, help="engines of the second table")
    parser.add_argument("--json", default="", help="where the figures go")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(drive(**json.loads(options.one))))
        return
    scaling = [
        measured(engines=engines, rows=ROWS_PER_ENGINE * engines, seconds_per_step=SECONDS_PER_STEP)
        for engines in map(int, filter(None, options.engines.split(",")))
    ]
    growth = [
        measured(engines=options.rows_engines, rows=rows, seconds_per_step=0.0)
        for rows in map(int, filter(None, options.rows.split(",")))
    ]
    print(tables(scaling, growth))
    if options.json:
        Path(options.json).write_text(json.dumps({"scaling": scaling, "growth": growth}, indent=2) + "\n")


def measured(*, engines: int, rows: int, seconds_per_step: float) -> dict[str, Any]:
    """The figures of one fresh driver, with the most memory that it and its engines ever had."""
    with tempfile.TemporaryDirectory(prefix="raml-ceiling-") as folder:
        asked = {"folder": folder, "engines": engines, "rows": rows, "seconds_per_step": seconds_per_step}
        command = [sys.executable, "-m", "tests.benchmarks.pipeline_ceiling", "--one", json.dumps(asked)]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        most: dict[str, float] = {}
        watcher = threading.Thread(target=watch_memory, args=(driver.pid, most), daemon=True)
        watcher.start()
        out, _ = driver.communicate()
        watcher.join()
        if driver.returncode:
            raise SystemExit(f"the driver of {asked} failed")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return asked | found | most


def watch_memory(pid: int, most: dict[str, float]) -> None:
    """Keeps the largest resident sizes, MiB, of the engines and the ledger below a driver while it lives."""
    while psutil.pid_exists(pid):
        try:
            for process in psutil.Process(pid).children(recursive=True):
                command = " ".join(process.cmdline())
                for name in ("ShardSampler", "Ledger", "gcs_server", "raylet"):
                    if name in command.split("/")[-1] or f"({name}" in command or f"::{name}" in command:
                        key = f"{name}_mib"
                        # What a process shares with others (the object store) is no memory of its own.
                        own = process.memory_info().rss - getattr(process.memory_info(), "shared", 0)
                        most[key] = max(most.get(key, 0.0), own / 2**20)
        except psutil.Error:
            pass
        time.sleep(0.5)
        if psutil.pid_exists(pid) and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return


def drive(folder: str, engines: int, rows: int, seconds_per_step: float) -> dict[str, Any]:
    """The stage in this process, over questions that are made up."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback only
    from raml_ray import cluster
    from raml_ray.config import Step
    from raml_ray.stages import generate
    from tests.stages import contexts

    root = Path(folder)
    with open(root / "set.jsonl", "w") as file:
        for number in range(rows // NUM_SAMPLES):
            file.write(json.dumps({"problem": f"{number} + 1", "answer": "1"}) + "\n")
    context = contexts.context(
        root / "run",
        Step(name="generate", stage="generate"),
        data__path=str(root / "set.jsonl"),
        engine__max_model_len=128,
        engine__max_num_seqs=MAX_NUM_SEQS,
        generate__max_tokens=TOKENS[1],
        generate__num_samples=NUM_SAMPLES,
        generate__shard_questions=SHARD_QUESTIONS,
        generate__num_engines=engines,
        cluster__num_cpus=max(engines + 1, cluster.FEWEST_CPUS),
    )
    script = {"seconds_per_step": seconds_per_step, "tokens": TOKENS}
    (root / "policy" / "scripted.json").write_text(json.dumps(script))
    with cluster.connected(context.config):
        began, began_cpu, began_at = time.monotonic(), time.process_time(), time.time()
        outcome = generate.run(context)
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - began_cpu
    written = sorted(file.stat().st_mtime for file in (root / "run" / "generate" / "trajectories").iterdir())
    first, last = len(written) // 10, len(written) * 9 // 10
    return {
        "shards": len(written),
        "rows_out": outcome.counts.rows_out,
        "seconds": seconds,
        "first_shard_s": written[0] - began_at,
        "counting_s": began_at + seconds - written[-1],
        "rows_per_s": (last - first) * SHARD_QUESTIONS * NUM_SAMPLES / max(written[last] - written[first], 1e-9),
        "driver_cpu_ms_per_shard": 1000 * cpu_seconds / len(written),
        "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def tables(scaling: list[dict[str, Any]], growth: list[dict[str, Any]]) -> str:
    """Both as Markdown."""
    ideal = MAX_NUM_SEQS / (SECONDS_PER_STEP * sum(TOKENS) / 2)
    lines = [
        "| engines | rows | rows/s | of the engines' own speed | driver CPU per shard, ms |",
        "|---:|---:|---:|---:|---:|",
    ]
    for line in scaling:
        share = line["rows_per_s"] / (ideal * line["engines"])
        lines.append(
            f"| {line['engines']} | {line['rows_out']} | {line['rows_per_s']:.0f} | {share:.0%}"
            f" | {line['driver_cpu_ms_per_shard']:.1f} |"
        )
    lines += [
        "",
        "| rows | shards | rows/s | to the first shard, s | after the last, s | driver CPU per shard, ms"
        " | driver, MiB | engine, MiB | ledger, MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in growth:
        lines.append(
            f"| {line['rows_out']} | {line['shards']} | {line['rows_per_s']:.0f} | {line['first_shard_s']:.1f}"
            f" | {line['counting_s']:.1f} | {line['driver_cpu_ms_per_shard']:.1f} | {line['driver_mib']:.0f}"
            f" | {line.get('ShardSampler_mib', 0):.0f} | {line.get('Ledger_mib', 0):.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
