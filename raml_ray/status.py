"""How far a run is, read from its folder by anyone who sees it: no connection to the run is needed."""

from typing import Any

from raml_ray import progress_file
from raml_ray.config import ConfigError, load
from raml_ray.storage import SUMMARY, Folder


def steps(folder: Folder) -> list[dict[str, str]]:
    """One row per step of the run, in order: step, stage, state, detail.

    States: `finished`; `running`; `failed`; `interrupted` (begun, and nobody works on it: run it again and it goes on);
    `waiting`.

    Raises: ConfigError if the folder holds no run.
    """
    begun = [name for name in folder.names() if (folder / name).exists("config.json")]
    if not begun:
        raise ConfigError(f"{folder.path} holds no run: give a preset (and root=…, name=…), or a run's folder")
    newest = max(begun, key=lambda name: progress_file.read(folder / name).get("updated", 0.0))
    config = load((folder / newest).read_text("config.json"), (folder / newest).file("config.json"))
    return [{"step": step.name, "stage": step.stage} | _state(folder / step.name) for step in config.steps]


def _state(folder: Folder) -> dict[str, str]:
    if folder.exists(SUMMARY):
        summary: dict[str, Any] = folder.read_json(SUMMARY)
        counts = {"rows": summary["counts"]["rows_out"]} | {
            name: summary["counts"][name] for name in ("rejected", "filtered") if summary["counts"][name]
        }
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        return {"state": "finished", "detail": f"{said}, {summary['seconds']['total']:.0f} s"}
    if not folder.exists("config.json"):
        return {"state": "waiting", "detail": ""}
    if folder.exists("failure.txt"):
        return {"state": "failed", "detail": folder.read_text("failure.txt").strip().rpartition("\n")[2][:200]}
    progress = progress_file.read(folder)
    state = "running" if progress_file.is_alive(progress) else "interrupted"
    return {"state": state, "detail": progress_file.line(progress)}


def table(rows: list[dict[str, str]]) -> str:
    """The rows for a terminal."""
    width = max(len(row["step"]) for row in rows)
    return "".join(f"{row['step']:<{width}}  {row['stage']:<8}  {row['state']:<11}  {row['detail']}\n" for row in rows)
