"""What words of a kind do to L-hat, without a model.   the curves of an lhat step -> words/

The paper's statistic as its notebook has it, beside one whose windows are equal, whose sign is kept, and whose words are
held against windows at like places, before the answer is written.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from raml_ray import records
from raml_ray.config import Config, ConfigError
from raml_ray.formulas import roles as formulas
from raml_ray.stages.context import Context, Counts, Outcome
from raml_ray.stages.instruments import chosen
from raml_ray.stages.instruments.chosen import Row
from raml_ray.stages.instruments.intervals import NUM_RESAMPLES, over_trajectories
from raml_ray.stages.instruments.lhat import CURVES
from raml_ray.stages.instruments.lhat_controls import GOLD
from raml_ray.text import roles, suffix, thinking

WORD = pa.struct(
    [
        ("category", pa.string()),
        ("text", pa.string()),
        ("start", pa.int32()),
        ("num_tokens", pa.int32()),
        ("before", pa.float32()),
        ("after", pa.float32()),
        ("log_ratio", pa.float32()),
        ("matched", pa.float32()),
        ("matched_size", pa.float32()),
        ("size_rank", pa.float32()),
        ("before_leak", pa.bool_()),
    ]
)
"""L-hat before and after a word, log(after / before), and that less the mean of its controls: of the log ratios (`matched`),
and of their sizes (`matched_size`); `size_rank` is how its size ranks among theirs (`formulas.roles.rank_above`). Null without
a control."""
MATCHED = ("matched", "matched_size", "size_rank")
WORDS = chosen.Table(
    "words",
    pa.schema(
        [
            ("trajectory_id", pa.string()),
            ("question_id", pa.string()),
            ("group", pa.string()),
            ("words", pa.list_(WORD)),
            ("paper_changes", pa.list_(pa.float32())),
            ("paper_words", pa.list_(pa.struct([("word", pa.string()), ("change", pa.float32())]))),
        ]
    ),
)
CURVE = pa.schema(
    [*chosen.CHOSEN, *(records.ANSWER_CURVE.field(name) for name in ("position", "lhat", "leak_position"))]
)


def run(context: Context) -> Outcome:
    rows = _curves(context)
    found = chosen.mapped(context, rows, Roles, WORDS, CURVE, open_policy=chosen.tokenizer_alone)
    groups = {name: figures([r for r in found.rows if r["group"] == name], context) for name in ("correct", "wrong")}
    return Outcome(Counts(len(rows), len(rows) - found.num_rejected, found.num_rejected), {"groups": groups})


def _curves(context: Context) -> list[dict[str, Any]]:
    """The trajectories of the step's data that have a curve of the gold answer, each with it.

    Raises: ConfigError if the data is of no lhat step.
    """
    found = []
    for source in context.sources:
        curves = (source / CURVES.name).read_tables("shard-", CURVES.schema).to_pylist()
        by_id = {curve["trajectory_id"]: curve for curve in curves if curve["probe"] == GOLD}
        for row in (source / "chosen").read_tables("shard-", chosen.CHOSEN).to_pylist():
            if curve := by_id.get(row["trajectory_id"]):
                found.append(row | {name: curve[name] for name in ("position", "lhat", "leak_position")})
    if not found:
        raise ConfigError(
            f"step {context.step.name!r}: its data ({', '.join(context.step.data)}) holds no curve of L-hat: name a step"
            " with analyze.instrument=lhat"
        )
    return found


class Roles(chosen.RowByRow):
    """Finds the words of trajectories, and what L-hat does over each."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
        self._tokenizer, self._settings, self._prompt = tokenizer, config.roles, config.prompt
        self._suffix = suffix.text_of(config.analyze.suffix)
        self._opening, self._closing = self._encoded(thinking.OPEN), self._encoded(thinking.CLOSE)
        self._paper_words = {word: self._encoded(word) for word in config.roles.paper_words}

    def _encoded(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def of(self, row: Row) -> Iterable[Row]:
        """One row. Raises: ValueError if the curve leaves tokens out, or is of other tokens than this policy's."""
        lhat_K, num_tokens = row["lhat"], len(row["lhat"]) - 1
        _, response_ids = chosen.token_ids(self._tokenizer, row, self._prompt)
        if row["position"] != list(range(num_tokens + 1)):
            raise ValueError("the curve leaves tokens out: words need analyze.stride=1 in the lhat step")
        if num_tokens > len(response_ids):
            raise ValueError("the curve is of other tokens: take the policy and prompt of the lhat step")
        ids = response_ids[:num_tokens]
        yield {
            "trajectory_id": row["trajectory_id"],
            "question_id": row["question_id"],
            "group": row["verdict"],
            "words": self._words(ids, lhat_K, row["leak_position"]),
            **self._of_paper(ids, lhat_K, row["answer"]),
        }

    def _of_paper(self, ids: list[int], lhat_K: list[float], answer: str) -> dict[str, Any]:
        """The paper's own statistic, over what its notebook takes it of."""
        num_suffix = len(suffix.answer_suffix(self._tokenizer, self._suffix, answer).token_ids)
        span = roles.paper_span(ids, self._opening, self._closing, num_suffix)
        # The notebook has the value after token i at i: the first of these is after the token before them.
        values, tokens = lhat_K[span.start : span.stop], ids[span.start : max(span.stop - 1, 0)]
        return {
            "paper_changes": formulas.paper_changes(values).tolist(),
            "paper_words": [
                {"word": word, "change": change}
                for word, word_ids in self._paper_words.items()
                for start in roles.occurrences(tokens, word_ids)
                if (change := formulas.paper_word_change(values, start + 1, len(word_ids))) is not None
            ],
        }

    def _words(self, ids: list[int], lhat_K: list[float], leak: int | None) -> list[dict[str, Any]]:
        settings = self._settings
        found = roles.words(*roles.token_spans(self._tokenizer, ids), settings.categories)
        is_role = {category: np.zeros(len(ids), dtype=bool) for category in settings.categories}
        for word in found:
            is_role[word.category][word.start : word.start + word.num_tokens] = True
        return [self._measured(word, lhat_K, is_role[word.category], leak) for word in found]

    def _measured(
        self, word: roles.Word, lhat_K: list[float], is_role_T: np.ndarray, leak: int | None
    ) -> dict[str, Any]:
        end, settings = word.start + word.num_tokens, self._settings
        ratios = formulas.log_ratios(lhat_K, word.num_tokens, settings.floor)
        before_leak = leak is None or end < leak
        controls = formulas.matched_windows(
            word.start,
            word.num_tokens,
            is_role_T,
            # A word before the answer is held against what is before the answer too.
            last=len(is_role_T) if leak is None or not before_leak else min(len(is_role_T), leak - 1),
            num=settings.num_controls,
            radius=settings.control_radius,
        )
        ratio, control_C = float(ratios[word.start]), ratios[controls]
        size, size_C = abs(ratio), np.abs(control_C)
        return {
            "category": word.category,
            "text": word.text,
            "start": word.start,
            "num_tokens": word.num_tokens,
            "before": lhat_K[word.start],
            "after": lhat_K[end],
            "log_ratio": ratio,
            "matched": ratio - float(control_C.mean()) if controls else None,
            "matched_size": size - float(size_C.mean()) if controls else None,
            "size_rank": formulas.rank_above(size, size_C) if controls else None,
            "before_leak": before_leak,
        }


def figures(rows: Sequence[Row], context: Context) -> dict[str, Any]:
    """Of one group: each category's words before the leak, with intervals over trajectories; the paper's means."""
    changes = [change for row in rows for change in row["paper_changes"]]
    by_word: dict[str, list[float]] = {}
    for row in rows:
        for word in row["paper_words"]:
            by_word.setdefault(word["word"], []).append(word["change"])
    return {
        "num": len(rows),
        "categories": {name: _category(rows, name, context.config.seed) for name in context.config.roles.categories},
        "paper": {"average": _mean_and_std(changes), **{word: _mean_and_std(each) for word, each in by_word.items()}},
    }


def _category(rows: Sequence[Row], category: str, seed: int) -> dict[str, Any]:
    words = [[word for word in row["words"] if word["category"] == category] for row in rows]
    early = [[word for word in each if word["before_leak"]] for each in words]
    found: dict[str, Any] = {"num_words": sum(map(len, words)), "num_before_leak": sum(map(len, early))}
    drawn = records.seed_of(seed, "roles", category, "log_ratio")
    ratios = [[word["log_ratio"] for word in each] for each in early]
    median = formulas.median_interval(ratios, num_resamples=NUM_RESAMPLES, seed=drawn)
    found["log_ratio"] = median and median._asdict()
    for measure in MATCHED:
        values = [[word[measure] for word in each if word[measure] is not None] for each in early]
        means = [float(np.mean(each)) for each in values if each]
        found[measure] = over_trajectories(means, seed, f"roles {category} {measure}")
    return found


def _mean_and_std(values: Sequence[float]) -> dict[str, Any]:
    """As the notebook has them: of all trajectories' values together, the standard deviation of the population."""
    if not values:
        return {"num": 0, "mean": None, "std": None}
    return {"num": len(values), "mean": float(np.mean(values)), "std": float(np.std(values))}
