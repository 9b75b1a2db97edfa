"""L-hat of every token of chosen trajectories.   judged trajectories, policy -> curves/

For correct trajectories and, with the gold answer just the same, for wrong ones (paper, section 2.2 and Fig. 16).
"""

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from raml_ray import cluster, records
from raml_ray.config import ConfigError
from raml_ray.formulas import lhat, metrics
from raml_ray.records import Verdict
from raml_ray.settings import AnalyzeConfig, PromptConfig
from raml_ray.stages import mapping, rollouts, training_set
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.progress import Progress
from raml_ray.storage import Folder
from raml_ray.text import batches, leak, prompts, suffix
from raml_ray.workers import policy as policies
from raml_ray.workers import probe
from raml_ray.workers.sharding import DTYPES

PROBE_NAME = "gold"
ROWS_PER_SHARD = 8
NUM_RESAMPLES = 2000
CHOSEN = pa.schema([*records.TRAJECTORY, *list(records.VERDICT)[1:], ("problem", pa.string()), ("answer", pa.string())])


def run(context: Context) -> Outcome:
    settings = context.config.analyze
    cluster.check_fits(
        {f"analyze.num_workers={settings.num_workers}": (settings.num_workers, 0), "Ray Data's own tasks": (1, 0)}
    )
    chosen = _chosen(context)
    if not chosen:
        raise ConfigError(
            f"step {context.step.name!r}: its data ({', '.join(context.step.data)}) holds no judged trajectory"
        )
    shards = [chosen[start : start + ROWS_PER_SHARD] for start in range(0, len(chosen), ROWS_PER_SHARD)]
    done = set((context.folder / "curves").names("shard-", ".parquet"))
    missing = [{"shard": index} for index in range(len(shards)) if _name(index) not in done]
    for shard in missing:
        rows = shards[shard["shard"]]
        (context.folder / "chosen").write_table(_name(shard["shard"]), pa.Table.from_pylist(rows, schema=CHOSEN))
    if missing:
        policy_path, _ = rollouts.opened_policy(context)
        job = {
            "folder": context.folder.path,
            "policy_path": policy_path,
            "settings": settings.model_dump(mode="json"),
            "prompt": context.config.prompt.model_dump(mode="json"),
        }
        patience = mapping.Patience(settings.shard_timeout_s, f"analyze.shard_timeout_s={settings.shard_timeout_s:g}")
        probed = mapping.over_shards(
            context.step.name, missing, ShardProbe, {"job": job}, mapping.Workers(settings.num_workers), patience
        )
        there = len(chosen) - sum(len(shards[shard["shard"]]) for shard in missing)
        with Progress(
            context.folder, context.step.name, "analyze", unit="trajectories", total=len(chosen), done=there
        ) as progress:
            for row in probed:
                progress.add(int(row["rows"]))
    curves = (context.folder / "curves").read_tables("shard-", records.ANSWER_CURVE).to_pylist()
    rejected = (context.folder / "rejected").read_tables("shard-", records.REJECTED)["row_key"].to_pylist()
    mapping.check_complete(
        context.folder,
        [row["trajectory_id"] for row in chosen],
        [curve["trajectory_id"] for curve in curves],
        rejected,
    )
    figures = {
        "groups": {name: _figures([c for c in curves if c["group"] == name], context) for name in ("correct", "wrong")}
    }
    return Outcome(Counts(len(chosen), len(curves), len(rejected)), figures)


def _name(shard: int) -> str:
    return f"shard-{shard:06d}.parquet"


def _chosen(context: Context) -> list[dict[str, Any]]:
    """Of each question the first correct and the first wrong trajectories, in the order of their samples."""
    settings = context.config.analyze
    wanted = {Verdict.CORRECT: settings.num_correct, Verdict.WRONG: settings.num_wrong}
    taken: dict[str, dict[Verdict, int]] = defaultdict(lambda: dict.fromkeys(wanted, 0))
    chosen = []
    rows, questions = training_set.judged(context)
    for row in rows:
        verdict, question = Verdict(row["verdict"]), row["question_id"]
        if question not in taken and len(taken) == settings.num_questions:
            continue
        if verdict not in wanted or taken[question][verdict] == wanted[verdict]:
            continue
        taken[question][verdict] += 1
        chosen.append(row | {"problem": questions[question].problem, "answer": questions[question].answer})
    return chosen


