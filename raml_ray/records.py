"""The records that stages hand each other, their Arrow schemas, and the ids that make them unique.

Every id and every seed is a hash of what it depends on, so that a retry makes the same row again and not another one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import pyarrow as pa


class Verdict(StrEnum):
    """What the judge says of a trajectory's final answer. Compare with `is`: every member is truthy."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNREADABLE = "unreadable"
    """No final answer could be read. Rewarded as wrong, reported apart."""
    TIMEOUT = "timeout"
    """The judge's CPU deadline struck. Says nothing about the answer: leaves every mean and every group."""
    ERROR = "error"
    """The judge died or could not read the gold answer. Says nothing about the answer either."""

    @property
    def is_judgement(self) -> bool:
        """Whether the verdict speaks of the answer (and not of the judge)."""
        return self not in (Verdict.TIMEOUT, Verdict.ERROR)


@dataclass(frozen=True, slots=True)
class Question:
    """One task: `Question("q1", "Sum: _ 3 8", "11", "miniature", "sum", 2)`."""

    question_id: str
    problem: str
    answer: str
    """Gold final answer, as text."""
    source: str
    """The question set that it was read from."""
    domain: str = ""
    level: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun(Question):
    """A question whose response has begun: what is sampled goes on behind these tokens."""

    begun_token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One response to a question: from an engine with its token ids, from elsewhere as text alone."""

    trajectory_id: str
    question_id: str
    sample_index: int
    text: str
    finish_reason: str
    """`stop`, `length`, or `imported`."""
    policy_id: str
    """`name@fingerprint`."""
    sampling: str
    """Sampling settings as JSON; empty for imports."""
    seed: int
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    """Response tokens, end-of-sequence included."""
    logprobs: list[float] | None = None
    """Of each response token under the sampling distribution, nats."""
    weight_versions: list[dict[str, int]] | None = None
    """Spans of response tokens by the policy version that sampled them: {version, start, end}."""
    forced: list[dict[str, int]] | None = None
    """Spans of response tokens that were put there and not sampled: {start, end}. Their log-probabilities are 0."""


class Judgement(NamedTuple):
    """A verdict with its cause: `Judgement(Verdict.WRONG, "different", "41", 0.0021)`."""

    verdict: Verdict
    reason: str
    """The finer cause (`exact`, `equal`, `different`, `no_answer`, `cpu_deadline`, …)."""
    extracted: str
    """The final answer that was read, bounded."""
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that was set aside, and why."""

    row_key: str
    stage: str
    reason: str
    payload: str
    """What the row held, at most PAYLOAD_CHARS characters."""


PAYLOAD_CHARS = 4096

QUESTION = pa.schema(
    [
        ("question_id", pa.string()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("level", pa.int32()),
    ]
)
BEGUN = pa.schema([*QUESTION, ("begun_token_ids", pa.list_(pa.int32()))])
TRAJECTORY = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("question_id", pa.string()),
        ("sample_index", pa.int32()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("policy_id", pa.string()),
        ("sampling", pa.string()),
        ("seed", pa.int64()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        (
            "weight_versions",
            pa.list_(pa.struct([("version", pa.int32()), ("start", pa.int32()), ("end", pa.int32())])),
        ),
        ("forced", pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32())]))),
    ]
)
VERDICT = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("extracted", pa.string()),
        ("cpu_seconds", pa.float32()),
    ]
)
ANSWER_CURVE = pa.schema(
    [
        ("trajectory_id", pa.string()),
        # gold: the right answer along the trajectory; foil: a wrong one along it; own: a wrong trajectory's own one;
        # shuffled, foreign, spliced: the right answer along another text.
        ("probe", pa.string()),
        ("answer", pa.string()),
        ("position", pa.list_(pa.int32())),
        ("lhat", pa.list_(pa.float32())),
        ("foil_margin", pa.list_(pa.float32())),
        ("leak_position", pa.int32()),
        ("group", pa.string()),
        ("question_id", pa.string()),
        ("num_tokens", pa.int32()),
        # What the paper's figure leaves out: prefixes before this one, which is the first to hold <think> where the response
        # opens its thought itself, and the response's last ones, as many as suffix and answer have tokens.
        ("think_position", pa.int32()),
        ("num_suffix", pa.int32()),
    ]
)
LABEL = pa.schema([("trajectory_id", pa.string()), ("label", pa.bool_())])
"""Published verdicts of imported trajectories."""
REJECTED = pa.schema(
    [("row_key", pa.string()), ("stage", pa.string()), ("reason", pa.string()), ("payload", pa.string())]
)


def digest(*parts: object) -> str:
    """Sixteen hex digits that name the parts, in their order."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, default=str).encode()).hexdigest()[:16]


def question_id(problem: str, answer: str) -> str:
    """The id of a question whose source gives none."""
    return digest("question", problem, answer)


def trajectory_id(question: str, policy: str, sampling: str, sample_index: int) -> str:
    """The id of one sample: the same question, policy, prompt-and-sampling fingerprint and index are the same sample."""
    return digest("trajectory", question, policy, sampling, sample_index)


def seed_of(seed: int, *parts: object) -> int:
    """A seed in [0, 2^31) that the run's seed and the parts decide."""
    return int(digest("seed", seed, *parts)[:8], 16) & 0x7FFFFFFF


def rejected(row_key: str, stage: str, reason: str, row: object) -> Rejected:
    """A Rejected with the row as its bounded payload."""
    return Rejected(row_key, stage, reason, repr(row)[:PAYLOAD_CHARS])


def table(rows: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Dataclass rows (or mappings) as an Arrow table of that schema."""
    return pa.Table.from_pylist([row if isinstance(row, Mapping) else asdict(row) for row in rows], schema=schema)


def questions(rows: pa.Table) -> list[Question]:
    """A table with QUESTION's columns as records."""
    return [Question(**row) for row in rows.select(QUESTION.names).to_pylist()]


def question_schema(rows: Iterable[Question]) -> pa.Schema:
    """QUESTION, or BEGUN where the responses have begun."""
    return BEGUN if any(isinstance(row, Begun) for row in rows) else QUESTION


def asked(rows: pa.Table) -> list[Question]:
    """A table with QUESTION's columns, or BEGUN's, as records of that kind."""
    if "begun_token_ids" not in rows.column_names:
        return questions(rows)
    return [Begun(**row) for row in rows.select(BEGUN.names).to_pylist()]


def begun_token_ids(question: Question) -> list[int]:
    """What the question's response begins with; nothing where it has not begun."""
    return question.begun_token_ids if isinstance(question, Begun) else []