class ShardProbe:
    """A policy that scores the answer after every prefix: the class that Ray Data maps over shards."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(1)
        self._folder = Folder(job["folder"])
        self._settings = AnalyzeConfig.model_validate(job["settings"])
        self._prompt = PromptConfig.model_validate(job["prompt"])
        self._tokenizer = policies.load_tokenizer(job["policy_path"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = policies.load_model(job["policy_path"], dtype=DTYPES[self._settings.dtype]).eval().to(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        reports = [self._probe(int(shard)) for shard in batch["shard"]]
        return {name: [report[name] for report in reports] for name in reports[0]}

    def _probe(self, shard: int) -> dict[str, int]:
        rows = (self._folder / "chosen").read_table(_name(shard)).to_pylist()
        curves, rejected = [], []
        for row in rows:
            try:
                curves.append(self._curve(row))
            except ValueError as error:
                rejected.append(records.rejected(row["trajectory_id"], "analyze", str(error)[:200], row))
        mapping.write_rejected(self._folder, _name(shard), rejected)
        (self._folder / "curves").write_table(_name(shard), records.table(curves, records.ANSWER_CURVE))
        return {"shard": shard, "rows": len(rows)}

    def _curve(self, row: dict[str, Any]) -> dict[str, Any]:
        """L-hat after 0 .. n response tokens, n being where `until` ends, or all of the response."""
        prompt_ids, response_ids = self._token_ids(row)
        until = self._settings.until
        last = leak.position_of_text(self._tokenizer, response_ids, until) if until else None
        answer = suffix.answer_suffix(self._tokenizer, self._settings.suffix, row["answer"])
        lhat_K = probe.answer_nll(
            self._model,
            prompt_ids + response_ids[:last],
            first_position=len(prompt_ids),
            suffix=answer,
            positions_per_chunk=self._settings.positions_per_chunk,
        )
        found = leak.position(self._tokenizer, response_ids, row["answer"])
        return {
            "trajectory_id": row["trajectory_id"],
            "probe": PROBE_NAME,
            "position": list(range(len(lhat_K))),
            "lhat": lhat_K.tolist(),
            "foil_margin": None,
            "leak_position": found,
            "group": row["verdict"],
            "question_id": row["question_id"],
            "num_tokens": len(response_ids),
        }

    def _token_ids(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Prompt and response, without its end of sequence.

        The ids that an engine sampled, where they are this policy's tokens of that prompt and text; else its tokens of the
        text. Raises: ValueError if the text lacks the prefix that the prompt forces.
        """
        sampled, stops = row["token_ids"], json.loads(row["sampling"] or "{}").get("stop_token_ids", [])
        prompt_ids = prompts.prompt_token_ids(self._tokenizer, row["problem"], self._prompt)
        if (
            sampled is not None
            and row["prompt_token_ids"] == prompt_ids
            and prompts.response_text(self._tokenizer, sampled, self._prompt, stops) == row["text"]
        ):
            response_ids = list(sampled)
        else:
            example = batches.encode(self._tokenizer, row["problem"], row["text"], self._prompt)
            response_ids = list(example.response_token_ids)
        if response_ids and response_ids[-1] in (self._tokenizer.eos_token_id, *stops):
            response_ids = response_ids[:-1]
        return prompt_ids, response_ids


def _figures(curves: list[dict[str, Any]], context: Context) -> dict[str, Any]:
    """Start, end and drop of L-hat, the leak's share of the drop, and the trend before the leak, with intervals."""
    if not curves:
        return {"num": 0}
    raw = [np.asarray(curve["lhat"], dtype=np.float64) for curve in curves]
    # A leak that was not probed, or that there is none of, lies behind the last position.
    leaked = [c["leak_position"] is not None and c["leak_position"] <= c["position"][-1] for c in curves]
    leaks = [c["leak_position"] if is_there else len(c["lhat"]) for c, is_there in zip(curves, leaked, strict=True)]
    splits = [lhat.leak_split(c["position"], c["lhat"], leak) for c, leak in zip(curves, leaks, strict=True)]
    columns: dict[str, list[float]] = {
        "start": [float(values[0]) for values in raw],
        "end": [float(values[-1]) for values in raw],
        "drop": [float(values[0] - values[-1]) for values in raw],
        "share_at_leak": [
            s.share_near for s, is_there in zip(splits, leaked, strict=True) if s.share_near is not None and is_there
        ],
        "tau_before_leak": [s.kendall_tau for s in splits if s.kendall_tau is not None],
        "slope_before_leak": [s.slope for s in splits if s.slope is not None],
    }
    figures: dict[str, Any] = {"num": len(curves), "leaked": sum(leaked)}
    for name, values in columns.items():
        seed = records.seed_of(context.config.seed, "analyze", name)
        interval = metrics.bootstrap_interval(values, num_resamples=NUM_RESAMPLES, seed=seed) if values else None
        figures[name] = interval._asdict() if interval else None
    return figures
